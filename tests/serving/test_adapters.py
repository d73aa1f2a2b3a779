"""Saved adapters read at admission: what is found in them, and every way in which they are refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from reftune.serving import AdapterError, check_layers, check_width, read_adapter
from tests.serving.folders import KINDS, adapted, save_adapters, text_model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_adapters(tmp_path_factory.mktemp("adapters"), KINDS)


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["loreft"], tmp_path / "adapter"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_peft_loads(folders: dict[str, Path], kind: str) -> None:
    files = read_adapter(folders[kind])
    model = PeftModel.from_pretrained(text_model(), str(folders[kind]))
    loaded = {name.replace(".default", ""): p for name, p in model.named_parameters() if "intervention_" in name}
    assert loaded.keys() == files.tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in files.tensors.items())
    for (path, child), units in files.sites.items():
        layer = model.base_model.model.get_submodule(f"{path}.{child}")
        assert len(units) == len(layer.units("default"))
        for i, unit in enumerate(units):
            assert unit.keys() == dict(layer.get_submodule(f"intervention_{i}.default").named_parameters()).keys()
    assert files.nbytes == sum(tensor.nbytes for tensor in files.tensors.values()) > 0
    check_width(files, 32)
    check_layers(files, 2)


def test_blocks(folders: dict[str, Path]) -> None:
    files = read_adapter(folders["loreft"])
    assert list(files.blocks) == ["model.layers.0", "model.layers.1"]
    # f1+l2 with tie="group": one for the prefix, one for the suffix
    assert [len(units) for units in files.blocks.values()] == [2, 2]
    assert files.blocks["model.layers.0"][1]["R"].shape == (2, 32)
    assert list(read_adapter(folders["two"]).blocks) == ["model.layers.0", "model.layers.1"]
    head = read_adapter(folders["head"])
    assert not head.blocks and ("model.layers.0.self_attn.o_proj", "head_edit_1") in head.sites
    assert head.widths == {8}


def test_the_digest_is_that_of_the_content(folder: Path, tmp_path: Path) -> None:
    before = read_adapter(folder).digest
    assert len(before) == 64 and int(before, 16)
    assert read_adapter(shutil.copytree(folder, tmp_path / "copy")).digest == before
    (folder / "README.md").write_text("other")
    assert read_adapter(folder).digest == before
    change_config(folder, dropout=0.5)
    other = read_adapter(folder).digest
    assert other != before
    tensors = load_file(folder / WEIGHTS)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, folder / WEIGHTS)
    assert read_adapter(folder).digest not in (before, other)


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **values}))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def pop(part: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if part in name]:
            del tensors[name]

    return change


def first(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = next(iter(tensors))
        tensors[name] = function(tensors[name]).contiguous()

    return change


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def only_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def as_pipe(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "not a folder"),
    "no config": (lambda f: (f / CONFIG).unlink(), CONFIG),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), WEIGHTS),
    "pickle": (only_pickle, "execute code"),
    "a pipe": (as_pipe, "not a regular file"),
    "config cut": (lambda f: cut(f / CONFIG, 20), "cannot be read"),
    "config not UTF-8": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe{"), "cannot be read"),
    "config deep": (lambda f: (f / CONFIG).write_text("[" * 100_000), "cannot be read"),
    "config a list": (lambda f: (f / CONFIG).write_text("[]"), "not a JSON object"),
    "config large": (lambda f: (f / CONFIG).write_text(" " * (1 << 21)), "bytes"),
    "LoRA": (lambda f: change_config(f, peft_type="LORA"), "'LORA'"),
    "unknown field": (lambda f: change_config(f, shift=1), "'shift'"),
    "wrong field": (lambda f: change_config(f, positions="x9"), "positions='x9'"),
    "wrong type": (lambda f: change_config(f, layers={"a": 1}), "layers"),
    "modules_to_save": (lambda f: change_config(f, modules_to_save=["lm_head"]), "modules_to_save"),
    "many positions": (lambda f: change_config(f, positions="f1+l2000000000"), "positions"),
    "many terms": (
        lambda f: change_config(f, groups=[{"positions": "+".join(f"p[{i}:{i + 1}]" for i in range(8))}] * 5),
        "40 terms",
    ),
    "many kinds of tokens": (
        lambda f: change_config(
            f, groups=[{"positions": "+".join(f"id({8 * i + j})" for j in range(8))} for i in range(2)]
        ),
        "17 kinds of tokens",
    ),
    "many orders": (lambda f: change_config(f, positions="p[:2000]-id(1)-id(2)-id(3)-id(4)"), "count 2000 tokens"),
    "texts": (lambda f: change_config(f, positions='text(".")'), "saved with ids"),
    "many interventions": (lambda f: change_config(f, positions="f500", tie="none"), "500"),
    "weights empty": (lambda f: (f / WEIGHTS).write_bytes(b""), "corrupt"),
    "weights cut": (lambda f: cut(f / WEIGHTS, 1000), "corrupt"),
    "weights short": (lambda f: cut(f / WEIGHTS, 20), "corrupt"),
    "weights not safetensors": (lambda f: (f / WEIGHTS).write_bytes(b"\x80\x04" * 100), "corrupt"),
    "no tensors": (lambda f: change_tensors(f, dict.clear), "no tensors"),
    "other tensors": (lambda f: change_tensors(f, lambda t: t.update({"lm_head.weight": torch.ones(3)})), "lm_head"),
    "NaN": (lambda f: change_tensors(f, first(lambda t: t * torch.nan)), "not finite"),
    "whole numbers": (lambda f: change_tensors(f, first(lambda t: t.long())), "'I64'"),
    "a parameter is missing": (lambda f: change_tensors(f, pop("layers.0.hidden_edit.intervention_0.W")), "loreft"),
    "an intervention is missing": (lambda f: change_tensors(f, pop("layers.0.hidden_edit.intervention_0")), "lacks"),
    "other rank": (lambda f: change_config(f, r=1 << 30), "r=1073741824"),
    "other method": (lambda f: change_config(f, intervention="red"), "red"),
    "ragged": (lambda f: change_tensors(f, first(lambda t: t[:, :-1])), "loreft"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(folder: Path, what: str) -> None:
    read_adapter(folder)
    spoil, part = REFUSED[what]
    spoil(folder)
    with pytest.raises(AdapterError) as error:
        read_adapter(folder)
    message = str(error.value)
    assert part in message and str(folder) in message, message


def test_large_files_are_refused_before_they_are_read(folder: Path) -> None:
    size = (folder / WEIGHTS).stat().st_size
    read_adapter(folder, limit=size)
    with pytest.raises(AdapterError, match=f"{size} bytes, more than the {size - 1}"):
        read_adapter(folder, limit=size - 1)
    # a terabyte, of which nothing is on the disk
    os.truncate(folder / WEIGHTS, 1 << 40)
    with pytest.raises(AdapterError, match="1099511627776 bytes"):
        read_adapter(folder)


def test_a_pickle_beside_the_weights_is_not_read(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"not even a pickle")
    read_adapter(folder)


def test_width_and_layers(folders: dict[str, Path], tmp_path: Path) -> None:
    files = read_adapter(folders["loreft"])
    with pytest.raises(AdapterError, match=r"width 32, but those of this model have width 64"):
        check_width(files, 64)
    with pytest.raises(AdapterError, match="no tensors for layers 2"):
        check_layers(files, 3)
    with pytest.raises(AdapterError, match="tensors for layers 1, which"):
        check_layers(files, 1)
    with pytest.raises(AdapterError, match="layer 1 does not exist"):
        check_layers(read_adapter(folders["noreft-response"]), 1)
    # layers counted from the end are others in a deeper model
    adapted({"r": 1, "layers": [-1]}, seed=1).save_pretrained(tmp_path / "last")
    last = read_adapter(tmp_path / "last")
    check_layers(last, 2)
    with pytest.raises(AdapterError, match="no tensors for layers 3"):
        check_layers(last, 4)
