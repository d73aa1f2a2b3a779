"""What is told of an adapter from its files alone is what the loaded adapter says, or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from reftune import INTERVENTIONS, ReftConfig
from reftune.cli import saved as module
from reftune.cli.saved import read_saved
from reftune.cli.show import _edits, _layers
from reftune.models import save_adapter
from tests.models import tiny_model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOLD: tuple[dict[str, Any], ...] = (
    {},
    {"layers": [1]},
    {"layers": "0; 1"},
    {"positions": "f2+l1", "tie": "none"},
    {"positions": "f7+l7", "tie": "group"},
    {"positions": "all"},
    {"component": "attention_output"},
    {"component": "mlp_output"},
    {"component": "attention_head[1]", "r": 2},
    {"groups": [{"layers": [0]}, {"layers": [1], "intervention": "direft", "r": 3}]},
    {"groups": [{"positions": "f2", "tie": "none"}, {"positions": "l2", "intervention": "red"}]},
    {"groups": [{"component": "attention_output", "layers": [0]}, {"component": "mlp_output", "layers": [1]}]},
    *({"intervention": name} for name in INTERVENTIONS),
)
# what needs the model: how many blocks there are, which module is which, what is a parameter
NOT_TOLD: tuple[dict[str, Any], ...] = (
    {"layers": -1},
    {"layers": 0.5},
    {"groups": [{"layers": [0]}, {"layers": [-1]}]},
    {"groups": [{"component": "attention_output"}, {"component": "mlp_output"}]},
    {"intervention": "steer", "vector": "given"},
)


def saved_as(folder: Path, kind: str, options: dict[str, Any]) -> Any:
    model: Any = get_peft_model(tiny_model(kind), ReftConfig(**options))
    save_adapter(model, folder)
    return model


def loaded(model: Any) -> list[Any]:
    return sorted(
        edit._replace(tokens=None) for name, layer in _layers(model) for edit in _edits(name, layer, [0] * 5, None)
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("options", TOLD, ids=str)
def test_the_files_tell_what_the_loaded_adapter_says(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    model = saved_as(tmp_path, kind, options)
    found = read_saved(tmp_path)
    assert found is not None
    assert sorted(found.edits) == loaded(model)


def test_modules_by_name(tmp_path: Path) -> None:
    model = saved_as(tmp_path, "llama", {"target_modules": ["o_proj"]})
    found = read_saved(tmp_path)
    assert found is not None and sorted(found.edits) == loaded(model)


@pytest.mark.parametrize("options", NOT_TOLD, ids=str)
def test_what_needs_the_model_is_not_told(tmp_path: Path, options: dict[str, Any]) -> None:
    saved_as(tmp_path, "llama", options)
    assert read_saved(tmp_path) is None


@pytest.mark.parametrize("layers", ["all", [0, 4], -1])
def test_blocks_of_a_decoder_are_counted_after_those_of_its_encoder(tmp_path: Path, layers: Any) -> None:
    model: Any = get_peft_model(tiny_model("t5"), ReftConfig(layers=layers))
    save_adapter(model, tmp_path)
    assert {edit.layer for edit in loaded(model)} - {0, 1, 2, 3}
    assert read_saved(tmp_path) is None


def test_only_interventions_are_taken_for_such() -> None:
    files = {path.stem for path in (Path(module.__file__).parents[1] / "interventions").glob("*.py")}
    assert files - set(module.HELPERS) == set(INTERVENTIONS)


def changed(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **values}))

    return change


def without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({name: config[name] for name in config if name not in names}))

    return change


def cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-4])


def fewer(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({name: tensor for name, tensor in tensors.items() if ".layers.0." not in name}, folder / WEIGHTS)


def others(folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS) | {"base_model.model.lm_head.weight": torch.ones(2, 2)}, folder / WEIGHTS)


def a_pipe(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


@pytest.mark.parametrize(
    "damage",
    [
        *(changed(**{name: value}) for name, value in (("r", 3), ("r", "4"), ("r", True), ("positions", "F7 + l7"))),
        *(changed(positions=value) for value in ("x3", None, 7, "f99999999")),
        *(changed(intervention=value) for value in ("magic", "base", "../config", None)),
        *(changed(layers=value) for value in ([0], [0, 1, 9], "some", {})),
        *(changed(component=value) for value in ("[bold]", "mlp_output", 3)),
        *(changed(tie=value) for value in ("group", "many", None)),
        *(changed(groups=value) for value in ([{}] * 2, [{}] * 500, ["x"], 3)),
        *(changed(peft_type=value) for value in ("LORA", None)),
        changed(modules_to_save=["lm_head"]),
        without("r"),
        cut,
        fewer,
        others,
        a_pipe,
        lambda folder: (folder / CONFIG).write_text("[" * 100_000),
        lambda folder: (folder / CONFIG).write_text("[]"),
        lambda folder: (folder / WEIGHTS).write_bytes(b"\xff" * 9),
        lambda folder: (folder / WEIGHTS).write_bytes(b""),
        lambda folder: (folder / WEIGHTS).unlink(),
        lambda folder: (folder / CONFIG).unlink(),
    ],
)
def test_what_is_damaged_is_left_to_the_whole_way(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    saved_as(tmp_path, "llama", {"r": 4, "positions": "f7+l7"})
    assert read_saved(tmp_path) is not None
    damage(tmp_path)
    assert read_saved(tmp_path) is None


def test_other_methods_and_no_folders(tmp_path: Path) -> None:
    model: Any = get_peft_model(tiny_model("llama"), LoraConfig(r=2))
    assert read_saved(save_adapter(model, tmp_path)) is None
    assert read_saved("nobody/nothing") is None
