"""Texts from prompts, in batches.

Must not know: the command line, tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .data import encode_prompt
from .errors import DataError
from .models import refuse_encoder

__all__ = ["GREEDY", "generate_batches", "generate_texts"]

# Said in full: a model's own generation configuration may ask for more than the largest logit.
GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
# Arguments of `generate` to which padding on the left would count as tokens of the prompt.
SEE_PADDING = ("max_length", "repetition_penalty", "no_repeat_ngram_size")


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
    Further arguments go to `generate`; greedy decoding unless they say otherwise, whatever the model's own generation
    configuration says.
    """
    texts = [""] * len(prompts)
    done = 0
    for batch in generate_batches(model, tokenizer, prompts, batch_size=batch_size, **generate_arguments):
        for index, text in batch:
            texts[index] = text.strip()
        done += len(batch)
        if progress is not None:
            progress(done)
    return texts


def generate_batches(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[dict[str, Any] | str],
    *,
    batch_size: int = 8,
    **generate_arguments: Any,
) -> Iterator[list[tuple[int, str]]]:
    """As `generate_texts`, each batch as soon as it is done: (index of the prompt, response as it was written).

    A character that the end of the response cuts in two is left out.

    Raises:
        ReftuneError: the model is an encoder, or a prompt cannot be put (`DataError`, with its number).
    """
    refuse_encoder(model.config.name_or_path or type(model).__name__, model.config)
    model.eval()
    generator: Any = model
    encoded = list(_encoded(prompts, tokenizer))
    padding = tokenizer.pad_token_id
    defaults = {**GREEDY, "pad_token_id": padding, "eos_token_id": end_tokens(model, tokenizer)}
    arguments = {**defaults, **generate_arguments}
    sees_padding = any(arguments.get(name) not in (None, GREEDY.get(name)) for name in SEE_PADDING)
    for chosen in batches([len(ids) for ids in encoded], batch_size, equal=sees_padding):
        width = max(len(encoded[i]) for i in chosen)
        ids = torch.tensor([[padding] * (width - len(encoded[i])) + encoded[i] for i in chosen], device=model.device)
        mask = torch.tensor([[0] * (width - len(encoded[i])) + [1] * len(encoded[i]) for i in chosen])
        with torch.inference_mode():
            made = generator.generate(input_ids=ids, attention_mask=mask.to(model.device), **arguments)
        texts = [str(tokenizer.decode(row[width:], skip_special_tokens=True)) for row in made]
        yield [(i, whole_characters(text)) for i, text in zip(chosen, texts, strict=True)]


def whole_characters(text: str) -> str:
    """Without the sign for a broken character that a decoder puts at the end, where the last tokens are half of one."""
    return text.rstrip("\ufffd")


def _encoded(prompts: Sequence[dict[str, Any] | str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    for number, prompt in enumerate(prompts, start=1):
        try:
            yield encode_prompt(prompt, tokenizer)
        except DataError as error:
            raise DataError(f"prompt {number} of {len(prompts)}: {error}") from error


def batches(lengths: Sequence[int], batch_size: int, *, equal: bool) -> Iterator[list[int]]:
    """Indices of prompts of similar length, the longest first; with `equal`, of the same length only."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
        if len(batch) == batch_size or (equal and batch and lengths[batch[0]] != lengths[i]):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """What ends a response: the model's own tokens, and the tokenizer's, with which training ends it."""
    config = getattr(model, "generation_config", None)
    own = getattr(config, "eos_token_id", None)
    found = own if isinstance(own, (list, tuple)) else [own]
    return sorted({int(token) for token in [*found, tokenizer.eos_token_id] if isinstance(token, int)}) or None
