"""The tabs Train and Adapters, in Chromium, with a server that trains nothing and tells what a job would."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.serving.page.conftest import Visit, answers, say, until
from tests.serving.page.stub import Stub

PASTED = 'hello\tgoodbye\n"two\nlines"\t"say ""so"""\n'
ROWS = [["hello", "goodbye"], ["two\nlines", 'say "so"']]


def rows(page: Any) -> list[list[str]]:
    return page.evaluate(
        """[...document.querySelectorAll("#rows .row")]
           .map(row => [...row.querySelectorAll("textarea")].map(e => e.value))"""
    )


def paste(page: Any, text: str) -> None:
    page.fill("#paste-text", text)
    page.click("#paste-add")


def taught(stub: Stub, job: dict[str, Any], which: str = "training_file") -> list[list[str]]:
    """The turns of the file that the job was given."""
    records = map(json.loads, stub.files[job[which]].decode().splitlines())
    return [[turn["content"] for turn in record["messages"]] for record in records]


def test_from_pasted_examples_to_an_answer(stub: Stub, url: str, visit: Visit) -> None:
    stub.pace = 4
    page = visit(url, "train")
    paste(page, PASTED)
    assert rows(page) == ROWS
    page.get_by_label("Answer of row 1").fill("good morning")
    page.fill("[data-setting=suffix]", "polite")
    page.click("#start")
    page.get_by_role("button", name="Chat with it").click()
    (job,) = stub.jobs.values()
    assert taught(stub, job) == [["hello", "good morning"], ROWS[1]]
    auto = dict.fromkeys(("n_epochs", "batch_size", "learning_rate_multiplier"), "auto")
    method = {"type": "supervised", "supervised": {"hyperparameters": auto}}
    wanted = {"model": "SmolLM2", "training_file": "file-0", "suffix": "polite", "method": method}
    assert job["body"] == wanted
    assert page.input_value("#adapter") == job["fine_tuned_model"]
    say(page, "hello")
    assert answers(page) == ["I am SmolLM2", f"I am {job['fine_tuned_model']}"]


@pytest.mark.slow
def test_all_of_it_by_keys_alone(stub: Stub, url: str, visit: Visit) -> None:
    stub.pace = 4
    page = visit(url)

    def press(*keys: str) -> None:
        for key in keys:
            page.keyboard.press(key)

    def tab_to(name: str) -> None:
        for _ in range(40):
            press("Tab")
            if page.evaluate("(e => e.getAttribute('aria-label') || e.innerText || e.labels?.[0]?.innerText)(document.activeElement)") == name:  # fmt: skip  # noqa: E501
                assert page.evaluate("document.activeElement.matches(':focus-visible')")
                return
        raise AssertionError(f"{name} is not reached")

    tab_to("Chat")
    press("ArrowRight")
    tab_to("Examples to add")
    page.keyboard.type("a;b\n")
    tab_to("Add to the table")
    press("Enter")
    tab_to("Answer of row 1")
    page.keyboard.type("!")
    press("Control+Enter")
    page.keyboard.type("c")
    tab_to("Answer of row 2")
    page.keyboard.type("d")
    tab_to("Train")
    press("Enter")
    page.get_by_role("button", name="Chat with it").wait_for()
    tab_to("Chat with it")
    press("Enter")
    page.keyboard.type("hello")
    press("Enter")
    page.locator(".turn").wait_for()
    page.locator("#stop").wait_for(state="hidden")
    (job,) = stub.jobs.values()
    assert taught(stub, job) == [["a", "b!"], ["c", "d"]]
    assert answers(page)[1] == f"I am {job['fine_tuned_model']}"


@pytest.mark.slow
def test_a_failed_job_says_why_and_a_refused_one_is_none(stub: Stub, url: str, visit: Visit) -> None:
    stub.pace, stub.failure = 4, "line 2 of examples.jsonl: the answer is empty"
    page = visit(url, "train")
    page.click("#start")
    assert page.inner_text("#start-note").startswith("Add some examples first")
    paste(page, "a\tb")
    page.click("#add-row")
    page.get_by_label("Prompt of row 2").fill("c")
    page.click("#start")
    assert page.inner_text("#start-note").startswith("Row 2 has no answer.")
    page.get_by_role("button", name="Delete row 2").click()
    page.locator("#teach-settings summary").click()
    page.select_option("[data-setting=positions]", "own")
    page.fill("[data-setting=own]", "x9")
    page.click("#start")
    page.get_by_text("positions='x9' is not valid").wait_for()
    assert not stub.jobs
    page.click("#reset-settings")
    page.click("#start")
    page.locator("#job .chip.failed").wait_for()
    assert page.inner_text("#job .outcome") == stub.failure
    assert page.locator("#job .curve").get_attribute("aria-label").startswith("Loss in training 3.20 at step 1")
    assert rows(page) == [["a", "b"]]


@pytest.mark.slow
def test_a_job_goes_on_while_the_page_is_away_and_is_cancelled(stub: Stub, url: str, visit: Visit) -> None:
    page = visit(url, "train")
    paste(page, PASTED)
    page.click("#start")
    page.get_by_text(re.compile(r"step [1-9] of 12")).wait_for()
    stub.holds = True
    page.reload()
    page.get_by_text(re.compile(r"step [1-9] of 12")).wait_for()
    assert page.locator("#busy").is_visible() and page.locator("#job .curve").is_visible()
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("button", name="Cancel").click()
    assert next(iter(stub.jobs.values()))["status"] != "cancelled"
    page.get_by_role("button", name="Really cancel?").click()
    page.locator("#job .chip.cancelled").wait_for()
    page.locator("#busy").wait_for(state="hidden")
    assert next(iter(stub.jobs.values()))["status"] == "cancelled"


@pytest.mark.slow
def test_a_reload_loses_nothing_and_a_deletion_can_be_undone(url: str, visit: Visit) -> None:
    page = visit(url, "train")
    paste(page, PASTED + "a\tb\tc\n")
    # what cannot be read is told and stays
    assert "Row 3 has 3 columns" in page.inner_text("#paste-note") and page.input_value("#paste-text") == "a\tb\tc"
    page.get_by_label("Prompt of row 1").fill("hi")
    page.locator("#teach-settings summary").click()
    page.fill("[data-setting=r]", "2")
    page.reload()
    assert rows(page) == [["hi", "goodbye"], ROWS[1]] and page.input_value("#paste-text") == "a\tb\tc"
    assert page.input_value("[data-setting=r]") == "2"
    assert page.inner_text("#teach-settings summary") == "Settings: 1 chosen by you"
    page.click("#clear-rows")
    assert rows(page) == []
    page.get_by_role("button", name="Undo").click()
    assert rows(page) == [["hi", "goodbye"], ROWS[1]]


@pytest.mark.slow
def test_rows_show_their_tokens_and_hold_some_out(stub: Stub, url: str, visit: Visit, tmp_path: Path) -> None:
    stub.pace = 20
    page = visit(url, "train")
    file = tmp_path / "many.csv"
    file.write_text("prompt,answer\n" + "".join(f"question {i},answer {i}\n" for i in range(60)))
    page.set_input_files("#upload", file)
    page.get_by_text("60 rows", exact=True).wait_for()
    assert len(rows(page)) == 50
    page.click("#more-rows")
    assert len(rows(page)) == 60
    page.click("#show-tokens")
    until(page, "document.querySelectorAll('#rows .preview .tokens').length === 60")
    assert page.inner_text("#rows-legend").strip().endswith("l1, layers 1–2")
    spans = page.locator("#rows .preview").first.locator(".tokens > .token")
    assert [span.get_attribute("class") for span in spans.all()] == [
        "token",
        "token mark mark-0",
        "token border",
        "token",
    ]
    # they are of what is written now
    page.get_by_label("Prompt of row 1", exact=True).fill("one two three")
    until(page, "document.querySelectorAll('#rows .preview')[0].querySelectorAll('.token').length === 5")
    page.click("#start")
    page.get_by_role("button", name="Chat with it").wait_for()
    (job,) = stub.jobs.values()
    trained, held = taught(stub, job), taught(stub, job, "validation_file")
    assert len(trained) == 54 and len(held) == 6
    assert sorted(row[1] for row in trained + held) == sorted(f"answer {i}" for i in range(60))


READ = {
    '{"prompt": "a", "completion": "b"}': ([{"prompt": "a", "answer": "b"}], "prompt", []),
    '[{"instruction": "a", "input": "c", "output": "b"}]': (
        [{"prompt": "a", "answer": "b", "rest": {"input": "c"}}],
        "instruction",
        [],
    ),
    '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, '
    '{"role": "assistant", "content": "b"}]}': (
        [{"prompt": "a", "answer": "b", "before": [{"role": "system", "content": "s"}]}],
        "messages",
        [],
    ),
    '{"messages": [{"role": "user", "content": "a"}]}': ([], None, ["Line 1 has no “messages” of at least two turns"]),
    '{"question": "a", "answer": "b"}\n{"q": 1}\n{': (
        [{"prompt": "a", "answer": "b"}],
        "instruction",
        ["Line 2 has the columns q; ", "Line 3 is no JSON"],
    ),
    "completion;prompt\nb;a": ([{"prompt": "a", "answer": "b"}], None, []),
    "a,b\r\n\r\n\"c,\n\"\"d\",e": ([{"prompt": "a", "answer": "b"}, {"prompt": 'c,\n"d', "answer": "e"}], None, []),
    "a\tb\t\t": ([{"prompt": "a", "answer": "b"}], None, []),
    "alone": ([], None, ["Row 1 has one column; two are needed, prompt and answer"]),
    " ": ([], None, ["There is nothing to read."]),
}  # fmt: skip


@pytest.mark.slow
def test_what_is_pasted_is_read_or_told(url: str, visit: Visit) -> None:
    page = visit(url)
    for text, (wanted, form, problems) in READ.items():
        found = page.evaluate("async text => (await import('/ui/rows.js')).parse(text)", text)
        assert (found["rows"], found["form"]) == (wanted, form), text
        assert len(found["problems"]) == len(problems), text
        for told, part in zip(found["problems"], problems, strict=True):
            assert told.startswith(part), text
        # what was read comes back as the record that it was
        if form and not problems:
            back = page.evaluate(
                "async ([row, form]) => (await import('/ui/rows.js')).recordOf(row, form)", [wanted[0], form]
            )
            record = json.loads(text)
            if form != "messages":
                # nothing of it is left out in another form, or it is told
                other = page.evaluate("async row => (await import('/ui/rows.js')).recordOf(row, 'messages')", wanted[0])
                asked = "a\n\nc" if "rest" in wanted[0] else "a"
                assert [turn["content"] for turn in other["messages"]] == [asked, "b"]
            elif wanted[0].get("before"):
                why = page.evaluate("async rows => (await import('/ui/rows.js')).whyNot(rows, 'prompt')", wanted)
                assert why.startswith("Row 1 has more than a prompt and an answer: 1 turn before it.")
            assert back == (record[0] if isinstance(record, list) else record)


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_adapters_are_told_loaded_downloaded_and_deleted(stub: Stub, url: str, visit: Visit) -> None:
    name = "ft:SmolLM2:a/b:0001"
    stub.serve(name, job="ftjob-1", rows=10, train_loss=0.25, valid_loss=0.5, filename="x.jsonl")
    page = visit(url, "adapters")
    card = page.get_by_role("article", name=name)
    card.wait_for()
    told = card.locator("dd").all_inner_texts()
    loss = "training 0.250, held-out rows 0.500"
    assert told[:4] == ["l1, layers 1–2: loreft of rank 4", "51.2 kB, 9,216 parameters", "10 rows from x.jsonl", loss]
    # that of the command line is not the page's to change
    assert page.get_by_role("article", name="emoji").get_by_role("button").all_inner_texts() == ["Chat"]
    card.get_by_role("button", name="Unload").click()
    card.get_by_text("not loaded").wait_for()
    assert card.get_by_role("button").all_inner_texts() == ["Load", "Download", "Delete"]
    with page.expect_download() as download:
        card.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "ft-SmolLM2-a-b-0001.zip"
    assert Path(download.value.path()).read_bytes() == b"PK" + name.encode()
    card.get_by_role("button", name="Load", exact=True).click()
    card.get_by_role("button", name="Unload").wait_for()
    card.get_by_role("button", name="Delete").click()
    assert name in stub.adapters
    card.get_by_role("button", name="Delete its files for good?").click()
    card.wait_for(state="detached")
    assert list(stub.adapters) == ["emoji"]
