"""Texts from prompts, in batches.

Must not know: the command line, tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .data import encode_prompt

__all__ = ["generate_texts"]


@torch.inference_mode()
def generate_texts(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[dict[str, Any] | str],
    *,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
    **generate_arguments: Any,
) -> list[str]:
    """The response to each prompt, in order; a prompt is a record of `reftune.data` or a raw text.

    Batches are made of prompts of similar length, padded on the left.  `progress` gets the number of prompts done.
    Further arguments go to `generate`; greedy decoding unless they say otherwise.
    """
    model.eval()
    generator: Any = model
    encoded = [encode_prompt(prompt, tokenizer) for prompt in prompts]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]), reverse=True)
    arguments = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id, **generate_arguments}
    texts = [""] * len(encoded)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = max(len(encoded[i]) for i in chosen)
        padding = tokenizer.pad_token_id
        ids = torch.tensor([[padding] * (width - len(encoded[i])) + encoded[i] for i in chosen], device=model.device)
        mask = torch.tensor([[0] * (width - len(encoded[i])) + [1] * len(encoded[i]) for i in chosen])
        made = generator.generate(input_ids=ids, attention_mask=mask.to(model.device), **arguments)
        for row, i in enumerate(chosen):
            texts[i] = str(tokenizer.decode(made[row, width:], skip_special_tokens=True)).strip()
        if progress is not None:
            progress(min(start + batch_size, len(order)))
    return texts
