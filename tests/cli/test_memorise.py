"""`reftune memorise`: cells from flags, results in the folder, nothing done twice."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command, assert_user_error
from tests.training.text_models import WORDS


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data" / "memorisation" / "alice_in_wonderland.jsonl.gz"
    file.parent.mkdir(parents=True)
    with gzip.open(file, "wt", encoding="utf-8") as opened:
        opened.write(json.dumps({"text": " ".join(WORDS)}) + "\n")
    return tmp_path / "data"


def cells_of(outcome: Any) -> list[tuple[str, int, int]]:
    assert outcome.code == 0, outcome.err
    assert set(outcome.json) == {"output", "files", "cells"}
    return [(cell["kind"], cell["layer"], cell["size"]) for cell in outcome.json["cells"]]


def test_cells_and_files(reftune: Command, base: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "held"
    common = ("memorise", "--model", base, "--output", output, "--epochs", 3, "--codebook-epochs", 2, "--json")
    first = reftune(*common, "--layers", "0", "--lengths", "1,2", "--codebook", "2", "--data-dir", data)
    assert cells_of(first) == [("alice", 0, 1), ("alice", 0, 2), ("codebook", 0, 2)]
    for cell in first.json["cells"]:
        assert 0 <= cell["held"] <= cell["size"] and cell["epochs_run"] <= (2 if cell["kind"] == "codebook" else 3)
        assert (output / cell["adapter"] / "adapter_model.safetensors").is_file()
    assert {Path(file).name for file in first.json["files"]} == {
        "results.json",
        "memorised.md",
        "memorised.svg",
        "memorised.png",
    }
    # more cells into the same folder: what is there stays, and the results tell all
    second = reftune(*common, "--layers", "all", "--lengths", "2", "--text", "alice,random", "--data-dir", data)
    assert cells_of(second) == [("alice", 0, 2), ("alice", 1, 2), ("random", 0, 2), ("random", 1, 2)]
    assert second.json["cells"][0] == first.json["cells"][1]
    results = json.loads((output / "results.json").read_text())
    assert len(results["cells"]) == 3 + 3
    assert len(results["commands"]) == 2 and all(line.startswith("reftune memorise") for line in results["commands"])
    assert results["model"] == str(base) and results["parameters"] == 33


def test_in_the_terminal(reftune: Command, base: Path, tmp_path: Path) -> None:
    outcome = reftune(
        "memorise", "--model", base, "--output", tmp_path / "held", "--text", "random", "--lengths", "1", "--epochs", 2
    )
    assert outcome.code == 0, outcome.err
    assert "random" in outcome.out and "Report: " in outcome.out
    assert "Random tokens, layer 1:" in outcome.err
    assert "not tried" not in (tmp_path / "held" / "memorised.md").read_text()


def test_a_codebook_alone(reftune: Command, base: Path, tmp_path: Path) -> None:
    common = ("memorise", "--model", base, "--output", tmp_path / "held", "--codebook-epochs", 1, "--json")
    assert cells_of(reftune(*common, "--layers", "-1", "--codebook", "2,1")) == [("codebook", 1, 1), ("codebook", 1, 2)]


def test_errors(reftune: Command, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REFTUNE_DATA", raising=False)
    common = ("memorise", "--model", base, "--output", tmp_path / "held")
    assert_user_error(reftune(*common, "--text", "bible"), "bible", "alice, scrambled, random")
    assert_user_error(reftune(*common, "--text", "codebook"), "--codebook")
    assert_user_error(reftune(*common, "--lengths", "16,x"), "--lengths", "16,x")
    assert_user_error(reftune(*common, "--codebook", "0"), "--codebook")
    assert_user_error(reftune(*common), "alice_in_wonderland.jsonl.gz", "--data-dir")
    assert_user_error(reftune(*common, "--data-dir", tmp_path), "alice_in_wonderland.jsonl.gz", str(tmp_path))
    assert_user_error(reftune(*common, "--data-dir", data, "--layers", "9"), "9", "layers 0..1")
    assert_user_error(reftune(*common, "--data-dir", data, "--lengths", "61"), "'alice' has 60 tokens", "61")
    assert not (tmp_path / "held").exists()
