"""Marked spans: the tokens of a prompt that a row marks, by markers or by offsets, and what cannot be marked."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from reftune.data import ReftCollator, build_dataset, encode_marked, encode_prompt, tokenize_record
from reftune.errors import DataError

from .conftest import bpe_tokenizer, chat_tokenizer, metaspace_tokenizer, word_tokenizer

TOKENIZERS = {f.__name__: f for f in (bpe_tokenizer, chat_tokenizer, metaspace_tokenizer, word_tokenizer)}
TEXT = "hello the cat sat on the mat"


def marked_text(tokenizer: PreTrainedTokenizerFast, ids: list[int], spans: list[int] | None) -> str:
    return tokenizer.decode([i for i, mark in zip(ids, spans or [], strict=True) if mark]).strip()  # type: ignore[union-attr]


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_markers_and_offsets_mark_the_same_tokens(make: Any) -> None:
    tokenizer = make()
    by_marker = {"prompt": "hello the <<reft>>cat sat<</reft>> on the mat", "completion": " hello"}
    by_offset = {"prompt": TEXT, "completion": " hello", "spans": [[10, 17]]}
    plain = tokenize_record({"prompt": TEXT, "completion": " hello"}, tokenizer)
    for record in (by_marker, by_offset):
        example = tokenize_record(record, tokenizer)
        assert (example.input_ids, example.prompt_length) == (plain.input_ids, plain.prompt_length)
        assert "cat sat" in marked_text(tokenizer, example.input_ids, example.spans)
        ids, spans = encode_marked(record, tokenizer)
        assert ids == encode_prompt(record, tokenizer) == example.input_ids[: example.prompt_length]
        assert spans is not None and spans == (example.spans or [])[: len(ids)]
    assert plain.spans is None and encode_marked(TEXT, tokenizer)[1] is None


def test_words_are_marked_exactly() -> None:
    _, spans = encode_marked("<<reft>>hello<</reft>> the cat <<reft>>sat on<</reft>> the mat", word_tokenizer())
    assert spans == [1, 0, 0, 1, 1, 0, 0]


def test_messages_are_marked_within_the_template() -> None:
    tokenizer = chat_tokenizer()
    turns = [{"role": "user", "content": "the [cat] sat"}, {"role": "assistant", "content": "yes"}]
    ids, spans = encode_marked({"messages": turns}, tokenizer, markers=("[", "]"))
    plain = [{"role": "user", "content": "the cat sat"}]
    assert ids == encode_prompt({"messages": plain}, tokenizer)
    assert marked_text(tokenizer, ids, spans) == "cat"


def test_what_is_cut_takes_its_marks_along() -> None:
    tokenizer = chat_tokenizer()
    record = {"prompt": "<<reft>>hello<</reft>> the cat sat on the <<reft>>mat<</reft>>", "completion": " hello"}
    whole = tokenize_record(record, tokenizer)
    cut = tokenize_record(record, tokenizer, max_length=len(whole.input_ids) - 4)
    assert cut.spans is not None and len(cut.spans) == len(cut.input_ids) == len(whole.input_ids) - 4
    assert marked_text(tokenizer, cut.input_ids, cut.spans) == "mat"
    # the token that begins a text stays
    assert cut.input_ids[0] == whole.input_ids[0] == tokenizer.bos_token_id


def test_a_batch_has_the_marks_of_its_rows() -> None:
    tokenizer = word_tokenizer()
    records = [{"prompt": "the <<reft>>cat<</reft>>", "completion": "sat"}, {"prompt": "hello", "completion": "world"}]
    dataset = build_dataset(records, tokenizer)
    for side, wanted in (("right", [[0, 1, 0, 0], [0, 0, 0, 0]]), ("left", [[0, 1, 0, 0], [0, 0, 0, 0]])):
        batch = ReftCollator(tokenizer, padding_side=side)([dataset[i] for i in range(2)])
        assert batch["spans"].tolist() == wanted and batch["spans"].shape == batch["input_ids"].shape
    packed = ReftCollator(tokenizer, packing=True)([dataset[i] for i in range(2)])
    assert packed["spans"].tolist() == [[0, 1, 0, 0, 0, 0, 0]]
    # none where nothing is marked
    assert "spans" not in build_dataset([{"prompt": "the cat", "completion": "sat"}], tokenizer).column_names
    with pytest.raises(DataError, match="some rows of the batch have 'spans'"):
        ReftCollator(tokenizer)([dataset[0], {"input_ids": [3, 4], "prompt_length": 1}])
    with pytest.raises(DataError, match="'spans' must be 2 numbers 0 or 1"):
        ReftCollator(tokenizer)([{"input_ids": [3, 4], "prompt_length": 1, "spans": [1]}])


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"prompt": "the <<reft>>cat"}, "has no end"),
        ({"prompt": "the cat<</reft>>"}, "where no span can end"),
        ({"prompt": "<<reft>>the <<reft>>cat<</reft>>"}, "where no span can begin"),
        ({"prompt": "the cat", "spans": [[0, 99]]}, r"\\[start, end\\] of characters of the prompt \\(0 to 7\\)"),
        ({"prompt": "the cat", "spans": [[4, 7], [0, 3]]}, "in order"),
        ({"prompt": "the cat", "spans": [[1, 1]]}, "valid are"),
        ({"prompt": "the cat", "spans": 3}, "must be a list"),
        ({"prompt": "<<reft>>the<</reft>> cat", "spans": [[0, 1]]}, "leave one of the two out"),
        ({"prompt": "the cat", "completion": "<<reft>>sat<</reft>>"}, "spans are of prompts"),
        ({"messages": [{"role": "user", "content": "a"}], "spans": [[0, 1]]}, "offsets of a 'prompt' that is text"),
    ],
)
def test_what_cannot_be_marked_is_refused(record: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError, match=why.replace("\\\\", "\\")):
        tokenizer = chat_tokenizer()
        if "messages" in record:
            encode_marked(record, tokenizer)
        else:
            tokenize_record({"completion": "sat", **record}, tokenizer)


def test_markers_are_two_texts() -> None:
    with pytest.raises(DataError, match="two texts, none within the other"):
        encode_marked("a", word_tokenizer(), markers=("<", "<<"))
