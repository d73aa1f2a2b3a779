"""The report as files: numbers that are those of the results, texts that stay texts, nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import re
import statistics
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from reftune.comparison.report import write_report
from reftune.errors import DataError, MissingExtraError
from tests.comparison.report.fakes import METHODS, TASKS, fake_results

pytest.importorskip("matplotlib")

HOSTILE = '<script>alert(1)</script> $x^2$ "&amp;" | **b** [a](http://x.y) `c` \x00 \x1b ‮ 汉字'


class Page(HTMLParser):
    """Tags with their attributes, cells of tables, texts."""

    EMPTY = frozenset({"meta", "link", "br", "path", "use", "rect", "line", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "small" and {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += " / "

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


def written(results: dict[str, Any], folder: Path) -> tuple[str, str, Page]:
    markdown, html = (path.read_text(encoding="utf-8") for path in write_report(results, folder))
    return markdown, html, Page(html)


def few(**more: Any) -> dict[str, Any]:
    return fake_results(**{"methods": 3, "tasks": 2, "seeds": (42, 43), **more})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Page]:
    return written(few(), tmp_path_factory.mktemp("report"))


def test_the_main_table_is_what_the_runs_say(page: tuple[str, str, Page]) -> None:
    head, *lines = page[2].tables[0]
    assert head[0] == "Method" and head[1].startswith("Trained") and len(lines) == 3
    for (method, label, parameters, *_), line in zip(METHODS, lines, strict=False):
        runs = [run for run in few()["runs"] if run["label"] == label]
        assert line[0] == (label if method == "base" else f"{label} / 2 seeds")
        assert line[1].startswith(f"{parameters:,}")
        for (task, *_), cell in zip(TASKS[:2], line[2:4], strict=True):
            scores = [run["scores"][task]["score"] for run in runs if run["train_task"] == task]
            spread = "" if method == "base" else f" ± {100 * statistics.stdev(scores):.1f}"
            assert cell.startswith(f"{100 * statistics.fmean(scores):.1f}{spread} / ")
        whole = statistics.fmean(run["scores"][run["train_task"]]["score"] for run in runs)
        assert line[4].startswith(f"{100 * whole:.1f} ")
        if method != "base":
            seconds = statistics.fmean(run["train_seconds"] for run in runs)
            prepared = statistics.fmean(run["prepare_seconds"] for run in runs)
            memory = max(run["peak_memory_mb"] for run in runs)
            shown = [float(cell.replace(",", "")) for cell in line[5:10]]
            assert shown[:2] == pytest.approx([seconds, prepared], abs=0.05)
            assert shown[2:] == pytest.approx([1.9 * seconds, memory, runs[0]["adapter_bytes"] / 1e6], rel=0.005)
        else:
            assert line[5:10] == ["–"] * 5


def test_markdown_has_the_numbers_of_the_page(page: tuple[str, str, Page]) -> None:
    lines = page[0].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| Method | Trained"))
    for row, line in enumerate(page[2].tables[0][1:]):
        cells = [cell.strip().replace("<br>", " / ") for cell in lines[start + 2 + row].strip("|").split(" | ")]
        assert cells == [cell.strip() for cell in line]


def test_every_run_and_its_settings_are_there(page: tuple[str, str, Page]) -> None:
    _, html, seen = page
    runs = [run for run in few()["runs"] if run["label"] == "LoReFT"]
    lines = [line for line in seen.tables[-1] if line[0] == "LoReFT"]
    assert len(lines) == len(runs) == 4
    for run in runs:
        task = run["scores"][run["train_task"]]
        assert any(line[3] == str(run["seed"]) and line[4] == f"{100 * task['score']:.1f}" for line in lines)
        assert run["command"] in "".join(seen.texts)
    assert few()["command"] in html and "torch 2.13.0" in html and few()["tried"][0] in html
    assert "equal epochs, 2" in html


def test_bold_is_only_what_overlaps_with_nothing(page: tuple[str, str, Page], tmp_path: Path) -> None:
    assert "<strong>" not in page[1]
    given = few(tasks=1, seeds=(42,))
    given["runs"][1]["scores"]["sst2"] |= {"score": 0.99, "low": 0.98, "high": 1.0}
    assert re.findall("<strong>(.*?)</strong>", written(given, tmp_path)[1]) == ["99.0"]


def renamed(given: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Results of other tasks."""
    given["tasks"] = {names[name]: facts for name, facts in given["tasks"].items()}
    for run in given["runs"]:
        run["train_task"] = names[run["train_task"]]
        run["scores"] = {names[name]: score for name, score in run["scores"].items()}
    return given


def published(given: dict[str, Any], folder: Path) -> list[list[list[str]]]:
    return [table for table in written(given, folder)[2].tables if table[0][2] == "Numbers are"]


def test_published_numbers_are_labelled_and_stand_beside_measured_ones(tmp_path: Path) -> None:
    given = renamed(few(), {"sst2": "boolq", "qnli": "sst2"})
    # of two tasks of several groups: of LLaMA-7B each task was published, of others averages alone
    (table,) = published(given, tmp_path)
    assert table[0][3:] == ["Trained / % of all", "SST-2"]  # the title that the results give
    kinds = Counter((line[1], line[2]) for line in table[1:])
    assert kinds == {("SmolLM2-135M-Instruct", "measured here"): 3, ("LLaMA-7B", "published"): 1}
    assert table[-1] == ["LoReFT", "LLaMA-7B", "published", "0.031", "69.3"]
    # no single score of GLUE was published, and its average is not measured
    assert not published(few(), tmp_path)
    glue = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")
    whole = few(tasks=1)
    whole["tasks"] = dict.fromkeys(glue, whole["tasks"]["sst2"])
    for run in whole["runs"]:
        run["scores"] = dict.fromkeys(glue, run["scores"]["sst2"])
    (table,) = published(whole, tmp_path)
    assert table[0][4:] == ["GLUE / average of 8"]
    assert ["LoReFT", "RoBERTa-large", "published", "–", "88.2"] in table


def test_tasks_without_published_numbers_have_no_such_table(tmp_path: Path) -> None:
    given = few(tasks=1)
    given["tasks"] = {"mine": given["tasks"].pop("sst2")}
    for run in given["runs"]:
        run["scores"] = {"mine": run["scores"].pop("sst2")}
    assert "ublished" not in written(given, tmp_path)[1]


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    given = few(tasks=1)
    for name in ("title", "command", "hardware", "model", "date"):
        given[name] = HOSTILE
    given["tried"] = [HOSTILE]
    given["versions"] = {HOSTILE: HOSTILE}
    given["tasks"]["sst2"]["title"] = HOSTILE
    for run in given["runs"][1:]:
        run["label"] = HOSTILE + run["label"]
        run["settings"] = {"note": HOSTILE}
        run["command"] = HOSTILE
    given["runs"].append({"method": "ia3", "label": "x", "error": f"Traceback\n{HOSTILE}\n```\n</details>"})
    markdown, _, seen = written(given, tmp_path)
    assert not {"script", "b", "img"} & {tag for tag, _ in seen.tags}
    assert all(str(found["href"]).startswith("#part-") for tag, found in seen.tags if tag == "a")
    # as it was, in the page and in a picture, less what cannot be seen
    assert any('<script>alert(1)</script> $x^2$ "&amp;" | **b**' in text for text in seen.texts)
    assert not any(sign in text for text in [markdown, *seen.texts] for sign in "\x00\x1b\u202e")
    # outside of code, Markdown may hold neither tags nor links of theirs, and tables keep their columns
    prose = re.sub(r"^(`{3,})text\n.*?\n\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    # a line that begins with a tag is HTML, to which a link is text
    prose = re.sub(r"^<details>.*", lambda line: line[0].replace("](", "] ("), prose, flags=re.MULTILINE)
    assert "<script" not in prose and not re.search(r"(?<!\\)\]\(http", prose)
    table = prose[prose.index("| Method") :].split("\n\n")[0].splitlines()
    assert len(table) == 5 and {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {9}


def test_labels_that_look_like_parts_of_a_picture_stay_as_they_are(tmp_path: Path) -> None:
    given = few(methods=2, tasks=1)
    label = '#1f63c8 id="x" $a_1$'
    for run in given["runs"][1:]:
        run["label"] = label
    written(given, tmp_path)
    for path in (tmp_path / "report_pictures").iterdir():
        assert label in "".join(ET.parse(path).getroot().itertext())


def test_nothing_is_loaded_from_elsewhere(page: tuple[str, str, Page]) -> None:
    _, html, seen = page
    assert "://" not in html and "url(http" not in html and "@import" not in html
    assert ("meta", "Content-Security-Policy") in {(tag, found.get("http-equiv")) for tag, found in seen.tags}
    links = [found[key] for _, found in seen.tags for key in ("href", "src", "xlink:href") if found.get(key)]
    assert links and all(link is not None and link.startswith(("#", "data:")) for link in links)


def test_ids_of_the_page_are_unique_and_used(page: tuple[str, str, Page]) -> None:
    seen = page[2]
    ids = [found["id"] for _, found in seen.tags if "id" in found]
    assert len(ids) == len(set(ids)) > 10
    used = {str(found["href"])[1:] for _, found in seen.tags if str(found.get("href", "")).startswith("#")}
    assert used <= set(ids)


def test_pictures_are_whole_files_in_both_themes(tmp_path: Path) -> None:
    markdown, html, seen = written(few(), tmp_path)
    named = set(re.findall(r"!\[.*?\]\((.*?)\)", markdown))
    files = {f"report_pictures/{path.name}" for path in (tmp_path / "report_pictures").iterdir()}
    # average and two tasks against parameters and time; two curves for each of two trainings
    assert named == files and len(files) == 3 + 3 + 4
    assert sum(tag == "svg" for tag, _ in seen.tags) == len(files)
    for path in (tmp_path / "report_pictures").iterdir():
        text = path.read_text(encoding="utf-8")
        ET.fromstring(text)
        assert "prefers-color-scheme:dark" in text and not re.search(r"(fill|stroke): #", text)
    assert "LoReFT l1 r4, reuse" in html


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(few(tasks=1), tmp_path / name)
    first = {path.relative_to(tmp_path / "a"): path.read_bytes() for path in (tmp_path / "a").rglob("*.*")}
    second = {path.relative_to(tmp_path / "b"): path.read_bytes() for path in (tmp_path / "b").rglob("*.*")}
    assert first == second and len(first) == 2 + 2 + 2


def test_one_run_only(tmp_path: Path) -> None:
    given = few(methods=2, tasks=1, seeds=(42,))
    given["runs"] = given["runs"][1:]
    markdown, html, seen = written(given, tmp_path)
    assert len(seen.tables[0]) == 2 and "1 seed" in html and "±" not in seen.tables[0][1][2]
    assert "Every method ran with one seed only" in markdown
    # nothing to compare with
    assert "highest score" not in markdown


def test_base_model_only(tmp_path: Path) -> None:
    markdown, html, seen = written(few(methods=1), tmp_path)
    assert seen.tables[0][1][:2] == ["base model", "0"]
    assert "<svg" not in html and "Learning curves" not in html and "](" not in markdown
    assert "base model is not shown to be better than a guess on SST-2 (50.0) and QNLI (50.0)" in markdown


def test_equal_scores_are_called_equal_and_an_interval_without_width_is_explained(tmp_path: Path) -> None:
    given = few(methods=3, tasks=1, seeds=(42,))
    for run in given["runs"]:
        for score in run["scores"].values():
            score.update(score=0.0, low=0.0, high=0.0)
    given["runs"][2]["label"] = "LoReFT l1"
    markdown, _, _ = written(given, tmp_path)
    assert "SST-2: base model, LoReFT and LoReFT l1 share the highest score, 0.0." in markdown
    told = "SST-2: the interval of base model (0.0), LoReFT (0.0) and LoReFT l1 (0.0) has no width"
    assert told in markdown
    next(iter(given["runs"][1]["scores"].values()))["score"] = 0.5
    markdown, _, _ = written(given, tmp_path / "other")
    assert "share the highest" not in markdown


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    given = few()
    runs = given["runs"]
    nameless = next(
        run for run in runs if run["label"] == "LoReFT" and run["train_task"] == "qnli" and run["seed"] == 43
    )
    nameless["scores"]["qnli"]["score"] = float("nan")
    alone = next(
        run for run in runs if run["label"].endswith("reuse") and run["train_task"] == "sst2" and run["seed"] == 43
    )
    alone["scores"] = {}
    for run in runs:
        if run["label"].endswith("reuse") and run["train_task"] == "qnli":
            run["scores"] = {}
    runs.append(
        {"method": "lora", "label": "LoRA", "train_task": "sst2", "seed": 42, "error": "Traceback\nKilled: no memory"}
    )
    markdown = written(given, tmp_path)[0]
    assert "1 of 11 runs are missing" in markdown
    assert "(Killed: no memory): LoRA (trained on SST-2, seed 42)." in markdown
    assert "QNLI: a score of LoReFT is no number and is left out." in markdown
    assert "LoReFT lacks seed 43 of QNLI." in markdown
    assert "QNLI: no score of “LoReFT l1 r4, reuse”." in markdown
    assert "LoReFT l1 r4, reuse lacks seed 43 of SST-2." in markdown


def test_scores_without_intervals_are_shown_without(tmp_path: Path) -> None:
    given = few(tasks=1, seeds=(42,))
    for run in given["runs"]:
        run["scores"]["sst2"] |= {"low": None, "high": None}
    markdown, html, seen = written(given, tmp_path)
    assert [line[2].count("/") for line in seen.tables[0][1:]] == [0, 0, 0]
    assert "without an interval" in markdown and "<strong>" not in html


def test_all_runs_failed(tmp_path: Path) -> None:
    given = few(tasks=1)
    given["runs"] = [{"method": "lora", "label": "LoRA", "train_task": "sst2", "seed": 42, "error": "not run"}]
    markdown, html, _ = written(given, tmp_path)
    assert "No run has ended" in markdown and "not run" in markdown and "<svg" not in html


def test_a_budget_that_was_not_kept_is_told(tmp_path: Path) -> None:
    given = few(tasks=1, seeds=(42,), kind="seconds")
    given["runs"][1]["train_seconds"] = 90.0
    given["runs"][2]["train_seconds"] = 140.0
    markdown = written(given, tmp_path)[0]
    assert "every method trains for 90 s" in markdown
    assert "LoReFT l1 r4, reuse did not keep to the budget of 90 s: it had 140." in markdown
    assert "LoReFT did not keep" not in markdown
    # there is nothing to draw over times that are equal
    assert "time-0" not in markdown and "All methods had the same time to train" in markdown


def test_protocols_and_limits_are_told(tmp_path: Path) -> None:
    given = few(tasks=1, seeds=(42,)) | {"kind": "classes", "held_out": True, "config": {"test_rows": 500, "epochs": 2}}
    given["runs"][1]["scores"]["sst2"] |= {"n": 400}
    markdown = written(given, tmp_path)[0]
    assert "held out of training" in markdown and "the best epoch is chosen on one" in markdown
    assert "At most 500 test rows" in markdown
    assert "SST-2: 1,000 training rows, 400 to 500 test rows" in markdown and "compare them with care" in markdown


def test_nothing_is_written_if_anything_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError):
        write_report({"title": "x"}, tmp_path / "malformed")
    monkeypatch.setattr("reftune.comparison.report.content.curves", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(few(tasks=1), tmp_path / "broken")
    assert list(tmp_path.iterdir()) == []


def test_no_other_files_are_left(tmp_path: Path) -> None:
    write_report(few(tasks=1, methods=2), tmp_path, name="page")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    curves = {f"page_pictures/curve-0-{x}.svg" for x in ("step", "time")}
    scores = {f"page_pictures/{x}-0.svg" for x in ("parameters", "time")}
    assert found == {"page.md", "page.html", *curves, *scores}


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name, *rest)
    )
    with pytest.raises(MissingExtraError, match=r"reftune\[report\]"):
        write_report(few(), tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- answers to single rows -------------------------------------------------------------------------------------------


def with_answers(**more: Any) -> dict[str, Any]:
    given = few(tasks=1, seeds=(42,), **more)
    base, first, second = (run["label"] for run in given["runs"])
    test = {"rows": 500, "difference": 0.03, "low": -0.01, "high": 0.07, "only_first": 20, "only_second": 9, "p": 0.06}
    sure = {**test, "difference": 0.4, "low": 0.35, "high": 0.45, "only_first": 210, "only_second": 10, "p": 1e-9}
    given["paired"] = {"sst2": {"best": first, "others": {base: sure, second: test}}}
    answers = {name: {"output": f"from {name}", "right": name != base} for name in (base, first, second)}
    rows = [{"row": i, "prompt": f"question {i}", "wanted": "yes", "answers": answers} for i in range(10)]
    given["samples"] = {"sst2": rows}
    for run in given["runs"][1:]:
        run["trained"] = f"runs/{run['label'].replace(' ', '-')}/adapter"
    return given


def test_the_first_table_leads_to_what_was_trained(tmp_path: Path) -> None:
    head, *lines = written(with_answers(), tmp_path)[2].tables[0]
    assert head[-1].startswith("What it trained")
    assert [line[-1] for line in lines] == ["–", "runs/LoReFT/adapter", "runs/LoReFT-l1-r4,-reuse/adapter"]
    # of several trainings the first, and where the others are told of
    given = few(tasks=1)
    for i, run in enumerate(given["runs"][1:]):
        run["trained"] = f"runs/{i}/adapter"
    assert "and 1 more, see “Every run”" in written(given, tmp_path)[2].tables[0][2][-1]


def test_each_method_stands_beside_the_best_in_words(tmp_path: Path) -> None:
    markdown, _, seen = written(with_answers(), tmp_path)
    assert (
        "SST-2: LoReFT has the highest score. It is shown to be better than: base model (p &lt; 0.001: 210 rows only "
        "the best has right, 10 only it). It is not told apart from: LoReFT l1 r4, reuse (p = 0.06: 20 rows only the "
        "best has right, 9 only it)." in markdown
    )
    (table,) = (table for table in seen.tables if table[0][-1] == "McNemar's p")
    assert table[2] == ["SST-2", "LoReFT l1 r4, reuse", "LoReFT", "20", "9", "3.0 / −1.0 to +7.0", "0.06"]
    given = with_answers()
    for test in given["paired"]["sst2"]["others"].values():
        test |= {"p": None, "only_first": None, "only_second": None}
    assert "not told apart from: LoReFT l1 r4, reuse (difference −1.0 to +7.0 points)" in written(given, tmp_path)[0]


def test_samples_show_the_same_rows_of_all_methods(tmp_path: Path) -> None:
    seen = written(with_answers(), tmp_path)[2]
    (table,) = (table for table in seen.tables if table[0] == ["Row", "What", "Text"])
    assert len(table) == 1 + 10 * (2 + 3)
    assert table[1:6] == [
        ["0", "asked", "question 0"],
        ["", "wanted", "yes"],
        ["", "base model / wrong", "from base model"],
        ["", "LoReFT / right", "from LoReFT"],
        ["", "LoReFT l1 r4, reuse / right", "from LoReFT l1 r4, reuse"],
    ]


def test_labels_have_their_table(tmp_path: Path) -> None:
    given = few(tasks=1, seeds=(42,))
    labels = [{"label": name, "precision": 0.5, "recall": 0.25, "f1": 1 / 3, "rows": 4} for name in ("a", "b")]
    confusion = {"columns": ["a", "b", "no label"], "rows": [[1, 2, 1], [0, 4, 0]]}
    given["runs"][1]["scores"]["sst2"]["details"] = {"labels": labels, "confusion": confusion, "macro_f1": 1 / 3}
    (table,) = (table for table in written(given, tmp_path)[2].tables if table[0][0] == "Label")
    assert table[1] == ["a", "4", "50.0", "25.0", "33.3", "1", "2", "1"]


def test_time_is_that_of_the_processor_where_the_clock_was_disturbed(tmp_path: Path) -> None:
    given = few(tasks=1, seeds=(42,))
    assert "training time, s" in written(given, tmp_path)[1] and "CPU times" not in written(given, tmp_path)[1]
    # one of two was slowed by other work
    given["runs"][1]["cpu_seconds"] *= 0.7
    page = written(given, tmp_path)[1]
    assert "CPU time of the training, s" in page and "133 to 190 % of one processor" in page
    given["runs"][1]["cpu_seconds"] = None
    assert "CPU time of the training" not in written(given, tmp_path)[1]


def test_every_picture_names_itself_and_its_axes(tmp_path: Path) -> None:
    write_report(few(), tmp_path)
    pictures = sorted((tmp_path / "report_pictures").glob("*.svg"))
    assert len(pictures) == 10
    for picture in pictures:
        text = picture.read_text(encoding="utf-8")
        heads = ("SST-2", "QNLI", "Average of 2 tasks")
        assert any(f">{head}" in text for head in heads), picture.name
        y = "training loss" if picture.name.startswith("curve") else "score"
        assert f">{y}" in text, picture.name
        assert any(f">{x}" in text for x in ("trained parameters", "training time", "CPU time", "step")), picture.name
