"""What a request says, as the tokens of a prompt, written as the adapter's prompts were in training.

Must not know: HTTP, batches.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data import encode_marked
from ..data.style import STYLE_FILE, STYLES, PromptStyle
from ..errors import DataError, ReftuneError
from ..values import shown

__all__ = ["Prompt", "PromptReader", "PromptTooLong", "context_length", "ranges_within", "style_of", "tell_no_style"]

logger = logging.getLogger("reftune.serving")

NO_LIMIT = 4096


class PromptTooLong(ReftuneError):
    """Prompt and answer together are longer than the model can take."""


class Prompt(NamedTuple):
    """Tokens, and of each 1 where the text marks it, else 0; None if it marks nothing."""

    ids: list[int]
    spans: list[int] | None = None


class PromptReader:
    """Tokens of chats and texts.  From several threads."""

    def __init__(self, tokenizer: Any, *, limit: int, vocabulary: int) -> None:
        self.tokenizer = tokenizer
        self.limit = limit
        self.vocabulary = vocabulary
        # tokenizers complain when two threads set them up at once
        self._lock = threading.Lock()

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        style: PromptStyle | None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Prompt:
        """The prompt of a conversation that the model is to answer.

        Raises:
            ReftuneError: the conversation cannot be put as a prompt of this adapter.
        """
        record = (style or PromptStyle("messages")).conversation(messages)
        if tools:
            record["tools"] = list(tools)
        return self._encode(record)

    def text(self, text: str, spans: Any = None) -> Prompt:
        """The prompt of a text to go on from; `spans` are characters of it that are marked, if no markers are in it.

        Raises:
            ReftuneError: it has no tokens, or no such characters.
        """
        return self._encode(text if spans is None else {"prompt": text, "spans": spans})

    def tokens(self, tokens: Sequence[int], spans: Any = None) -> Prompt:
        """A prompt that is tokens already; `spans` are those of them that are marked.

        Raises:
            ReftuneError: there are none, or some that the model does not have, or no such spans.
        """
        wrong = [token for token in tokens if not 0 <= token < self.vocabulary]
        if wrong or not tokens:
            what = f"the token {wrong[0]} does not exist" if wrong else "the prompt has no tokens"
            raise DataError(f"{what}; valid are 0 to {self.vocabulary - 1}")
        if spans is None:
            return Prompt(list(tokens))
        marks = [0] * len(tokens)
        for start, stop in ranges_within(spans, len(tokens)):
            marks[start:stop] = [1] * (stop - start)
        return Prompt(list(tokens), marks)

    def prompts(self, prompts: Sequence[str | Sequence[int]], spans: Any = None) -> list[Prompt]:
        """The prompts of a request, texts or tokens; `spans` are those of its one prompt.

        Raises:
            ReftuneError: one of them cannot be, or there are spans for several.
        """
        if spans is not None and len(prompts) != 1:
            raise DataError(f"reft_spans are of one prompt, and there are {len(prompts)}; put markers into texts")
        return [self.text(one, spans) if isinstance(one, str) else self.tokens(one, spans) for one in prompts]

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

    def _encode(self, record: dict[str, Any] | str) -> Prompt:
        with self._lock:
            return Prompt(*encode_marked(record, self.tokenizer))


def ranges_within(spans: Any, length: int) -> tuple[tuple[int, int], ...]:
    """Ranges [start, stop) of tokens that a request marks.

    Raises:
        DataError: they are something else, or not within the `length` tokens of the prompt, in order.
    """
    found: list[tuple[int, int]] = []
    for span in spans if isinstance(spans, (list, tuple)) else [spans]:
        is_pair = isinstance(span, (list, tuple)) and len(span) == 2 and all(type(n) is int for n in span)
        if not is_pair or not (found[-1][1] if found else 0) <= span[0] < span[1] <= length:
            raise DataError(
                f"reft_spans has {shown(span, 60)}; valid are [start, end] of tokens of the prompt (0 to {length}), in "
                "order, none within another"
            )
        found.append((span[0], span[1]))
    return tuple(found)


def style_of(folder: Path, *, name: str) -> PromptStyle | None:
    """How the prompts of the adapter in a folder were written; where nothing says, what is done instead is logged.

    Raises:
        DataError: its `reftune.json` cannot be used.
    """
    style = PromptStyle.read(folder)
    if style is None:
        tell_no_style(name)
    return style


def tell_no_style(name: str) -> None:
    """Log what is done with the chats of an adapter of which nothing says how its prompts were written."""
    logger.warning(
        "the adapter %r has no %s, which says how its prompts were written: chats are put by the chat template; to "
        'choose, put the file beside the adapter, such as {"style": "prompt"} (%s)',
        name,
        STYLE_FILE,
        ", ".join(STYLES),
    )


def context_length(config: Any) -> int:
    """Most tokens that a model can take, from its configuration; some have no limit, and get one."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "seq_length"):
        found = getattr(text, name, None)
        if isinstance(found, int) and found > 1:
            return found
    return NO_LIMIT
