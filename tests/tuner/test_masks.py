"""Masks: padding is known from what the caller gave, whatever form reaches the blocks."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers as tf
from torch import Tensor

from reftune import PositionError, ReftConfig
from reftune.tuner import find_stacks
from tests.models import random_tokens
from tests.tuner.adapters import adapted

TEXT = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "model_type": "siglip_vision_model",
}


def gemma3() -> Any:
    """What AutoModelForCausalLM gives for Gemma 3 of 4B and more: its text model gets a dict of masks."""
    text = {**TEXT, "model_type": "gemma3_text", "sliding_window": 4}
    config = tf.Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4, image_token_index=96)
    return tf.AutoModelForCausalLM.from_config(config)


def paligemma() -> Any:
    text = {**TEXT, "model_type": "gemma"}
    config = tf.PaliGemmaConfig(text_config=text, vision_config={**VISION, "projection_dim": 32}, image_token_index=96)
    return tf.PaliGemmaForConditionalGeneration(config)


MODELS = {"gemma3": gemma3, "paligemma": paligemma}


def with_adapter(kind: str, positions: str) -> Any:
    torch.manual_seed(0)
    config = ReftConfig(r=2, positions=positions, init="random", task_type="CAUSAL_LM")
    return peft.get_peft_model(MODELS[kind](), config).eval()


def rows() -> tuple[Tensor, Tensor]:
    ids = random_tokens(2, 7).clamp(max=90)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    return ids * mask, mask


def edited(model: Any, ids: Tensor, mask: Tensor, **told: Any) -> list[list[int]]:
    """Columns of each row at which the first block's output is not the base's."""
    outputs: list[Tensor] = []
    block = find_blocks(model)[0]
    handle = block.register_forward_hook(
        lambda *call: outputs.append(call[2][0] if isinstance(call[2], tuple) else call[2])
    )
    model(input_ids=ids, attention_mask=mask, **told)
    with model.disable_adapter():
        model(input_ids=ids, attention_mask=mask, **told)
    handle.remove()
    differs = (outputs[0] != outputs[1]).any(-1)
    return [row.nonzero()[:, 0].tolist() for row in differs]


def find_blocks(model: Any) -> list[Any]:
    return [model.get_submodule(path) for path in find_stacks(model)[0].blocks]


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_multimodal_models_edit_no_padding(kind: str) -> None:
    ids, mask = rows()
    for positions, told, left, right in (
        ("f1", {}, [[0], [3]], [[0], [0]]),
        ("l1", {}, [[6], [6]], [[6], [3]]),
        ("f1+l1", {"prompt_length": [5, 2]}, [[0, 4], [3, 4]], [[0, 4], [0, 1]]),
        ("prompt", {}, [[*range(7)], [3, 4, 5, 6]], [[*range(7)], [0, 1, 2, 3]]),
    ):
        model = with_adapter(kind, positions)
        assert edited(model, ids, mask, **told) == left
        assert edited(model, ids.flip(1), mask.flip(1), **told) == right


@torch.no_grad()
def test_a_model_between_root_and_blocks_may_be_called_by_itself() -> None:
    model = with_adapter("gemma3", "l1")
    ids, mask = rows()
    inner = model.get_base_model().model
    by_root = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(inner(input_ids=ids, attention_mask=mask).last_hidden_state, by_root)
    # past all that is given a mask of two axes, nothing can be known
    text = inner.language_model
    with pytest.raises(PositionError, match="the blocks get a dict"):
        text(input_ids=ids, attention_mask={"full_attention": None, "sliding_attention": None})


@pytest.mark.parametrize("positions", ["f1", "l1", "prompt", "response"])
def test_a_mask_of_four_axes_is_refused(positions: str) -> None:
    model = adapted(positions=positions)
    ids = random_tokens(2, 5)
    mask = torch.zeros(2, 1, 5, 5)
    with pytest.raises(PositionError, match=r"a mask of the shape \[2, 1, 5, 5\].*which tokens are padding"):
        model(ids, attention_mask=mask)


@torch.no_grad()
def test_masks_that_can_be_read() -> None:
    model, ids = adapted(positions="l1"), random_tokens(2, 5)
    one = torch.tensor([[0, 1, 1, 1, 1]])
    expected = model(ids, attention_mask=one.expand(2, -1)).logits
    torch.testing.assert_close(model(ids, attention_mask=one.float().expand(2, -1)).logits, expected)
    everywhere = adapted(positions="all")
    four_axes = torch.zeros(2, 1, 5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), torch.finfo(torch.float32).min)
    torch.testing.assert_close(everywhere(ids, attention_mask=four_axes).logits, everywhere(ids).logits)


def test_an_additive_mask_of_two_axes_is_refused() -> None:
    model, ids = adapted(positions="l1"), random_tokens(2, 5)
    mask = torch.zeros(2, 5)
    mask[1, :2] = torch.finfo(torch.float32).min
    with pytest.raises(PositionError, match="which tokens are padding"):
        model(ids, attention_mask=mask)


def test_rows_that_are_packed_without_position_ids_are_refused() -> None:
    model, ids = adapted(positions="l1"), random_tokens(1, 8)
    ends = torch.tensor([0, 3, 8], dtype=torch.int32)
    with pytest.raises(PositionError, match=r"packed \(cu_seq_lens_q"):
        model(ids, cu_seq_lens_q=ends, cu_seq_lens_k=ends, max_length_q=5, max_length_k=5)


def test_a_decoder_that_starts_with_padding_is_refused() -> None:
    model = adapted("t5", positions="l1")
    ids = random_tokens(2, 5)
    start = random_tokens(2, 4, seed=1)
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    with pytest.raises(PositionError, match="decoder_attention_mask leaves out"):
        model(input_ids=ids, decoder_input_ids=start, decoder_attention_mask=mask)
