"""Checkpoints that the real pyreft wrote, converted: the same logits, or refused with the reason.

The fixtures are made by scripts/interop_fixtures.py.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from reftune.errors import ReftuneError
from reftune.interop.pyreft import convert, groups_of, read_checkpoint
from tests.interop.base_model import save_base
from tests.interop.same import assert_same_logits

FIXTURES = Path(__file__).parent / "fixtures"
POSITIONS = {
    "loreft-shared": "f2+l2",
    "loreft-unshared": "f3+l3",
    "loreft-before-last": "f2+l2",
    "loreft-path": "l1",
    "loreft-gelu": "f1+l1",
    "noreft": "l2",
    "consreft": "f3",
    "lobireft": "l2",
    "direft": "f1+l1",
    "nodireft": "f1+l2",
}
CASES = sorted(folder for folder in FIXTURES.glob("pyreft-*/*"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_base(tmp_path_factory.mktemp("base")))


@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_logits_are_those_of_pyreft(case: Path, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act_fn = "gelu" if case.name == "loreft-gelu" else None
    before_last = case.name == "loreft-before-last"
    where = {"positions": POSITIONS[case.name], "before_last": before_last}
    convert(case, tmp_path / "adapter", base=base, act_fn=act_fn, **where)
    assert_same_logits(case, tmp_path / "adapter", monkeypatch)


def changed(case: str, to: Path) -> Path:
    folder = to / case
    shutil.copytree(FIXTURES / "pyreft-0.1.0" / case, folder)
    return folder


def key(folder: Path) -> Path:
    return sorted(folder.glob("intkey_*"))[0]


def test_rows_that_are_not_orthonormal_are_refused_with_the_reason(tmp_path: Path) -> None:
    folder = changed("loreft-shared", tmp_path)
    tensors = torch.load(key(folder), weights_only=True)
    for change, reason in (
        (lambda R: R * 1.01, "reload"),
        (lambda R: R * 0, "weight decay"),
        (lambda R: R.bfloat16(), "bfloat16"),
    ):
        torch.save({**tensors, "rotate_layer": change(tensors["rotate_layer"])}, key(folder))
        with pytest.raises(ReftuneError, match=f"(?s)layer 0.*not orthonormal.*{reason}"):
            read_checkpoint(folder)


def test_bad_files_are_one_clear_error_each(tmp_path: Path) -> None:
    folder = changed("loreft-shared", tmp_path)
    file, content = key(folder), key(folder).read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ReftuneError, match="is cut"):
        read_checkpoint(folder)
    file.write_bytes(b"")
    with pytest.raises(ReftuneError, match="is cut"):
        read_checkpoint(folder)
    torch.save({"weight": print}, file)
    with pytest.raises(ReftuneError, match="could run code"):
        read_checkpoint(folder)
    file.write_bytes(pickle.dumps({"weight": print}))
    with pytest.raises(ReftuneError, match="no file of tensors"):
        read_checkpoint(folder)
    file.write_bytes(content)
    tensors = torch.load(file, weights_only=True)
    torch.save({name: t for name, t in tensors.items() if name != "bias"}, file)
    with pytest.raises(ReftuneError, match="'bias', which is missing"):
        read_checkpoint(folder)
    torch.save({**tensors, "gate": tensors["bias"]}, file)
    with pytest.raises(ReftuneError, match="'gate'"):
        read_checkpoint(folder)
    file.unlink()
    with pytest.raises(ReftuneError, match="not whole"):
        read_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ReftuneError, match=r"reft_model\.save"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["intervention_types"].__setitem__(0, "<class 'mine.Secret'>"), "Secret.*known are Loreft"),
        (lambda c: c["intervention_types"].pop(), "no checkpoint"),
        (lambda c: c["representations"][0].__setitem__(1, "head_value_output"), "head_value_output"),
        (lambda c: c["representations"][0].__setitem__(1, "../../x"), r"\.\./\.\./x"),
        (lambda c: c["representations"][0].__setitem__(2, "h"), "only single positions"),
        (lambda c: c.__setitem__("mode", "serial"), "serial"),
    ],
)
def test_what_a_configuration_cannot_say_is_refused_by_name(change, told: str, tmp_path: Path) -> None:
    folder = changed("loreft-shared", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ReftuneError, match=told):
        read_checkpoint(folder)


def test_another_base_is_refused_and_nothing_written(base: str, tmp_path: Path) -> None:
    case = FIXTURES / "pyreft-0.1.0" / "noreft"
    for field, value, told in (
        ("hidden_size", 32, "width 16"),
        ("num_hidden_layers", 1, "layers 1"),
        ("model_type", "phi", "mlp_output"),
    ):
        other = tmp_path / field
        shutil.copytree(base, other)
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**config, field: value, "head_dim": 8}))
        with pytest.raises(ReftuneError, match=told):
            convert(case, tmp_path / "adapter", base=str(other), positions="l2")
    assert not (tmp_path / "adapter").exists()


def test_positions_that_do_not_fit_the_checkpoint_are_refused() -> None:
    unshared = read_checkpoint(FIXTURES / "pyreft-0.1.0" / "loreft-unshared")
    with pytest.raises(ReftuneError, match="two Φ"):
        groups_of(unshared, "l3")
    with pytest.raises(ReftuneError, match="not pyreft's"):
        groups_of(unshared, "all")
    with pytest.raises(ReftuneError, match="no suffix"):
        groups_of(read_checkpoint(FIXTURES / "pyreft-0.1.0" / "loreft-path"), "f1", before_last=True)
    with pytest.raises(ReftuneError, match="no Φ that edits nothing"):
        groups_of(read_checkpoint(FIXTURES / "pyreft-0.1.0" / "consreft"), "l3", before_last=True)
