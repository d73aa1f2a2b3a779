"""Tokens to text piece by piece: the same text as at once, whole characters, and no part of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reftune.serving.embedded.text import Detokeniser, StopHolder
from tests.data.conftest import bpe_tokenizer, chat_tokenizer, metaspace_tokenizer
from tests.training.text_models import word_tokenizer

TOKENIZERS = {
    "bytes": bpe_tokenizer(),
    "chat": chat_tokenizer(),
    "metaspace": metaspace_tokenizer(),
    "words": word_tokenizer(),
}
TEXTS = ("hello world", "Zürich 你好 🍕👩‍👩‍👧 naïve", "a\u0301 \N{REPLACEMENT CHARACTER}x", "  two  spaces\n\n")


def whole(tokenizer: object, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
def test_pieces_are_the_whole_text(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    # Bytes of their own decode together with those that follow: what was a character can become broken afterwards.
    ids = [i for i in range(len(tokenizer)) if not tokenizer.convert_ids_to_tokens(i).startswith("<0x")]
    tokens = data.draw(st.lists(st.sampled_from(ids), max_size=40))
    detokeniser = Detokeniser(tokenizer)
    pieces = [detokeniser.push(token) for token in tokens]
    pieces.append(detokeniser.flush())
    assert "".join(pieces) == whole(tokenizer, tokens)
    assert detokeniser.flush() == ""


@pytest.mark.parametrize("kind", ["bytes", "chat", "metaspace"])
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\N{REPLACEMENT CHARACTER}")))
def test_no_piece_has_half_a_character(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    detokeniser = Detokeniser(tokenizer)
    pieces = [detokeniser.push(token) for token in tokens]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "".join(pieces) + detokeniser.flush() == whole(tokenizer, tokens)


@pytest.mark.parametrize("text", TEXTS)
def test_a_character_of_several_tokens_comes_at_once(text: str) -> None:
    tokenizer = TOKENIZERS["bytes"]
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    detokeniser = Detokeniser(tokenizer)
    assert "".join(detokeniser.push(token) for token in tokens) + detokeniser.flush() == text


def test_a_completion_goes_on_from_its_prompt() -> None:
    tokenizer = TOKENIZERS["metaspace"]
    tokens = tokenizer("hello world", add_special_tokens=False)["input_ids"]
    cut = next(i for i in range(1, len(tokens)) if whole(tokenizer, tokens[:i]) == "hello")
    goes_on, begins = Detokeniser(tokenizer, context=tokens[:cut]), Detokeniser(tokenizer)
    assert "".join(map(goes_on.push, tokens[cut:])) == " world"
    assert "".join(map(begins.push, tokens[cut:])) == "world"


def test_a_prompt_may_end_in_the_midst_of_a_character() -> None:
    tokenizer = TOKENIZERS["bytes"]
    tokens = tokenizer("x🍕y", add_special_tokens=False)["input_ids"]
    assert len(tokens) == 6
    detokeniser = Detokeniser(tokenizer, context=tokens[:3])
    assert "".join(map(detokeniser.push, tokens[3:])) + detokeniser.flush() == "🍕y"


# --- stop strings -----------------------------------------------------------------------------------------------------

ALPHABET = "ab"


def oracle(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Character by character: the first time that the text so far ends with a stop string, the longest such."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(
    pieces=st.lists(st.text(ALPHABET, max_size=5), max_size=12),
    stops=st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=4),
)
def test_stop_strings_end_the_text_however_it_is_cut(pieces: list[str], stops: list[str]) -> None:
    holder = StopHolder(stops)
    shown: list[str] = []
    wanted, stop = oracle("".join(pieces), stops)
    for piece in pieces:
        shown.append(holder.push(piece))
        # what was shown is never taken back
        assert wanted.startswith("".join(shown))
    shown.append(holder.flush())
    assert ("".join(shown), holder.stopped) == (wanted, stop)


@given(text=st.text(ALPHABET, max_size=20), stops=st.lists(st.text(ALPHABET, min_size=1, max_size=4), min_size=1))
def test_no_more_is_held_back_than_can_become_a_stop_string(text: str, stops: list[str]) -> None:
    holder = StopHolder(stops)
    holder.push(text)
    if holder.stopped is None:
        assert holder.held == "" or any(stop.startswith(holder.held) for stop in stops)


def test_nothing_comes_after_the_stop() -> None:
    holder = StopHolder(["END"])
    assert [holder.push(text) for text in ("one E", "N", "D two", "three")] == ["one ", "", "", ""]
    assert holder.flush() == ""
