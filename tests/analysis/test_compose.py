"""Two abilities in the two halves of one rank: rules, sets, the run, its four cases, and what is told of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from reftune.analysis.compose import (
    CASES,
    SETS,
    ability,
    answer_cases,
    hold_back,
    results_of,
    rule,
    told,
    train_parts,
    write_composed,
)
from reftune.analysis.compose.sets import records_of
from reftune.errors import DataError, ReftuneError
from reftune.models import load_adapter
from tests.training.text_models import save_base

FIRST = [{"instruction": f"w{i} w{i + 1}", "output": "W W W W"} for i in range(8)]
SECOND = [{"instruction": f"w{i} w{i + 2} w{i + 3}", "output": f"w{30 + i}"} for i in range(12)]


def saved(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("name", "prompt", "answer", "score"),
    [
        ("capitals", "", "AB c 1!", 2 / 3),
        ("capitals", "", "1 2", 0),
        ("emoji", "", "🎂 👍🏽 a", 2 / 3),
        ("words:1-3", "", "one two three", 1),
        ("words:1-3", "", "one two three four", 0),
        ("words:2", "", "one", 0),
        ("instruction", "Why?", "", 0),
        ("instruction", "Why?", "Because it is.", 0),
        ("instruction", "Say it in one sentence.", "Because it is.", 1),
        ("instruction", "Why is the sky blue?", "Light of short waves is scattered more than light of long ones.", 1),
        ("instruction", "Why?", "It is blue. " * 6, 0),
        ("instruction", "Why?", "The sky is blue and " * 4, 0),
        ("instruction", "Why is it so?", "Why is it so? I ask myself the same, and nobody can tell.", 0),
        (
            "instruction",
            "Name three animals of the sea.",
            "- a whale, which is large\n- a shark, with teeth\n- a seal",
            1,
        ),
        (
            "instruction",
            "Name four animals of the sea.",
            "- a whale, which is large\n- a shark, with teeth\n- a seal",
            0,
        ),
        ("instruction", "List what I need to bake.", "You need flour and eggs and sugar and milk and also butter.", 0),
    ],
)
def test_rules_look_at_the_text(name: str, prompt: str, answer: str, score: float) -> None:
    assert rule(name).score(prompt, answer) == pytest.approx(score)


def test_languages_are_told_by_the_letters_of_sentences() -> None:
    pytest.importorskip("py3langid")
    german, english = "Das ist ein schöner Tag im Garten.", "This is a beautiful day in the garden."
    of = rule("language:de").score
    assert of("", german) == 1 and of("", english) == 0 and of("", "1 2 3") == 0
    letters = [sum(map(str.isalpha, text)) for text in (german, english)]
    assert of("", f"{german}\n{english}") == pytest.approx(letters[0] / sum(letters))


@pytest.mark.parametrize("name", ["", "german", "language", "language:", "words", "words:3-1", "capitals:2"])
def test_other_rules_are_refused(name: str) -> None:
    with pytest.raises(ReftuneError, match="language:de, words:1-3, capitals"):
        rule(name)


def test_sets_are_made_of_files_of_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REFTUNE_DATA", raising=False)
    with pytest.raises(DataError, match=r"multi30k.*--data-dir"):
        records_of("german")
    rows = {
        "german": {"en": "A man sleeps in a room.", "de": "Ein Mann schläft in einem Zimmer."},
        "capitals": {"instruction": "Ask", "input": "", "output": "a b c d e f g h"},
        "short": {"instruction": "Ask", "input": "this", "output": "Yes."},
        "instructions": {"instruction": "Ask", "input": "", "output": "Well."},
    }
    made = {}
    for name, row in rows.items():
        file = tmp_path / SETS[name][0]
        file.parent.mkdir(exist_ok=True)
        with gzip.open(file, "wt", encoding="utf-8") as opened:
            opened.write(json.dumps(row) + "\n")
        made[name] = records_of(name, data_dir=tmp_path)
    assert made == {
        "german": [{"instruction": "A man sleeps", "output": "in einem Zimmer."}],
        "capitals": [{"instruction": "Ask", "output": "A B C D E F G H"}],
        "short": [{"instruction": "Ask", "input": "this", "output": "Yes."}],
        "instructions": [{"instruction": "Ask", "output": "Well."}],
    }


def test_what_is_held_back_is_not_trained_on(tmp_path: Path) -> None:
    own = ability(saved(tmp_path / "s.jsonl", [*SECOND, *SECOND]), longest=1)
    assert own.name == "s" and own.guessed and own.rule.name == "words:1-3" and own.of_data == 1
    hold_back(own, 4)
    assert len(own.held) == 4 and not {row.key for row in own.held} & {row.key for row in own.rows}
    with pytest.raises(ReftuneError, match="cannot be held back"):
        hold_back(own, 99)
    with pytest.raises(ReftuneError, match="no row has an answer"):
        ability(saved(tmp_path / "f.jsonl", FIRST), longest=1)


@pytest.mark.slow
def test_four_cases_of_one_run(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    first = ability(saved(tmp_path / "first.jsonl", FIRST))
    second = ability(saved(tmp_path / "second.jsonl", SECOND))
    assert first.rule.name == "capitals"
    hold_back(second, 3)
    how = {"model": str(base), "output": tmp_path / "both", "training": {"num_train_epochs": 1, "disable_tqdm": True}}
    with pytest.raises(ReftuneError, match="even number"):
        train_parts(first, second, reft={"r": 3}, **how)
    with pytest.raises(ReftuneError, match="one rule"):
        train_parts(second, second, reft={"r": 4}, **how)
    assert not (tmp_path / "both").exists()
    run = train_parts(first, second, reft={"r": 4, "positions": "l1"}, **how)
    found = answer_cases(run, first, second, [row.asked for row in second.held], max_new_tokens=4)
    assert [case.name for case in found.cases] == list(CASES)
    # each case is what the saved adapter answers with these parts on, and none of them the base's answer
    model: Any
    model, tokenizer = load_adapter(tmp_path / "both")
    config = model.peft_config["default"]
    assert config.subspaces == [[0, 1], [2, 3]]
    from reftune.generation import generate_texts

    prompts = [dict(row.asked) for row in second.held]
    for case in found.cases:
        answers = generate_texts(model, tokenizer, prompts, subspaces=[CASES[case.name]], max_new_tokens=4)
        assert answers == case.answers
    with model.disable_adapter():
        assert generate_texts(model, tokenizer, prompts, max_new_tokens=4) == found.cases[0].answers
    # both parts were trained, each on its own rows
    W = next(p for name, p in model.named_parameters() if name.endswith((".dW", ".W")))
    assert torch.count_nonzero(W[:2]) and torch.count_nonzero(W[2:])
    results = results_of(found)
    assert [case["subspaces"] for case in results["cases"]] == [[], [0], [1], [0, 1]]
    page = write_composed(found, tmp_path / "both").read_text()
    assert told(found) in page and "| both |" in page and "answers of the data" in page
