"""Texts from prompts, in batches.

Must not know: the command line, tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .data import encode_marked
from .data.kinds import check_all_choose, chosen_parts
from .errors import DataError, ReftuneError
from .models import refuse_encoder
from .tuner import call_state, find_root

__all__ = [
    "GREEDY",
    "TextEngine",
    "encoded_prompts",
    "end_tokens",
    "generate_batches",
    "generate_texts",
    "parts_of_records",
    "whole_characters",
]

# Said in full: a model's own generation configuration may ask for more than the largest logit.
GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
# Arguments of `generate` to which padding on the left would count as tokens of the prompt.
SEE_PADDING = ("max_length", "repetition_penalty", "no_repeat_ngram_size")
# Arguments of `generate` that are about single rows of a batch.
OF_ROWS = ("adapter_names", "strength", "subspaces")
# Prompts at once where nobody says how many; on an accelerator twice as many each time, until its memory is full.
FIRST_BATCH, LARGEST_BATCH = 16, 1024


class TextEngine(Protocol):
    """What answers prompts in place of a model and its tokenizer."""

    def batches(
        self, prompts: Sequence[dict[str, Any] | str], *, batch_size: int | None = None, **generation: Any
    ) -> Iterator[list[tuple[int, str]]]:
        """As `generate_batches`."""
        ...


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
    configuration says.  Of these, `adapter_names` names one for each prompt, and `strength` and `subspaces` are one for
    all or one for each; `subspaces` may also be said by each record, as in training.

    Raises:
        ReftuneError: one of these three has another number of entries than there are prompts.
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
    batch_size: int | None = 8,
    **generate_arguments: Any,
) -> Iterator[list[tuple[int, str]]]:
    """As `generate_texts`, each batch as soon as it is done: (index of the prompt, response as it was written).

    A character that the end of the response cuts in two is left out.  Without `batch_size`, batches grow to what the
    memory of an accelerator holds.

    Raises:
        ReftuneError: the model is an encoder, or a prompt cannot be put (`DataError`, with its number).
    """
    refuse_encoder(model.config.name_or_path or type(model).__name__, model.config)
    model.eval()
    generator: Any = model
    marked = list(encoded_prompts(prompts, tokenizer))
    encoded = [ids for ids, _ in marked]
    # models without ReFT take no such argument; where no prompt is marked, positions that need it say so
    has_reft = call_state(find_root(model)) is not None
    has_spans = has_reft and any(spans is not None for _, spans in marked)
    padding, ends = tokenizer.pad_token_id, end_tokens(getattr(model, "generation_config", None), tokenizer)
    defaults = {**GREEDY, "pad_token_id": padding, "eos_token_id": ends}
    arguments = {**defaults, **generate_arguments}
    given = {name: arguments.pop(name, None) for name in OF_ROWS}
    if has_reft and given["subspaces"] is None:
        given["subspaces"] = parts_of_records(prompts)
    of_prompts = {name: _of_prompts(name, each, len(encoded)) for name, each in given.items() if each is not None}
    sees_padding = any(arguments.get(name) not in (None, GREEDY.get(name)) for name in SEE_PADDING)

    def answer(chosen: list[int]) -> list[tuple[int, str]]:
        width = max(len(encoded[i]) for i in chosen)
        ids = torch.tensor([[padding] * (width - len(encoded[i])) + encoded[i] for i in chosen], device=model.device)
        mask = torch.tensor([[0] * (width - len(encoded[i])) + [1] * len(encoded[i]) for i in chosen])
        # prompts are sorted by length: what is said of each goes with it
        more: dict[str, Any] = {name: [of_each[i] for i in chosen] for name, of_each in of_prompts.items()}
        if has_spans:
            rows = [marked[i][1] or [0] * len(encoded[i]) for i in chosen]
            more["spans"] = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=model.device)
        with torch.inference_mode():
            made = generator.generate(input_ids=ids, attention_mask=mask.to(model.device), **more, **arguments)
        texts = [str(tokenizer.decode(row[width:], skip_special_tokens=True)) for row in made]
        return [(i, whole_characters(text)) for i, text in zip(chosen, texts, strict=True)]

    # the longest first: where memory is short, it shows at once
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]), reverse=True)
    size, grows = batch_size or FIRST_BATCH, batch_size is None and model.device.type != "cpu"
    while order:
        chosen = order[:size]
        if sees_padding:
            chosen = [i for i in chosen if len(encoded[i]) == len(encoded[chosen[0]])]
        try:
            answers = answer(chosen)
        except torch.OutOfMemoryError:
            if batch_size is not None or len(chosen) == 1:
                raise
            size, grows = len(chosen) // 2, False
            torch.cuda.empty_cache()
            continue
        order = order[len(chosen) :]
        if grows and len(chosen) == size:
            size = min(2 * size, LARGEST_BATCH)
        yield answers


def parts_of_records(prompts: Sequence[dict[str, Any] | str]) -> list[list[int]] | None:
    """The parts of the adapter that records name in their column `subspaces`; None if none of them does.

    Raises:
        DataError: some name parts and some do not.
    """
    parts = [None if isinstance(prompt, str) else chosen_parts(prompt) for prompt in prompts]
    if all(each is None for each in parts):
        return None
    check_all_choose(parts, "the prompts")
    return [each or [] for each in parts]


def _of_prompts(name: str, given: Any, count: int) -> list[Any]:
    """An argument of `generate` that is about single rows, for each of so many prompts."""
    one_for_all = name == "strength" and not hasattr(given, "__len__")
    if one_for_all or (name == "subspaces" and len(given) == 1):
        return [given if one_for_all else given[0]] * count
    if isinstance(given, str) or len(given) != count:
        raise ReftuneError(f"{name}={given!r} is not valid; it needs an entry for each of the {count} prompts")
    return list(given)


def whole_characters(text: str) -> str:
    """Without the sign for a broken character that a decoder puts at the end, where the last tokens are half of one."""
    return text.rstrip("\ufffd")


def encoded_prompts(
    prompts: Sequence[dict[str, Any] | str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[int], list[int] | None]]:
    """The tokens of each prompt, and which of them it marks; `DataError`, with its number, where one cannot be put."""
    for number, prompt in enumerate(prompts, start=1):
        try:
            yield encode_marked(prompt, tokenizer)
        except DataError as error:
            raise DataError(f"prompt {number} of {len(prompts)}: {error}") from error


def end_tokens(config: Any, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """What ends a response: the tokens of a model's `generation_config`, and the tokenizer's, as training does."""
    own = getattr(config, "eos_token_id", None)
    found = own if isinstance(own, (list, tuple)) else [own]
    return sorted({int(token) for token in [*found, tokenizer.eos_token_id] if isinstance(token, int)}) or None
