"""Caches: edited tokens are the same with a cache as without, whatever it is called and whoever filled it."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from torch import Tensor

from reftune import PositionError, ReftConfig
from reftune.tuner import ReftLayer
from reftune.tuner.caches import find_cache, is_cache_name
from tests.models import random_tokens
from tests.tuner.adapters import adapted

RECURRENT = {
    "mamba": lambda: tf.MambaForCausalLM(tf.MambaConfig(**sizes(), num_hidden_layers=3)),
    "mamba2": lambda: tf.Mamba2ForCausalLM(
        tf.Mamba2Config(**sizes(), num_hidden_layers=3, num_heads=8, head_dim=8, n_groups=1, state_size=8)
    ),
    "falcon_mamba": lambda: tf.FalconMambaForCausalLM(tf.FalconMambaConfig(**sizes(), num_hidden_layers=3)),
    "rwkv": lambda: tf.RwkvForCausalLM(
        tf.RwkvConfig(**sizes(), num_hidden_layers=3, attention_hidden_size=32, intermediate_size=64)
    ),
}
GREEDY: dict[str, Any] = {
    "max_new_tokens": 4,
    "min_new_tokens": 4,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
    "eos_token_id": 96,
}


def sizes() -> dict[str, Any]:
    return {"vocab_size": 97, "hidden_size": 32, "pad_token_id": 0, "eos_token_id": 96, "bos_token_id": 1}


def recurrent(kind: str, positions: str) -> Any:
    torch.manual_seed(0)
    config = ReftConfig(r=2, positions=positions, init="random", task_type="CAUSAL_LM")
    return peft.get_peft_model(RECURRENT[kind](), config).eval()


def steps(model: Any, ids: Tensor, **more: Any) -> Tensor:
    """[steps, rows, vocabulary] logits of each step of a greedy generation."""
    return torch.stack(model.generate(ids, **{**GREEDY, **more}).logits)


@pytest.mark.parametrize("positions", ["f1", "f2+l2", "prompt", "response"])
@pytest.mark.parametrize("kind", [kind for kind in RECURRENT if kind != "rwkv"])
def test_recurrent_models_generate_with_their_cache_as_without(kind: str, positions: str) -> None:
    model = recurrent(kind, positions)
    ids = random_tokens(2, 6)
    plain = steps(model, ids, use_cache=False)
    torch.testing.assert_close(steps(model, ids, use_cache=True), plain, atol=1e-4, rtol=1e-4)
    with model.disable_adapter():
        assert not torch.allclose(steps(model, ids, use_cache=False), plain, atol=1e-3)


def test_rwkv_edits_nothing_of_what_it_generates() -> None:
    """Its own steps differ with and without a state, so the tokens that are edited are looked at."""
    model, ids = recurrent("rwkv", "l1"), random_tokens(2, 6)
    layer = next(module for module in model.modules() if isinstance(module, ReftLayer))
    rests: list[bool] = []
    model.get_base_model().rwkv.blocks[0].register_forward_pre_hook(lambda *_: rests.append(layer.rests))
    model.generate(ids, **GREEDY)
    assert rests == [False, True, True, True]


def test_a_loop_over_a_cache_that_counts_nothing() -> None:
    model, ids = recurrent("mamba", "l1"), random_tokens(1, 6)
    with torch.no_grad():
        known = model(ids, use_cache=True)
        step = model(ids[:, :1], cache_params=known.cache_params).logits[:, -1]
        expected = model(torch.cat([ids, ids[:, :1]], 1), prompt_length=[6]).logits[:, -1]
        torch.testing.assert_close(step, expected, atol=1e-4, rtol=1e-4)
        # RWKV's state is a list of tensors, which says nothing of how many tokens it has seen
        rwkv = recurrent("rwkv", "l1")
        known = rwkv(ids, use_cache=True)
        with pytest.raises(PositionError, match="does not say how many tokens it holds"):
            rwkv(ids[:, :1], state=known.state)


def test_each_cache_of_transformers_is_known_by_its_name() -> None:
    """Arguments that sound like memory are caches, or are in the list of those that are not."""
    harmless = {"use_cache", "use_mems", "output_hidden_states", "encoder_hidden_states", "cross_attention_states"}
    sounds = ("cache", "past", "mems", "state", "memory", "buckets")
    unknown = set()
    for name in tf.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        try:
            forward = getattr(tf, name).forward
        except (ImportError, AttributeError):
            continue
        parameters = set(inspect.signature(forward).parameters) - harmless
        unknown |= {p for p in parameters if any(s in p for s in sounds) and not is_cache_name(p)}
    # of another model's layers, for its drafts; states of an image
    assert unknown <= {"shared_kv_states", "image_hidden_states", "context_hidden_states"}


@pytest.mark.parametrize("name", ["past_key_values", "cache_params", "cache"])
def test_a_cache_is_found_by_each_name_that_transformers_gave_it(name: str) -> None:
    cache = tf.DynamicCache()
    assert find_cache({"use_cache": True, "attention_mask": torch.ones(1, 2), name: cache}) is cache


def prefix_cache(model: Any, ids: Tensor, **told: Any) -> tf.DynamicCache:
    cache = tf.DynamicCache()
    with torch.no_grad():
        model(ids, past_key_values=cache, **told)
    return cache


@pytest.mark.parametrize("positions", ["l1", "f2+l2", "f7+l7", "response"])
def test_a_cache_that_was_filled_for_a_shorter_prompt_is_refused(positions: str) -> None:
    model, ids = adapted(positions=positions), random_tokens(2, 10)
    cache = prefix_cache(model, ids[:, :6])
    if positions == "response":
        # all of the beginning was taken for prompt, and it is
        torch.testing.assert_close(steps(model, ids, past_key_values=cache), steps(model, ids))
        return
    with pytest.raises(PositionError, match=r"6 columns that were edited for prompts of 6 tokens.*10 tokens"):
        steps(model, ids, past_key_values=cache)


@pytest.mark.parametrize("positions", ["l1", "l6", "f2+l2", "f7+l7", "prompt", "response", "all"])
def test_a_cache_that_was_filled_with_the_length_of_the_whole_prompt_goes_on(positions: str) -> None:
    model, ids = adapted(positions=positions), random_tokens(2, 10)
    cache = prefix_cache(model, ids[:, :6], prompt_length=[10, 10])
    twice = copy.deepcopy(cache)
    plain = steps(model, ids)
    torch.testing.assert_close(steps(model, ids, past_key_values=cache), plain)
    # the loop of a user: the rest of the prompt in one piece, and token by token, though nothing says so again
    with torch.no_grad():
        alone = copy.deepcopy(twice)
        torch.testing.assert_close(model(ids[:, 6:], past_key_values=twice).logits[:, -1], plain[0])
        for i in range(6, 10):
            last = model(ids[:, i : i + 1], past_key_values=alone).logits[:, -1]
        torch.testing.assert_close(last, plain[0])


def test_positions_at_the_beginning_need_no_length() -> None:
    model, ids = adapted(positions="f2"), random_tokens(2, 10)
    cache = prefix_cache(model, ids[:, :6])
    torch.testing.assert_close(steps(model, ids, past_key_values=cache), steps(model, ids))


@pytest.mark.parametrize("positions", ["l1", "prompt", "response"])
def test_the_cache_of_the_last_turn_is_refused_where_its_answer_is_now_prompt(positions: str) -> None:
    model, ids = adapted(positions=positions), random_tokens(1, 6)
    first = model.generate(ids, **GREEDY)
    turn = torch.cat([first.sequences, random_tokens(1, 3, seed=2)], 1)
    with pytest.raises(PositionError, match="edited for prompts of 6 tokens"):
        model.generate(turn, past_key_values=first.past_key_values, **GREEDY)
    cache = tf.DynamicCache()
    first = model.generate(ids, past_key_values=cache, **GREEDY)
    with pytest.raises(PositionError, match="edited for prompts of 6 tokens"):
        model.generate(turn, past_key_values=cache, **GREEDY)


def test_the_cache_of_the_last_turn_serves_positions_that_stay() -> None:
    model, ids = adapted(positions="f2"), random_tokens(1, 6)
    first = model.generate(ids, **GREEDY)
    turn = torch.cat([first.sequences, random_tokens(1, 3, seed=2)], 1)
    again = model.generate(turn, past_key_values=first.past_key_values, **GREEDY)
    torch.testing.assert_close(torch.stack(again.logits), steps(model, turn))


def test_lengths_that_contradict_the_cache_are_refused_in_a_loop_too() -> None:
    model, ids = adapted(positions="l1"), random_tokens(1, 10)
    cache = prefix_cache(model, ids[:, :6])
    with pytest.raises(PositionError, match="prompts of 6 tokens"), torch.no_grad():
        model(ids[:, 6:], past_key_values=cache, prompt_length=[10])


def test_a_cache_from_elsewhere_is_refused() -> None:
    model, ids = adapted(positions="l1"), random_tokens(1, 10)
    base = copy.deepcopy(model).unload()
    cache = prefix_cache(base, ids[:, :6])
    with pytest.raises(PositionError, match="not known for which prompts it was filled"):
        steps(model, ids, past_key_values=cache)
