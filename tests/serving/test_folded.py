"""Adapters as affine maps: the same edit as the Φ itself, for every Φ that is one; others are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from reftune import INTERVENTIONS, ReftConfig
from reftune.serving.adapters import AdapterError, read_adapter
from reftune.serving.folded import FoldedAdapter, fold_adapter
from reftune.serving.plans import Part
from tests.models import HIDDEN, tiny_model

LAYERS = 4


def saved(folder: Path, **values: Any) -> tuple[Any, Path]:
    torch.manual_seed(0)
    config = ReftConfig(task_type="CAUSAL_LM", **{"init": "random", "layers": "all", **values})
    model = get_peft_model(tiny_model("llama", layers=LAYERS), config).eval()
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith((".b", ".v", ".a")):
                value.add_(torch.randn_like(value))
    model.save_pretrained(folder)
    return model, folder


def folded(folder: Path, **more: Any) -> FoldedAdapter:
    arguments: dict[str, Any] = {"layers": LAYERS, "width": HIDDEN, "prefix": "model.layers", **more}
    return fold_adapter(read_adapter(folder), **arguments)


@pytest.mark.parametrize("vector", ["learned", "given"])
@pytest.mark.parametrize("kind", sorted(INTERVENTIONS))
def test_every_linear_intervention(tmp_path: Path, kind: str, vector: str) -> None:
    model, folder = saved(tmp_path, intervention=kind, r=3, **({"vector": vector} if kind == "steer" else {}))
    found = folded(folder)
    h = torch.randn(7, HIDDEN)
    for layer, number in found.layers.items():
        phi = model.get_submodule(f"base_model.model.model.layers.{layer}.hidden_edit.intervention_0.default")
        with torch.no_grad():
            wanted = phi(h)
        assert wanted.abs().max() > 0.1
        torch.testing.assert_close(found.at(layer, (Part(number, 0, 0),))(h), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("values", [{"form": "delta"}, {"alpha": 3.0}, {"form": "delta", "alpha": 0.5}])
@pytest.mark.parametrize("kind", ["loreft", "noreft"])
def test_forms_and_scales(tmp_path: Path, kind: str, values: dict[str, Any]) -> None:
    model, folder = saved(tmp_path, intervention=kind, r=3, layers=[1], **values)
    phi = model.get_submodule("base_model.model.model.layers.1.hidden_edit.intervention_0.default")
    h = torch.randn(7, HIDDEN)
    with torch.no_grad():
        wanted = phi(h)
    torch.testing.assert_close(folded(folder).at(1, (Part(0, 0, 0),))(h), wanted, rtol=1e-5, atol=1e-5)


def test_ties_have_a_map_for_each_position(tmp_path: Path) -> None:
    model, folder = saved(tmp_path, positions="f1+l2", tie="none", r=2, layers=[1])
    found = folded(folder)
    assert set(found.maps) == {(1, 0, 0), (1, 0, 1), (1, 0, 2)}
    h = torch.randn(HIDDEN)
    for unit in range(3):
        phi = model.get_submodule(f"base_model.model.model.layers.1.hidden_edit.intervention_{unit}.default")
        with torch.no_grad():
            torch.testing.assert_close(found.at(1, (Part(0, 0, unit),))(h), phi(h), rtol=1e-5, atol=1e-5)


def test_groups_on_some_layers(tmp_path: Path) -> None:
    one = {"positions": "l1", "layers": [0, 2], "r": 2}
    other = {"positions": "f2", "layers": [2, 3], "intervention": "direft", "r": 3}
    _, folder = saved(tmp_path, groups=[one, other])
    found = folded(folder)
    assert set(found.maps) == {(0, 0, 0), (2, 0, 0), (2, 1, 0), (3, 1, 0)}
    assert [found.layers[i] for i in (0, 2, 3)] == [0, 1, 2] and len(found.sites) == 3
    # one edits the first tokens, the other the last
    assert found.rank == 3
    # a part of another site does nothing at this layer
    assert found.at(0, (Part(1, 0, 0),)).A is None


def test_active_subspaces_only(tmp_path: Path) -> None:
    model, folder = saved(tmp_path, r=4, subspaces=[[0, 1], [2, 3]], active_subspaces=[1], layers=[1])
    found = folded(folder).at(1, (Part(0, 0, 0),))
    phi = model.get_submodule("base_model.model.model.layers.1.hidden_edit.intervention_0.default")
    h = torch.randn(HIDDEN)
    with torch.no_grad():
        wanted = phi(h, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    torch.testing.assert_close(found(h), wanted, rtol=1e-5, atol=1e-5)


def test_there_and_back(tmp_path: Path) -> None:
    _, folder = saved(tmp_path, positions="f2+l2", tie="group", intervention="red")
    found = folded(folder)
    again = FoldedAdapter.from_bytes(found.to_bytes())
    assert (again.digest, again.sites, again.layers) == (found.digest, found.sites, found.layers)
    assert set(again.maps) == set(found.maps)
    for key, one in found.maps.items():
        for a, b in zip(one, again.maps[key], strict=True):
            assert (a is None) == (b is None) and (a is None or b is None or torch.equal(a, b))


@pytest.mark.parametrize(
    ("values", "more", "message"),
    [
        ({"act_fn": "relu", "intervention": "direft"}, {}, "act_fn='relu'"),
        ({"component": "mlp_output"}, {}, "mlp_output"),
        ({"rms": True}, {}, "rms=True"),
        ({}, {"width": HIDDEN + 1}, "width"),
        ({}, {"layers": LAYERS - 1}, "layer"),
        ({}, {"prefix": "transformer.h"}, "transformer.h"),
    ],
)
def test_what_cannot_be_served_is_refused(
    tmp_path: Path, values: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    _, folder = saved(tmp_path, **values)
    with pytest.raises(AdapterError, match=message):
        folded(folder, **more)
