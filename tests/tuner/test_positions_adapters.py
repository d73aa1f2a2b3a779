"""Several adapters, groups of one adapter and subspaces of the rank in one call: each edits its own tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reftune import ReftConfig
from reftune.positions import PositionSpec, parse_positions
from reftune.tuner.sites import find_root
from tests.models import random_tokens

from .oracle import Spec, adapted, adapted_model, arguments, base_model, blocks, mask_of, oracle_logits, pad

IDS = random_tokens(2, 6)


def with_two(first: dict[str, Any], second: dict[str, Any]) -> Any:
    model = adapted(**first)
    fields = {"r": 2, "init": "random", "intervention": "direft", "task_type": "CAUSAL_LM", **second}
    torch.manual_seed(1)
    model.add_adapter("other", ReftConfig(**fields), autocast_adapter_dtype=False)
    return model.double().eval()


@pytest.mark.parametrize("beams", [1, 2])
def test_adapter_names_with_beams(beams: int) -> None:
    model = with_two({"positions": "f1+l2"}, {"positions": "l1"})
    ids = random_tokens(3, 5)
    answer = {"max_new_tokens": 3, "do_sample": False, "num_beams": beams}
    mixed = model.generate(input_ids=ids, adapter_names=["other", "__base__", "default"], **answer)
    model.set_adapter("other")
    assert torch.equal(mixed[:1], model.generate(input_ids=ids[:1], **answer))
    with model.disable_adapter():
        assert torch.equal(mixed[1:2], model.generate(input_ids=ids[1:2], **answer))
    model.set_adapter("default")
    assert torch.equal(mixed[2:], model.generate(input_ids=ids[2:], **answer))


def test_subspaces_of_each_row() -> None:
    model = adapted(r=4, subspaces=[[0, 1], [2], [3]])
    choices = [[0], [0, 1, 2], []]
    ids = random_tokens(3, 6)
    with torch.no_grad():
        together = model(input_ids=ids, subspaces=choices).logits
        for i, choice in enumerate(choices):
            alone = model(input_ids=ids[i : i + 1], subspaces=[choice]).logits
            assert (together[i] - alone[0]).abs().max() < 1e-9
        assert torch.equal(model(input_ids=ids, subspaces=[[0, 1, 2]]).logits, model(input_ids=ids).logits)
        base = base_model("llama")(input_ids=ids).logits
        assert torch.equal(together[2], base[2])
        assert (together[:2] - base[:2]).abs().amax((1, 2)).min() > 1e-3


@pytest.mark.parametrize("beams", [1, 2])
def test_subspaces_of_each_row_in_generate(beams: int) -> None:
    model = adapted(r=4, subspaces=[[0, 1], [2, 3]])
    ids = random_tokens(2, 6)
    answer = {"max_new_tokens": 3, "do_sample": False, "num_beams": beams}
    together = model.generate(input_ids=ids, subspaces=[[0], [0, 1]], **answer)
    for i, choice in enumerate(([0], [0, 1])):
        assert torch.equal(together[i : i + 1], model.generate(input_ids=ids[i : i + 1], subspaces=[choice], **answer))


@pytest.mark.parametrize("choice", [[[2]], [[-1]], [[0], [0], [0]]])
def test_wrong_subspaces_are_refused(choice: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="subspaces"):
        adapted(subspaces=[[0], [1]])(input_ids=IDS, subspaces=choice)


@pytest.mark.parametrize("lengths", [(1, 5), (2, 9), (3, 4)])
def test_two_adapters_at_disjoint_positions_are_one_of_both(lengths: tuple[int, int]) -> None:
    """f2 and l2 in two adapters are cut on short prompts as f2+l2 in one is."""
    one = adapted_model("llama", Spec("span", 2, 2, "group"))
    two = with_two({"positions": "f2"}, {"positions": "l2"})
    two.base_model.set_adapter(["default", "other"])
    for layer in range(2):
        of_one, of_two = (blocks(m.get_base_model())[layer].hidden_edit for m in (one, two))
        of_two.intervention_0["default"].load_state_dict(of_one.intervention_0["default"].state_dict())
        of_two.intervention_0["other"].load_state_dict(of_one.intervention_1["default"].state_dict())
    tokens = [tuple(random_tokens(1, n, seed=n)[0].tolist()) for n in lengths]
    given = arguments(pad(tokens, "left"), mask_of(tokens, "left"))
    with torch.no_grad():
        logits = two(**given).logits
    for i, row in enumerate(tokens):
        expected = oracle_logits("llama", row, Spec("span", 2, 2, "group").units(len(row), len(row)))
        assert (logits[i, -len(row) :] - expected).abs().max() < 1e-9


def test_two_adapters_in_disjoint_subspaces_add_up() -> None:
    fields = {"positions": "l2", "r": 4, "subspaces": [[0, 1], [2, 3]], "layers": [1]}
    model = with_two({**fields, "active_subspaces": [0]}, {**fields, "active_subspaces": [1]})

    def edit(names: list[str]) -> Tensor:
        model.base_model.set_adapter(names)
        seen: list[Tensor] = []
        handle = blocks(find_root(model))[1].register_forward_hook(lambda m, a, out: seen.append(out))
        with torch.no_grad():
            model(input_ids=IDS)
            with model.disable_adapter():
                model(input_ids=IDS)
        handle.remove()
        return seen[0] - seen[1]

    first, second, both = (edit(names) for names in (["default"], ["other"], ["default", "other"]))
    assert first.abs().max() > 1e-3 and second.abs().max() > 1e-3
    assert (first + second - both).abs().max() < 1e-12


def test_overlapping_adapters_are_refused() -> None:
    model = with_two({"positions": "f2"}, {"positions": "f1+l1"})
    with pytest.warns(UserWarning, match="overlapping positions"):
        model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match="overlapping positions"):
        model(random_tokens(1, 5))


@pytest.mark.parametrize("lengths", [(1, 3), (2, 9)])
def test_groups_of_one_config(lengths: tuple[int, int]) -> None:
    """Prefix and suffix as two groups are what one group untied by `group` is; their Φ are numbered through."""
    one = adapted_model("llama", Spec("span", 3, 2, "group"))
    two = adapted(groups=[{"positions": "f3"}, {"positions": "l2"}])
    two.load_state_dict(one.state_dict())
    tokens = [tuple(random_tokens(1, n, seed=n)[0].tolist()) for n in lengths]
    given = arguments(pad(tokens, "left"), mask_of(tokens, "left"))
    with torch.no_grad():
        assert torch.equal(two(**given).logits, one(**given).logits)


def test_groups_at_different_layers() -> None:
    model = adapted(groups=[{"positions": "f1", "layers": [0]}, {"positions": "l1", "layers": [1]}])
    found = {layer: list(block.hidden_edit.groups["default"]) for layer, block in enumerate(blocks(find_root(model)))}
    assert {layer: [g.positions for g in groups] for layer, groups in found.items()} == {0: ["f1"], 1: ["l1"]}


class Largest(TorchDispatchMode):
    """Remembers the largest tensor of numbers with a point."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(one, Tensor) and one.is_floating_point():
                self.numel = max(self.numel, one.numel())
        return found


@pytest.mark.parametrize("adapter_names", [None, ["default", "__base__"]])
@pytest.mark.parametrize("tie", ["all", "group"])
@pytest.mark.parametrize("text", ["f100000+l3", "f2+l100000", "f100000+l100000"])
def test_a_long_span_edits_the_right_tokens_in_little_room(text: str, tie: str, adapter_names: Any) -> None:
    spec = parse_positions(text)
    # on prompts as short as these, 100 tokens are as many as 100,000
    short = adapted(positions=str(PositionSpec("span", min(spec.first, 100), min(spec.last, 100))), tie=tie)
    long = adapted(positions=text, tie=tie)
    rows = [tuple(random_tokens(1, length)[0].tolist()) for length in (9, 4)]
    given = {**arguments(pad(rows, "left"), mask_of(rows, "left")), "prompt_length": [8, 3]}
    names = {} if adapter_names is None else {"adapter_names": adapter_names}
    with torch.no_grad():
        wanted = short(**given, **names).logits
        with Largest() as seen:
            found = long(**given, **names).logits
        base = long.unload()(**arguments(pad(rows, "left"), mask_of(rows, "left"))).logits
    assert (found - wanted).abs().max() < 1e-9
    assert (found - base).abs().max() > 1e-3
    assert seen.numel < 100_000
