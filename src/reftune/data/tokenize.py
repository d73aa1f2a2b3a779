"""Text to token ids: where the prompt ends, what is cut, what ends the response.

The invariant of this file: the first `prompt_length` ids of a training row are the ids that `encode_prompt` gives to
generation for the same record (short of what `max_length` cut), so that an edit trained on the last prompt token meets
that very token again.

Must not know: files' formats, padding, positions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reftune.data.kinds import Record, check_all_choose, chosen_parts
from reftune.data.records import RecordSource, load_datasets, read_records
from reftune.data.spans import (
    MARKERS,
    Markers,
    Span,
    check_markers,
    has_marks,
    taken_out,
    with_markers,
    without_markers,
)
from reftune.data.style import PromptStyle
from reftune.data.templates import Rendered, render
from reftune.data.turns import IGNORE, TRAIN_ON, split_record
from reftune.errors import DataError

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

__all__ = ["IGNORE", "Example", "build_dataset", "encode_marked", "encode_prompt", "tokenize_record"]

logger = logging.getLogger("reftune")


@dataclass(frozen=True)
class Example:
    """One training row: prompt and response ids, how many of them are the prompt, how many prompt tokens were cut."""

    input_ids: list[int]
    prompt_length: int
    prompt_cut: int = 0
    spans: list[int] | None = None
    """Of each token 1 where the row marks it, else 0; None where the row marks nothing."""
    subspaces: list[int] | None = None
    """The parts of the rank that the row trains; None where it names none."""

    @property
    def labels(self) -> list[int]:
        """The ids of the response; `IGNORE` on the prompt."""
        return [IGNORE] * self.prompt_length + self.input_ids[self.prompt_length :]


def encode_prompt(record_or_text: Record | str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids to generate from.  The record's response may be absent; a string is raw prompt text."""
    return encode_marked(record_or_text, tokenizer)[0]


def encode_marked(
    record_or_text: Record | str, tokenizer: PreTrainedTokenizerBase, *, markers: Markers = MARKERS
) -> tuple[list[int], list[int] | None]:
    """The ids to generate from, and of each 1 where it lies in a marked span, else 0; None if nothing is marked."""
    check_markers(markers)
    rendered, spans = _rendered(record_or_text, tokenizer, markers, need_response=False)
    encoder = _Encoder.of(tokenizer)
    prompt = encoder.prompt_ids(rendered)
    return prompt, encoder.marks(rendered, prompt, spans)


def tokenize_record(
    record: Record,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    markers: Markers = MARKERS,
) -> Example:
    """Ids of prompt and response; beyond `max_length` the prompt is cut from the left, the response never."""
    check_markers(markers)
    return _tokenize(record, _Encoder.of(tokenizer), max_length, markers)


def build_dataset(
    source: RecordSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    split: str = "train",
    train_on: str = "last",
    markers: Markers = MARKERS,
) -> datasets.Dataset:
    """Columns `input_ids`, `labels`, `prompt_length` of all rows; one log message says how many rows were cut.

    If a row marks spans of its prompt, by `markers` in its text or by character offsets in its column `spans`, there is
    the column `spans`: of each token 1 where it is marked, else 0.  If the rows name parts of the adapter's
    `subspaces`, which they must all do or none, there is the column `subspaces`.

    The last answer of a conversation is trained on; with `train_on="all"` each is, as a row of its own whose prompt is
    all that came before it (`reftune.data.split_record`).

    How the prompts are written (`PromptStyle.of_dataset`) goes with the data set, from which `ReftTrainer` knows it.
    """
    if train_on not in TRAIN_ON:
        raise DataError(f"train_on={train_on!r} is not valid; use one of {', '.join(map(repr, TRAIN_ON))}")
    check_markers(markers)
    datasets = load_datasets()
    rows = read_records(source, split=split)
    encoder = _Encoder.of(tokenizer)

    styles: set[PromptStyle] = set()

    def columns_of(record: Record) -> list[tuple[Any, Any, int, int, Any, Any]]:
        return [row_of(answer) for answer in (split_record(record) if train_on == "all" else [record])]

    def row_of(record: Record) -> tuple[Any, Any, int, int, Any, Any]:
        example = _tokenize(record, encoder, max_length, markers)
        # Arrays of 4 bytes an id: lists of ints take nine times as much, which counts for long data sets.
        ids, labels = (np.array(values, dtype=np.int32) for values in (example.input_ids, example.labels))
        styles.add(PromptStyle.of_record(record))
        spans = None if example.spans is None else np.array(example.spans, dtype=np.int8)
        return ids, labels, example.prompt_length, example.prompt_cut, spans, example.subspaces

    found = [row for of_record in rows.map(columns_of) for row in of_record]
    input_ids, labels, prompt_lengths, cuts, spans, subspaces = zip(*found, strict=True)
    rows_cut = sum(cut > 0 for cut in cuts)
    logger.log(
        logging.WARNING if rows_cut else logging.INFO,
        "%s: %d rows; %d of them cut at the left of the prompt to max_length=%s (%d tokens in all)",
        rows.name,
        len(found),
        rows_cut,
        max_length,
        sum(cuts),
    )
    columns = {"input_ids": list(input_ids), "labels": list(labels), "prompt_length": list(prompt_lengths)}
    if any(marks is not None for marks in spans):
        of_rows = zip(input_ids, spans, strict=True)
        columns["spans"] = [np.zeros(len(ids), dtype=np.int8) if marks is None else marks for ids, marks in of_rows]
    if any(parts is not None for parts in subspaces):
        check_all_choose(subspaces, rows.name)
        columns["subspaces"] = list(subspaces)
    info = datasets.DatasetInfo(description="\n".join(sorted(style.note for style in styles)))
    return datasets.Dataset.from_dict(columns, info=info)


def _tokenize(record: Record, encoder: _Encoder, max_length: int | None, markers: Markers) -> Example:
    rendered, spans = _rendered(record, encoder.tokenizer, markers, need_response=True)
    prompt = encoder.prompt_ids(rendered)
    response = encoder.response_ids(rendered, prompt)
    first, cut = encoder.cut_left(prompt, len(response), max_length)
    marks = encoder.marks(rendered, prompt, spans)
    if marks is not None:
        marks = marks[:first] + marks[first + cut :] + [0] * len(response)
    kept = prompt[:first] + prompt[first + cut :]
    parts = chosen_parts(record)
    if parts == []:
        raise DataError("'subspaces' is [], so that the row would train nothing; name a part, such as [0]")
    return Example(kept + response, len(kept), prompt_cut=cut, spans=marks, subspaces=parts)


def _rendered(
    record: Record | str, tokenizer: PreTrainedTokenizerBase, markers: Markers, *, need_response: bool
) -> tuple[Rendered, list[Span]]:
    """The texts of a record without markers, and the characters of its prompt that they mark.

    Raises:
        DataError: the markers cannot be, or are not in the prompt, or the chat template writes another text with them.
    """
    record = {"prompt": record} if isinstance(record, str) else with_markers(record, markers)
    rendered = render(record, tokenizer, need_response=need_response)
    if rendered.response is not None and has_marks(rendered.response, markers):
        raise DataError("a span is marked in the response; spans are of prompts")
    if not has_marks(rendered.prompt, markers):
        return rendered, []
    prompt, spans = taken_out(rendered.prompt, markers)
    plain = render(without_markers(dict(record), markers), tokenizer, need_response=need_response)
    if plain.prompt != prompt:
        raise DataError(
            "the chat template writes another prompt with the markers in it than without, so which of its characters "
            "are marked is not known: move the markers away from white space at the end of a message"
        )
    return plain, spans


@dataclass(frozen=True)
class _Encoder:
    """A tokenizer, and what had to be found out about it once."""

    tokenizer: PreTrainedTokenizerBase
    start: list[int]
    """What the tokenizer puts before a text of its own accord."""
    openers: frozenset[int]
    """The ids that begin a text: BOS, [CLS]."""
    eos: int | None

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase) -> _Encoder:
        openers = _present(tokenizer.bos_token_id, tokenizer.cls_token_id)
        eos = next(iter(_present(tokenizer.eos_token_id)), None)
        return _Encoder(tokenizer, _start_ids(tokenizer, openers), openers, eos)

    def prompt_ids(self, rendered: Rendered) -> list[int]:
        ids = _encode(rendered.prompt, self.tokenizer)
        if not ids:
            raise DataError(f"the prompt {_excerpt(rendered.prompt)} has no tokens in this tokenizer")
        return self._with_start(ids, rendered.chat)

    def response_ids(self, rendered: Rendered, prompt: list[int]) -> list[int]:
        """Ids of the response with its end, such that `prompt` and they spell the whole text."""
        assert rendered.response is not None
        ids = self._continuation(rendered.prompt, rendered.response, prompt, chat=rendered.chat)
        if not ids:
            raise DataError(f"the response {_excerpt(rendered.response)} has no tokens in this tokenizer")
        if self.eos is None or self._is_ended(ids, chat=rendered.chat):
            return ids
        return [*ids, self.eos]

    def marks(self, rendered: Rendered, prompt: list[int], spans: list[Span]) -> list[int] | None:
        """Of each id of the prompt 1 where it has a character of a span, else 0; None if there is no span.

        Raises:
            DataError: the tokenizer does not say which characters its tokens are.
        """
        if not spans:
            return None
        if not self.tokenizer.is_fast:
            raise DataError(
                f"the tokenizer {type(self.tokenizer).__name__} does not say which characters its tokens are, which "
                "marked spans need; load a fast one (use_fast=True)"
            )
        found = self.tokenizer(rendered.prompt, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        marks = [int(any(max(a, start) < min(b, stop) for start, stop in spans)) for a, b in found["offset_mapping"]]
        if not any(marks):
            raise DataError(f"the marked spans of {_excerpt(rendered.prompt)} have no token")
        return [0] * (len(prompt) - len(marks)) + marks

    def cut_left(self, prompt: list[int], response_length: int, max_length: int | None) -> tuple[int, int]:
        """How many ids of the prompt, behind how many first ones, are cut to leave room for the response.

        What is kept is the end, behind the BOS that there was.
        """
        if max_length is None or len(prompt) + response_length <= max_length:
            return 0, 0
        if self.start and prompt[: len(self.start)] == self.start:
            kept_first = len(self.start)
        else:
            kept_first = int(prompt[0] in self.openers)
        room = max_length - response_length - kept_first
        if room < 1:
            raise DataError(
                f"the response alone ({response_length} tokens with its end) is longer than max_length={max_length} "
                f"allows: at least {kept_first + 1} prompt token(s) must remain"
            )
        return kept_first, len(prompt) - kept_first - room

    def _with_start(self, ids: list[int], chat: bool) -> list[int]:
        """The ids behind what the tokenizer puts first, once.  A chat template has written all its special tokens."""
        if chat or ids[0] in self.openers or ids[: len(self.start)] == self.start:
            return ids
        return self.start + ids

    def _continuation(self, prompt_text: str, response: str, prompt: list[int], *, chat: bool) -> list[int]:
        text = prompt_text + response
        full = self._with_start(_encode(text, self.tokenizer), chat)
        rest = _rest(full, prompt, self.tokenizer)
        if rest:
            return rest
        # A token straddles the boundary: generation cannot begin within it, so the response is encoded on its own.
        spelt = {text, _decode(full, self.tokenizer)}
        candidates = list(_encoded_alone(response, prompt_text, self.tokenizer))
        for candidate in candidates:
            if _decode(prompt + candidate, self.tokenizer) in spelt:
                return candidate
        # A tokenizer that loses text (lower case, unknown words) spells nothing back.
        return candidates[0]

    def _is_ended(self, response: list[int], *, chat: bool) -> bool:
        """Whether the ids end with EOS.

        A chat template may have a mark of its own (`<|im_end|>` and a newline): any special token that only white
        space follows is taken for it.
        """
        if response[-1] == self.eos:
            return True
        if not chat:
            return False
        last = next((index for index in reversed(response) if _decode([index], self.tokenizer).strip()), None)
        no_end = self.openers | _present(self.tokenizer.unk_token_id, self.tokenizer.mask_token_id)
        # all_special_ids does not hold every special token, but decoding skips every one.
        special = last is not None and not _decode([last], self.tokenizer, skip_special_tokens=True)
        return last == self.eos or (special and last not in no_end)


def _start_ids(tokenizer: PreTrainedTokenizerBase, openers: frozenset[int]) -> list[int]:
    """What stands before a text that the tokenizer framed; what stands behind it ([SEP], EOS) is left out.

    Found by trying, as tokenizers have no common attribute that tells.
    """
    bare = _encode("a", tokenizer)
    framed = list(tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"])
    for length in range(len(framed) - len(bare) + 1):
        if bare and framed[length : length + len(bare)] == bare:
            return framed[:length]
    return framed[:1] if openers.intersection(framed[:1]) else []


def _encoded_alone(response: str, prompt: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Ways to encode a response without its prompt.

    Tokenizers of the sentencepiece kind put a space before a text; behind another character they do not, so the later
    ways encode the response behind one and take its ids away again.
    """
    yield _encode(response, tokenizer)
    for anchor in ("\n", ".", "a", prompt[-1]):
        anchor_ids = _encode(anchor, tokenizer)
        rest = _rest(_encode(anchor + response, tokenizer), anchor_ids, tokenizer)
        if rest:
            yield rest


def _rest(ids: list[int], head: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids behind `head`; none where `ids` go another way.

    Behind an unknown token they may: the token can be one word of both texts, its half in the second then lost.
    """
    if ids[: len(head)] != head or (head and head[-1] == tokenizer.unk_token_id):
        return []
    return ids[len(head) :]


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # verbose=False: no warning about model_max_length, cutting is done here.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _decode(ids: list[int], tokenizer: PreTrainedTokenizerBase, *, skip_special_tokens: bool = False) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _present(*ids: object) -> frozenset[int]:
    """Those ids that the tokenizer has; its attributes are typed as if they could be anything."""
    return frozenset(index for index in ids if isinstance(index, int))


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
