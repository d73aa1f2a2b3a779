"""What a request says, as the tokens of a prompt, written as the adapter's prompts were in training.

Must not know: HTTP, batches.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data import encode_prompt
from ..data.style import STYLE_FILE, PromptStyle
from ..errors import DataError, ReftuneError
from .adapters import AdapterError, read_file

__all__ = ["PromptReader", "PromptTooLong", "context_length", "read_style", "styled"]

NO_LIMIT = 4096
STYLE_LIMIT = 1 << 16


class PromptTooLong(ReftuneError):
    """Prompt and answer together are longer than the model can take."""


class PromptReader:
    """Tokens of chats and texts.  From several threads."""

    def __init__(self, tokenizer: Any, *, limit: int, vocabulary: int) -> None:
        self.tokenizer = tokenizer
        self.limit = limit
        self.vocabulary = vocabulary
        # tokenizers complain when two threads set them up at once
        self._lock = threading.Lock()

    def chat(self, messages: Sequence[Mapping[str, str]], style: PromptStyle | None) -> list[int]:
        """The prompt of a conversation that the model is to answer.

        Raises:
            ReftuneError: the conversation cannot be put as a prompt of this adapter.
        """
        return self._encode(styled(messages, style))

    def text(self, text: str) -> list[int]:
        """The prompt of a text to go on from.

        Raises:
            ReftuneError: it has no tokens.
        """
        return self._encode(text)

    def tokens(self, tokens: Sequence[int]) -> list[int]:
        """A prompt that is tokens already.

        Raises:
            ReftuneError: there are none, or some that the model does not have.
        """
        wrong = [token for token in tokens if not 0 <= token < self.vocabulary]
        if wrong or not tokens:
            what = f"the token {wrong[0]} does not exist" if wrong else "the prompt has no tokens"
            raise DataError(f"{what}; valid are 0 to {self.vocabulary - 1}")
        return list(tokens)

    def room(self, prompt: Sequence[int], wanted: int | None) -> int:
        """How many tokens the answer may have.

        Raises:
            PromptTooLong: the prompt leaves no room, or not what is wanted.
        """
        left = self.limit - len(prompt)
        if left < 1 or (wanted or 0) > left:
            asked = f"{len(prompt)} in the prompt" + (f" and {wanted} in the answer" if wanted else "")
            raise PromptTooLong(
                f"this model's maximum context length is {self.limit} tokens, but the request has {asked}"
            )
        return left if wanted is None else wanted

    def _encode(self, record: dict[str, Any] | str) -> list[int]:
        with self._lock:
            return encode_prompt(record, self.tokenizer)


def context_length(config: Any) -> int:
    """Most tokens that a model can take, from its configuration; some have no limit, and get one."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "seq_length"):
        found = getattr(text, name, None)
        if isinstance(found, int) and found > 1:
            return found
    return NO_LIMIT


def styled(messages: Sequence[Mapping[str, Any]], style: PromptStyle | None) -> dict[str, Any]:
    """The record of a conversation, as the adapter's training had it.

    An adapter of the style `messages` gets the system turn that it was trained with, unless the request has one; one of
    another style has prompts without turns, so that only one question can be put to it.

    Raises:
        DataError: the conversation cannot be put as a prompt of this adapter.
    """
    turns = [dict(message) for message in messages]
    if style is None or style.style == "messages":
        if style is not None and style.system is not None and all(turn["role"] != "system" for turn in turns):
            turns.insert(0, {"role": "system", "content": style.system})
        return {"messages": turns}
    if [turn["role"] for turn in turns] != ["user"]:
        raise DataError(
            f"this adapter's prompts are of the style {style.style!r}, which has no turns: send one message of the "
            "role 'user', or use /v1/completions"
        )
    return style.record(turns[0]["content"])


def read_style(folder: Path) -> PromptStyle | None:
    """How the adapter's prompts were written, None if nothing says.

    Raises:
        AdapterError: the file cannot be read.
    """
    path = folder / STYLE_FILE
    if not os.path.lexists(path):
        return None
    try:
        values = json.loads(read_file(path, STYLE_LIMIT).tobytes())
        style = PromptStyle(**values)
        if not isinstance(style.system, str | None):
            raise DataError(f"system={style.system!r} is not a text")
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"{str(path)!r} cannot be read: {str(error)[:300]}") from error
    return style
