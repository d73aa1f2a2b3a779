"""`forward` called past the hooks, as PEFT before 0.21 and sentence-transformers call it: the same as a call."""

from __future__ import annotations

import copy
import inspect
import pickle
from types import MethodType
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from reftune import PositionError
from tests.models import tiny_model
from tests.tuner.adapters import adapted, config, inputs

KINDS = ("llama", "gpt2", "gemma3", "bert", "t5")


def called(model: Any, given: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**given).logits


def directly(model: Any, given: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model.get_base_model().forward(**given).logits


@pytest.mark.parametrize("kind", KINDS)
def test_forward_is_a_call(kind: str) -> None:
    model = adapted(kind, positions="f1+l1")
    given: dict[str, Any] = inputs(kind)
    assert torch.equal(directly(model, given), called(model, given))
    if kind in ("llama", "gpt2", "gemma3"):
        told = {**given, "prompt_length": [3, 3, 2]}
        assert torch.equal(directly(model, told), called(model, told))
        assert not torch.equal(directly(model, told), directly(model, given))
    # what an error leaves open, the next call does not see
    with pytest.raises(Exception, match=r".+"):
        directly(model, {"input_ids": torch.zeros(1, 2, 3, 4)})
    assert torch.equal(directly(model, given), called(model, given))


def test_the_signature_stays_what_trainers_read() -> None:
    model = adapted()
    root = model.get_base_model()
    assert inspect.signature(root.forward) == inspect.signature(MethodType(type(root).forward, root))


def test_copies_and_pickles_call_themselves() -> None:
    model, given = adapted(positions="f1+l1"), inputs()
    expected = directly(model, given)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "intervention_" in name:
                parameter.add_(1)
    for twin in twins:
        assert torch.equal(directly(twin, given), expected)
        assert torch.equal(called(twin, given), expected)


def test_replicas_of_data_parallel_run_themselves() -> None:
    """torch.nn.DataParallel copies a module's attributes, then runs the copy with other parameters."""
    model = adapted(positions="f1+l1").get_base_model()
    stack, given = model.model, inputs()
    replica = stack._replicate_for_data_parallel()
    replica.embed_tokens = copy.deepcopy(stack.embed_tokens)
    with torch.no_grad():
        replica.embed_tokens.weight.mul_(2)
        assert not torch.equal(replica(**given).last_hidden_state, stack(**given).last_hidden_state)


@pytest.mark.parametrize("first", [True, False])
def test_beside_the_hooks_of_accelerate(first: bool) -> None:
    class Counts(ModelHook):
        calls = 0

        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            Counts.calls += 1
            return args, kwargs

    plain = adapted(positions="f1+l1")
    expected = called(plain, inputs())
    if first:
        model = adapted(positions="f1+l1")
        add_hook_to_module(model.get_base_model(), Counts())
    else:
        base = tiny_model("llama", layers=2)
        add_hook_to_module(base, Counts())
        model = get_peft_model(base, config(positions="f1+l1")).eval()
    set_peft_model_state_dict(model, get_peft_model_state_dict(plain))
    assert torch.equal(called(model, inputs()), expected) and Counts.calls == 1
    assert torch.equal(directly(model, inputs()), expected) and Counts.calls == 2
    remove_hook_from_module(model.get_base_model())
    assert torch.equal(called(model, inputs()), expected) and Counts.calls == 2


@pytest.mark.slow
def test_compiled() -> None:
    model, given = adapted(positions="f1+l1"), {**inputs(), "prompt_length": torch.tensor([3, 3, 2])}
    expected = called(model, given)
    compiled = torch.compile(model.get_base_model().forward, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**given).logits, expected)


def test_unloading_leaves_nothing() -> None:
    model = adapted()
    base = model.unload()
    assert not [name for name, module in base.named_modules() if "forward" in module.__dict__]
    model = adapted()
    root = model.get_base_model()
    ours = root.forward
    root.forward = lambda **given: ours(**given)
    base = model.unload()
    assert base(**inputs()).logits is not None


def test_a_forward_in_training_is_checked_like_a_call() -> None:
    model = adapted(positions="l1").train()
    with pytest.raises(PositionError, match="neither labels nor prompt_length"):
        model.get_base_model().forward(**inputs())
