"""One answer in the making: its prompt, its adapter, what it has so far, and why it ends.

A row lives through one or more batches: what it has is kept here, so that a batch can be broken off at any token and
gone on with later, the tokens so far as the beginning.  The worker thread alone changes a row, but for `cancel`.

Must not know: HTTP, how batches are made.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .bank import Entry
from .sampling import Choice, RowSampler, SamplingOptions
from .text import Detokeniser, StopHolder

__all__ = ["Finish", "Piece", "Row", "RowRequest"]

Finish = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class RowRequest:
    """What is asked for."""

    prompt: Sequence[int]
    max_tokens: int
    sampling: SamplingOptions
    stops: tuple[str, ...] = ()
    ends: frozenset[int] = frozenset()
    """Tokens that end the answer and are no part of it."""
    continues: bool = False
    """Whether the text goes on from the prompt's, or begins anew, as in a chat."""
    strength: float = 1.0
    """What the adapter's edits are multiplied by."""
    spans: Sequence[int] | None = None
    """Of each token of the prompt 1 where it is marked, else 0; None: none is."""


@dataclass(frozen=True)
class Piece:
    """Some of an answer: text, its tokens, and at the end why it ended."""

    text: str = ""
    choices: tuple[Choice, ...] = ()
    made: int = 0
    """Tokens of the answer up to here, one that ended it included."""
    finish: Finish | None = None
    error: str | None = None


@dataclass(eq=False)
class Row:
    """The state of one answer.  `on_piece` is called in the worker thread."""

    request: RowRequest
    tokenizer: Any
    on_piece: Callable[[Piece], None]
    streams: bool = False
    adapter: Entry | None = None
    finish: Finish | None = None
    tokens: list[int] = field(default_factory=list)
    started: bool = False
    arrived: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.sampler = RowSampler(self.request.sampling, self.request.prompt)
        context = self.request.prompt if self.request.continues else ()
        self.detokeniser = Detokeniser(self.tokenizer, context=context)
        self.holder = StopHolder(self.request.stops)
        self.cancelled = threading.Event()
        self._text: list[str] = []
        self._choices: list[Choice] = []

    @property
    def all_tokens(self) -> list[int]:
        """Prompt and answer as far as it is."""
        return [*self.request.prompt, *self.tokens]

    @property
    def length(self) -> int:
        return len(self.request.prompt) + len(self.tokens)

    @property
    def left(self) -> int:
        """How many tokens may still come."""
        return self.request.max_tokens - len(self.tokens)

    def cancel(self) -> None:
        """Nobody waits for the answer any more.  From any thread; the row ends before its next token."""
        self.cancelled.set()

    def accept(self, choice: Choice) -> None:
        """Take the next token in; ends the row where it ends."""
        self.tokens.append(choice.token)
        if choice.token in self.request.ends:
            self.end("stop")
            return
        self._choices.append(choice)
        self._text.append(self.holder.push(self.detokeniser.push(choice.token)))
        if self.holder.stopped is not None:
            self.end("stop")
        elif self.left <= 0:
            self.end("length")
        elif self.streams and any(self._text):
            self._send()

    def end(self, finish: Finish, *, error: str | None = None) -> None:
        """End the row and send what is left; the first reason counts."""
        if self.finish is not None:
            return
        if self.holder.stopped is None and finish != "cancelled":
            self._text.append(self.holder.push(self.detokeniser.flush()))
            if self.holder.stopped is not None and finish == "length":
                finish = "stop"
            self._text.append(self.holder.flush())
        self.finish = finish
        self._send(finish, error)

    def _send(self, finish: Finish | None = None, error: str | None = None) -> None:
        piece = Piece("".join(self._text), tuple(self._choices), len(self.tokens), finish, error)
        self._text, self._choices = [], []
        self.on_piece(piece)
