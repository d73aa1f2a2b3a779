"""`reftune merge`: adapters in folders become one, and the angles between them are told."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

import reftune
from reftune.data.style import PromptStyle
from reftune.errors import ReftuneError
from reftune.interop.merge import merge, principal_angles
from reftune.models import load_adapter, save_adapter
from tests.interop.base_model import IDS, base_model, save_base


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("merge")
    save_base(root / "base")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = base_model()
        model.name_or_path = str(root / "base")
        config = reftune.ReftConfig(r=2, layers=[0, 2], positions="l2", init="random", task_type="CAUSAL_LM")
        save_adapter(get_peft_model(model, config), root / name)
    return root / "one", root / "two"


def test_merged_adapters_do_what_the_model_does_with_both(adapters, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("reftune.models.load_tokenizer", lambda name: None)
    folder, angles = merge(adapters, tmp_path / "both", weights=[1, 0.5])
    model: Any
    model, _ = load_adapter(folder)
    for name, path in zip(("one", "two"), adapters, strict=True):
        model.load_adapter(path, name)
    model.base_model.add_weighted_adapter(["one", "two"], [1, 0.5], "both")
    with torch.no_grad():
        found = model(torch.tensor(IDS)).logits
        model.set_adapter("both")
        torch.testing.assert_close(found, model(torch.tensor(IDS)).logits, atol=1e-5, rtol=1e-5)
    assert [(a.component, a.layer, len(a.degrees)) for a in angles] == [("block_output", 0, 2), ("block_output", 2, 2)]
    assert (folder / "angles.svg").read_text().startswith("<svg")
    with pytest.raises(ReftuneError, match="holds an adapter already"):
        merge(adapters, folder)
    with pytest.raises(ReftuneError, match=r"cannot be merged: .* both edit 'l2'"):
        merge(adapters, tmp_path / "none", mode="disjoint")
    assert not (tmp_path / "none").exists()


def test_how_prompts_are_put_is_kept_where_both_say_the_same(adapters, tmp_path: Path) -> None:
    styles = [PromptStyle("prompt"), PromptStyle("prompt"), PromptStyle("messages")]
    folders = [Path(shutil.copytree(adapters[i % 2], tmp_path / str(i))) for i in range(3)]
    for folder, style in zip(folders, styles, strict=True):
        style.write(folder)
    same, _ = merge(folders[:2], tmp_path / "same")
    other, _ = merge(folders[1:], tmp_path / "other", weights=[0.5, 0.5])
    assert PromptStyle.read(same) == PromptStyle("prompt") and PromptStyle.read(other) is None


def test_principal_angles_are_those_of_geometry() -> None:
    turn = torch.tensor([math.cos(0.3), math.sin(0.3)], dtype=torch.float64)
    one = torch.eye(4, dtype=torch.float64)[:, :2]
    two = torch.zeros(4, 2, dtype=torch.float64)
    two[0, 0], two[1, 1], two[2, 1] = 1, turn[0], turn[1]
    assert principal_angles(one, two) == pytest.approx([math.degrees(0.3), 0], abs=1e-6)
    assert principal_angles(one, torch.eye(4, dtype=torch.float64)[:, 2:]) == pytest.approx([90, 90])
