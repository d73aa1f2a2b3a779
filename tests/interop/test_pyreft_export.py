"""Adapters as checkpoints of pyreft: back through the converter they are the same, and what has no form is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

import reftune
from reftune.errors import ReftuneError
from reftune.interop.pyreft import convert
from reftune.interop.pyreft_export import export
from reftune.models import load_adapter, save_adapter
from tests.interop.base_model import IDS, base_model, save_base
from tests.interop.same import assert_same_logits
from tests.interop.test_pyreft import CASES, POSITIONS

EXPORTED = [case for case in CASES if case.name not in ("loreft-before-last", "loreft-gelu")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_base(tmp_path_factory.mktemp("base")))


@pytest.mark.parametrize("case", EXPORTED, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_checkpoint_of_pyreft_comes_back(case: Path, base: str, tmp_path: Path, monkeypatch) -> None:
    convert(case, tmp_path / "here", base=base, positions=POSITIONS[case.name])
    found = export(str(tmp_path / "here"), tmp_path / "there")
    assert found.positions in (POSITIONS[case.name], *POSITIONS[case.name].split("+"))
    convert(tmp_path / "there", tmp_path / "back", base=base, positions=POSITIONS[case.name])
    assert_same_logits(case, tmp_path / "back", monkeypatch)
    written, given = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "there", case))
    # pyreft cannot load its own two classes without orthonormal rows, so they are written as one that it can
    if "noreft" not in case.name and "nodireft" not in case.name:
        assert written["intervention_types"] == given["intervention_types"]
    assert written["intervention_dimensions"] == given["intervention_dimensions"]
    assert len(written["sorted_keys"]) == len(set(written["sorted_keys"])) == len(given["sorted_keys"])


def saved(base: str, folder: Path, **fields: Any) -> str:
    torch.manual_seed(3)
    model: Any = base_model()
    model.name_or_path = base
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = reftune.ReftConfig(**{"r": 2, "init": "random", "task_type": "CAUSAL_LM", **fields})
        return str(save_adapter(get_peft_model(model, config), folder))


@pytest.mark.parametrize(
    ("fields", "positions"),
    [
        ({"positions": "f1+l2", "layers": [0, 2], "form": "delta"}, "f1+l2"),
        ({"positions": "f1+l2", "layers": [1], "intervention": "direft", "alpha": 3.0, "tie": "group"}, "f1+l2"),
        ({"positions": "l2", "layers": [1], "intervention": "steer"}, "l2"),
        ({"groups": [{"positions": "f2"}, {"positions": "l1", "intervention": "noreft"}], "layers": [0, 1]}, "f2+l1"),
    ],
)
def test_what_pyreft_has_no_class_for_does_the_same(fields, positions, base: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("reftune.models.load_tokenizer", lambda name: None)
    own = saved(base, tmp_path / "own", **fields)
    export(own, tmp_path / "there")
    convert(tmp_path / "there", tmp_path / "back", base=base, positions=positions)
    ids = torch.tensor(IDS)
    logits = []
    for folder in (own, tmp_path / "back"):
        model: Any
        model, _ = load_adapter(folder)
        with torch.no_grad():
            logits.append(model(ids).logits)
    with torch.no_grad():
        assert (logits[0] - base_model()(ids).logits).abs().max() > 0.05, "the case edits nothing"
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"positions": "all"}, "'all'.*pyreft has f<p>"),
        ({"positions": "l2", "tie": "none"}, "tie='none'"),
        ({"positions": "l1", "act_fn": "gelu", "intervention": "direft"}, "act_fn='gelu'.*loses"),
        ({"positions": "l1", "intervention": "red"}, "red has no rank"),
        ({"positions": "l1", "rms": True}, "rms=True"),
        ({"positions": "l1", "component": "attention_head[0]"}, r"attention_head\[0\]"),
        ({"groups": [{"positions": "l1", "layers": [0]}, {"positions": "f1", "layers": [1]}]}, "differ in positions"),
    ],
)
def test_what_a_checkpoint_cannot_say_is_refused(fields, told: str, base: str, tmp_path: Path) -> None:
    own = saved(base, tmp_path / "own", **fields)
    with pytest.raises(ReftuneError, match=f"cannot be a checkpoint of pyreft: .*{told}"):
        export(own, tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ReftuneError, match="not empty"):
        export(own, tmp_path / "full")
