"""Adapters that the real AdapterHub saved, converted: the same logits of prompts, or refused with the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from reftune.errors import ReftuneError
from reftune.interop.adapterhub import convert, read
from tests.interop.base_model import save_base
from tests.interop.same import assert_same_logits

FIXTURES = Path(__file__).parent / "fixtures" / "adapterhub-1.3.0"
FREE = {"noreft", "direft"}


@pytest.mark.parametrize("case", sorted(FIXTURES.iterdir()), ids=lambda path: path.name)
def test_logits_are_those_of_adapterhub(case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = str(save_base(tmp_path / "base"))
    kind = case.name if case.name in FREE else None
    _, notes = convert(case, tmp_path / "adapter", base=base, intervention=kind)
    assert_same_logits(case, tmp_path / "adapter", monkeypatch)
    has_suffix = json.loads((case / "adapter_config.json").read_text())["config"]["suffix_positions"] > 0
    assert any("end of the whole text" in note for note in notes) == has_suffix


def test_what_the_files_do_not_say_is_asked_for() -> None:
    with pytest.raises(ReftuneError, match="does not save which"):
        read(FIXTURES / "direft")
    with pytest.raises(ReftuneError, match="this is a LoReFT"):
        read(FIXTURES / "loreft-tied", intervention="direft")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["config"].__setitem__("architecture", "lora"), "no ReFT adapter"),
        (lambda c: c["config"].__setitem__("non_linearity", "leakyrelu"), "leakyrelu.*known are"),
        (lambda c: c["config"].__setitem__("r", 7), "not of the rank 7"),
        (lambda c: c["config"].__setitem__("tied_weights", False), "has not 2 Φ"),
        (lambda c: c["config"].__setitem__("suffix_positions", "x"), "suffix_positions='x'"),
    ],
)
def test_other_files_are_refused_by_name(change, told: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURES / "loreft-tied", tmp_path / "case"))
    config = json.loads((folder / "adapter_config.json").read_text())
    change(config)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ReftuneError, match=told):
        read(folder)
    (folder / "pytorch_adapter.bin").unlink()
    with pytest.raises(ReftuneError):
        read(folder)


def test_a_head_of_its_own_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURES / "loreft-tied", tmp_path / "case"))
    (folder / "head_config.json").write_text(json.dumps({"config": {"head_type": "causal_lm"}}))
    with pytest.raises(ReftuneError, match="a head of AdapterHub's own"):
        read(folder)


def test_a_checkpoint_of_pyreft_is_sent_to_its_own_command() -> None:
    checkpoint = next(iter(sorted((FIXTURES.parent / "pyreft-0.1.0").iterdir())))
    with pytest.raises(ReftuneError, match=r"looks like a checkpoint of pyreft: reftune convert pyreft"):
        read(checkpoint)
