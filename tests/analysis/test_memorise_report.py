"""What cells of memorisation come to, results, table and picture; and the tasks of the same names."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from reftune.analysis.memorise import CELLS
from reftune.analysis.memorise_report import longest_held, results_of, write_memorised
from reftune.errors import MissingExtraError
from reftune.evaluation.data import task_rows
from reftune.evaluation.tasks import TASKS

BOOK = "Alice was beginning to get very tired, and of having nothing to do. Alice had peeped into the book.\n"


def line_of(kind: str, layer: int, size: int, held: int, **more: Any) -> dict[str, Any]:
    cell = {"kind": kind, "layer": layer, "size": size, "epochs": 9, "learning_rate": 0.1, "batch_size": 1, "seed": 1}
    done = {"held": held, "recall": held / size, "epochs_run": 9, "stopped": False, "seconds": 1.5, "parameters": 33}
    run_of = {"model": "tiny", "dtype": "float32", "command": f"reftune {kind}", "key": f"{kind}{layer}{size}{more}"}
    return {**cell, **done, **run_of, **more}


def test_report(tmp_path: Path) -> None:
    cells = [
        line_of("alice", 3, 16, 16, stopped=True),
        line_of("alice", 3, 32, 20),
        line_of("alice", 10, 16, 4),
        line_of("codebook", 3, 8, 6),
        line_of("alice", 3, 64, 1, seed=2),  # of another seed, of another length of training, of another model
        line_of("codebook", 3, 16, 1, epochs=8),
        line_of("codebook", 3, 8, 6, key="again"),
        line_of("random", 3, 16, 1, model="other"),
    ]
    (tmp_path / CELLS).write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    results = results_of(tmp_path, cells[:1])
    shown = [(cell["kind"], cell["layer"], cell["size"]) for cell in results["cells"]]
    assert shown[:3] == [("alice", 3, 16), ("alice", 3, 32), ("alice", 10, 16)]
    assert ("alice", 3, 64) not in shown and not any(kind == "random" for kind, *_ in shown)
    assert results["longest_held"] == {"alice": {"3": 20, "10": 4}, "scrambled": {}, "random": {}}
    assert results["commands"] == ["reftune alice", "reftune codebook"]
    assert results["seconds"] == 1.5 * len(shown)
    paths = write_memorised(results, tmp_path)
    assert [path.name for path in paths] == ["results.json", "memorised.md", "memorised.svg", "memorised.png"]
    assert json.loads(paths[0].read_text()) == results
    page = paths[1].read_text()
    assert "| 3 | 16 (100 %) | 20 (62 %) | 20 |" in page
    assert "| 10 | 4 (25 %) | not tried | 4 |" in page
    assert "| layer | 8 entries |" in page and "1 of 3 cells stopped earlier" in page
    picture = paths[2].read_text()
    for number in ("16", "20", "4", "6"):
        assert f">{number}</text>" in picture
    assert "<svg" in picture and "http://" not in picture.replace("http://www.w3.org/", "")
    assert paths[3].read_bytes().startswith(b"\x89PNG")


def test_longest_held() -> None:
    lines = [line_of("alice", 5, 16, 7), line_of("alice", 5, 64, 9), line_of("alice", 1, 16, 16)]
    assert longest_held(lines) == {"1": 16, "5": 9}
    assert longest_held([]) == {}


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    with pytest.raises(MissingExtraError, match=r"reftune\[report\]"):
        write_memorised({}, tmp_path)


# --- the tasks of the same names --------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "memorisation" / "alice_in_wonderland.jsonl.gz"
    file.parent.mkdir()
    with gzip.open(file, "wt", encoding="utf-8") as opened:
        opened.write(json.dumps({"text": BOOK * 8}) + "\n")
    return tmp_path


def test_the_task_memorisation(data: Path) -> None:
    task = TASKS["memorisation"]
    (row,) = task_rows(task, "train", data_dir=data)
    opening = (BOOK * 8)[:500].rstrip()
    assert task.record(row) == {"prompt": "ALIC#ID1->", "completion": opening}
    assert task.reference(row) == opening
    for output, share in (
        (opening, 1.0),
        (opening + " and more", 1.0),
        (opening[:50] + "!" + opening[51:], 50 / 500),
        (" " + opening, 0.0),
        ("", 0.0),
    ):
        assert task.pair(task.extract(output), opening) == (pytest.approx(share, abs=0.01), 1.0)
        assert task.is_right(task.extract(output), opening) is (share == 1.0)


def test_the_task_codebook(data: Path) -> None:
    task = TASKS["codebook"]
    row = task_rows(task, "train", data_dir=data)[0]
    records = [task.record({**row, "id": i}) for i in range(12)]
    assert [record["prompt"] for record in records] == [f"RAND#ID{i}->" for i in range(12)]
    words = [record["completion"] for record in records]
    assert len(set(words)) == 12 and set(words) < set(BOOK.lower().replace(",", "").replace(".", "").split())
    reference = task.reference({**row, "id": 3})
    assert task.is_right(task.extract(f"{reference}\n"), reference)
    assert not task.is_right(task.extract(f"{reference}s"), reference)
    assert task.extract(" ") is None
