"""Prompts with answers, as the tokens that adapters are looked at by.

Must not know: what is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ...data import encode_marked, tokenize_record
from ...errors import ReftuneError
from ...generation import GREEDY, end_tokens
from ...models import refuse_encoder
from ...training.prepare import is_causal
from ...tuner import call_state, find_root
from .switches import Text

__all__ = ["check_causal", "text_of"]


def check_causal(model: PeftModel) -> None:
    """Raises `ReftuneError` if this is no causal language model."""
    refuse_encoder(model.config.name_or_path or type(model).__name__, model.config)
    if not is_causal(model):
        raise ReftuneError(
            f"{type(find_root(model)).__name__} is no causal language model, of which alone an adapter can be "
            "explained: there is no next token that its edits make likelier"
        )


def text_of(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: dict[str, Any] | str,
    *,
    answer: str | None = None,
    max_new_tokens: int = 32,
) -> Text:
    """A prompt, a record or a raw text, with an answer; by default the model's own, greedily."""
    if answer is not None:
        example = tokenize_record(_answered(prompt, answer), tokenizer)
        return _text(tokenizer, example.input_ids, example.prompt_length, example.spans)
    start, marks = encode_marked(prompt, tokenizer)
    ids = torch.tensor([start], device=model.device)
    generator: Any = model
    ends = end_tokens(getattr(model, "generation_config", None), tokenizer)
    arguments: dict[str, Any] = {**GREEDY, "pad_token_id": tokenizer.pad_token_id, "eos_token_id": ends}
    # other methods know no such argument
    if marks is not None and call_state(find_root(model)) is not None:
        arguments["spans"] = torch.tensor([marks], device=model.device)
    with torch.inference_mode():
        made = generator.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, **arguments
        )
    return _text(tokenizer, made[0].tolist(), len(start), marks)


def _text(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], prompt_length: int, marks: Sequence[int] | None
) -> Text:
    pieces = tuple(str(tokenizer.decode([token])) for token in ids)
    spans = None if marks is None else (*marks[:prompt_length], *[0] * (len(ids) - prompt_length))
    return Text(tuple(ids), prompt_length, pieces, str(tokenizer.decode(list(ids[prompt_length:]))), spans)


def _answered(prompt: dict[str, Any] | str, answer: str) -> dict[str, Any]:
    """The record of this prompt whose response is this answer."""
    if isinstance(prompt, str):
        return {"prompt": prompt, "completion": answer}
    if "messages" in prompt:
        turns = list(prompt["messages"])
        while turns and turns[-1].get("role") == "assistant":
            turns.pop()
        return {**prompt, "messages": [*turns, {"role": "assistant", "content": answer}]}
    return {**prompt, ("output" if "instruction" in prompt else "completion"): answer}
