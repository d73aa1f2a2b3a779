"""From the worker's pieces to replies: collected into one object, or as events of a stream.

Both are made of the same pieces, so that a stream says what the object says.

Must not know: models, batches.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from .errors import ApiError, timed_out
from .rows import Piece, Row
from .sampling import Choice
from .schemas import ChatChunk, ChatReply, CompletionReply, Reply, Usage

__all__ = ["ChatFormat", "CompletionFormat", "Format", "Ticket", "collect", "events"]

# JSON has no infinity; this is what vLLM sends in its place
LOWEST_LOGPROB = -9999.0


class Ticket:
    """The event loop's end of some rows: their pieces in the order in which they are made."""

    def __init__(self, *, timeout: float) -> None:
        self.rows: list[Row] = []
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()

    def listener(self, index: int) -> Callable[[Piece], None]:
        """What the row of this number calls, in the worker thread."""

        def on_piece(piece: Piece) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._pieces.put_nowait, (index, piece))

        return on_piece

    def cancel(self) -> None:
        """Nobody waits any more."""
        for row in self.rows:
            row.cancel()

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Until all rows have ended.

        Raises:
            ApiError: they have not in time, or one of them failed; the others are cancelled.
        """
        left = len(self.rows)
        try:
            while left:
                try:
                    wait = max(self.deadline - time.monotonic(), 0)
                    index, piece = await asyncio.wait_for(self._pieces.get(), wait)
                except (asyncio.TimeoutError, TimeoutError) as error:
                    raise timed_out(self.timeout) from error
                if piece.finish == "error":
                    raise ApiError(500, f"the answer could not be made: {piece.error}")
                left -= piece.finish is not None
                yield index, piece
        finally:
            self.cancel()


class Format(ABC):
    """How one endpoint writes choices.  `token_text` gives the text of one token."""

    prefix = ""

    def __init__(self, model: str, token_text: Callable[[int], str], *, logprobs: bool) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.model = model
        self.token_text = token_text
        self.wants_logprobs = logprobs

    @abstractmethod
    def reply(self, choices: list[Any], usage: Usage) -> Reply:
        """The whole answer."""

    @abstractmethod
    def chunk(self, choices: list[Any], usage: Usage | None) -> dict[str, Any]:
        """One event."""

    @abstractmethod
    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """A finished answer."""

    @abstractmethod
    def deltas(self, index: int, piece: Piece, *, first: bool) -> Iterator[dict[str, Any]]:
        """A piece of an answer, as choices of events."""


class ChatFormat(Format):
    prefix = "chatcmpl"

    def reply(self, choices: list[Any], usage: Usage) -> Reply:
        return ChatReply(id=self.id, model=self.model, choices=choices, usage=usage)

    def chunk(self, choices: list[Any], usage: Usage | None) -> dict[str, Any]:
        return ChatChunk(id=self.id, model=self.model, choices=choices, usage=usage).model_dump()

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        logprobs = self._logprobs(piece.choices)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": piece.finish}

    def deltas(self, index: int, piece: Piece, *, first: bool) -> Iterator[dict[str, Any]]:
        none = {"index": index, "logprobs": None, "finish_reason": None}
        if first:
            yield {**none, "delta": {"role": "assistant", "content": ""}}
        if piece.text or (self.wants_logprobs and piece.choices):
            yield {**none, "delta": {"content": piece.text}, "logprobs": self._logprobs(piece.choices)}
        if piece.finish is not None:
            yield {**none, "delta": {}, "finish_reason": piece.finish}

    def _logprobs(self, choices: Sequence[Choice]) -> dict[str, Any] | None:
        if not self.wants_logprobs:
            return None
        found = []
        for choice in choices:
            top = [self._entry(token, value) for token, value in choice.top]
            found.append({**self._entry(choice.token, choice.logprob), "top_logprobs": top})
        return {"content": found, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self.token_text(token)
        return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode(errors="replace"))}


class CompletionFormat(Format):
    prefix = "cmpl"

    def __init__(self, model: str, token_text: Callable[[int], str], *, logprobs: bool) -> None:
        super().__init__(model, token_text, logprobs=logprobs)
        self._offsets: dict[int, int] = {}

    def reply(self, choices: list[Any], usage: Usage) -> Reply:
        return CompletionReply(id=self.id, model=self.model, choices=choices, usage=usage)

    def chunk(self, choices: list[Any], usage: Usage | None) -> dict[str, Any]:
        return CompletionReply(id=self.id, model=self.model, choices=choices, usage=usage).model_dump()

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        logprobs = self._logprobs(index, piece.choices)
        return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}

    def deltas(self, index: int, piece: Piece, *, first: bool) -> Iterator[dict[str, Any]]:
        if piece.text or piece.finish is not None or (self.wants_logprobs and piece.choices):
            yield self.choice(index, piece)

    def _logprobs(self, index: int, choices: Sequence[Choice]) -> dict[str, Any] | None:
        if not self.wants_logprobs:
            return None
        texts = [self.token_text(choice.token) for choice in choices]
        offsets, offset = [], self._offsets.get(index, 0)
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        self._offsets[index] = offset
        tops = []
        for text, choice in zip(texts, choices, strict=True):
            top = {self.token_text(token): _finite(value) for token, value in choice.top}
            # as OpenAI and vLLM: the chosen token is there, whether or not it is among the most probable
            tops.append({**top, text: _finite(choice.logprob)})
        values = [_finite(choice.logprob) for choice in choices]
        return {"tokens": texts, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


async def collect(ticket: Ticket, form: Format, *, prompt_tokens: int) -> Reply:
    """The answers of all rows, when they are whole."""
    found: dict[int, list[Piece]] = {}
    async for index, piece in ticket.pieces():
        found.setdefault(index, []).append(piece)
    choices, made = [], 0
    for index in sorted(found):
        pieces = found[index]
        last = pieces[-1]
        joined = tuple(choice for piece in pieces for choice in piece.choices)
        text = "".join(piece.text for piece in pieces)
        choices.append(form.choice(index, Piece(text, joined, last.made, last.finish)))
        made += last.made
    return form.reply(choices, _usage(prompt_tokens, made))


async def events(
    ticket: Ticket, form: Format, *, prompt_tokens: int, include_usage: bool
) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a stream, in order; the last has the usage if it is asked for."""
    made: dict[int, int] = {}
    async for index, piece in ticket.pieces():
        for choice in form.deltas(index, piece, first=index not in made):
            chunk = form.chunk([choice], None)
            if not include_usage:
                del chunk["usage"]
            yield chunk
        made[index] = piece.made
    if include_usage:
        yield form.chunk([], _usage(prompt_tokens, sum(made.values())))


def _usage(prompt: int, made: int) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=made, total_tokens=prompt + made)


def _finite(value: float | None) -> float:
    return LOWEST_LOGPROB if value is None else max(value, LOWEST_LOGPROB)
