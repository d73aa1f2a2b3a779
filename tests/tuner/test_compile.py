"""An adapted model compiles into one graph, which computes what the model computes."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from reftune import ReftConfig
from tests.models import random_tokens, tiny_model

pytestmark = pytest.mark.slow


def adapted(kind: str, **fields: Any) -> Any:
    # the last block is left alone: what it does to the first tokens reaches no loss
    fields = {"intervention": "direft", **fields}
    config = ReftConfig(r=2, layers=[0, 1], init="random", task_type="CAUSAL_LM", **fields)
    torch.manual_seed(0)
    return peft.get_peft_model(tiny_model(kind, layers=3), config)


def batch(side: str) -> dict[str, Tensor]:
    ids = random_tokens(2, 8)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    labels = ids.clone()
    labels[0, :4] = labels[1, :5] = -100
    if side == "right":
        mask = mask.flip(1)
        labels[1, 6:] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loss_and_gradients(model: Any, call: Any, given: dict[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
    model.zero_grad()
    out = call(**given, use_cache=False)
    out.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    assert all(bool(g.abs().sum() > 0) for g in gradients)
    return out.loss.detach(), out.logits.detach(), gradients


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def check(model: Any, given: dict[str, Tensor]) -> None:
    eager = loss_and_gradients(model, model, given)
    # fullgraph: a graph break is an error
    compiled = loss_and_gradients(model, torch.compile(model, backend="aot_eager", fullgraph=True), given)
    # the same operations, some of them fused: rounding of float32
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("positions", "tie", "side"), [("f2+l2", "group", "left"), ("prompt", "all", "right")])
def test_labels_and_mask(positions: str, tie: str, side: str) -> None:
    check(adapted("llama", positions=positions, tie=tie), batch(side))


@pytest.mark.parametrize("positions", ["f2+l2", "response", "p[1:]+g1-id(5,9)"])
def test_prompt_length(positions: str) -> None:
    check(adapted("llama", positions=positions), {**batch("left"), "prompt_length": torch.tensor([4, 3])})


def test_another_architecture_and_ties() -> None:
    check(adapted("qwen3", positions="f2+l2", tie="none"), batch("left"))


def test_components_and_groups() -> None:
    groups = [
        {"positions": "f2", "component": "attention_output"},
        {"positions": "l1", "component": "mlp_output", "subspaces": [[0], [1]], "active_subspaces": [0, 1]},
    ]
    check(adapted("llama", groups=groups), batch("left"))


def test_orthonormal_rows_of_all_layers_in_one_graph() -> None:
    """Their decomposition is batched before the blocks run, in the graph of the model."""
    check(adapted("llama", positions="f2+l2", intervention="loreft"), batch("right"))


def test_orthonormal_rows_of_two_shapes() -> None:
    groups = [{"positions": "f1", "r": 3}, {"positions": "l1", "component": "attention_head[0]", "layers": [1]}]
    check(adapted("qwen3", groups=groups, intervention="loreft"), batch("left"))
