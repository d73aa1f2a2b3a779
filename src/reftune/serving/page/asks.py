"""What the page asks its server, by HTTP, with the routes that all our servers have.

Must not know: Gradio, which server it is.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx

__all__ = ["Question", "Server", "Unanswered", "side_by_side"]

# until the first word of an answer may take its time: requests wait for their turn
TIMEOUT = httpx.Timeout(10.0, read=600.0)


class Unanswered(Exception):
    """The server refused, or was not reached; the message says why."""


@dataclass(frozen=True)
class Question:
    """What base model and adapter are both asked."""

    text: str
    is_chat: bool
    max_tokens: int
    temperature: float
    strength: float = 1.0

    @property
    def prompt(self) -> dict[str, Any]:
        if self.is_chat:
            return {"messages": [{"role": "user", "content": self.text}]}
        return {"prompt": self.text}


class Server:
    """The server that the page is part of; opened for one event of the page."""

    def __init__(self, url: str, *, key: str | None) -> None:
        headers = {} if key is None else {b"authorization": f"Bearer {key}".encode()}
        # it is this very process: no proxy is in between, and its certificate may be for another name
        self.client = httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT, trust_env=False, verify=False)

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.aclose()

    async def base(self) -> str:
        """The base model's name."""
        found = await self._reply("GET", "/v1/models")
        return next(model["id"] for model in found["data"] if not model.get("parent"))

    async def adapters(self) -> dict[str, Any]:
        """What is known of each adapter, by name."""
        return {adapter["id"]: adapter for adapter in (await self._reply("GET", "/v1/reft_adapters"))["data"]}

    async def tokens(self, model: str, question: Question) -> tuple[list[str], list[int], list[int] | None]:
        """The tokens of the prompt that this model is given, their ids, and which of them the prompt marks."""
        found = await self._reply("POST", "/tokenize", {"model": model, "return_token_strs": True, **question.prompt})
        return found["token_strs"], found["tokens"], found.get("spans")

    async def answer(self, model: str, question: Question, *, turned: bool = False) -> AsyncIterator[str]:
        """Pieces of the model's answer, as they are made; `turned`: an adapter, to the question's strength."""
        path = "/v1/chat/completions" if question.is_chat else "/v1/completions"
        body = {"model": model, "stream": True, "max_tokens": question.max_tokens, "temperature": question.temperature}
        if turned and question.strength != 1:
            body["reft_strength"] = question.strength
        try:
            async with self.client.stream("POST", path, json={**body, **question.prompt}) as reply:
                if reply.is_error:
                    raise _refusal(reply.status_code, await reply.aread())
                async for line in reply.aiter_lines():
                    if line.startswith("data: {"):
                        yield _piece(json.loads(line[len("data: ") :]))
        except httpx.HTTPError as error:
            raise Unanswered(f"the server did not answer: {error or type(error).__name__}") from error

    async def _reply(self, method: str, path: str, body: Any = None) -> Any:
        try:
            reply = await self.client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise Unanswered(f"the server did not answer: {error or type(error).__name__}") from error
        if reply.is_error:
            raise _refusal(reply.status_code, reply.content)
        return reply.json()


def _piece(chunk: dict[str, Any]) -> str:
    if "error" in chunk:
        raise Unanswered(chunk["error"]["message"])
    choices = chunk["choices"]
    if not choices:
        return ""
    delta = choices[0].get("delta")
    return (choices[0].get("text") if delta is None else delta.get("content")) or ""


def _refusal(status: int, content: bytes) -> Unanswered:
    try:
        return Unanswered(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return Unanswered(f"the server answered with status {status}")


async def side_by_side(streams: Sequence[AsyncIterator[str]]) -> AsyncGenerator[list[str], None]:
    """The texts so far, whenever one has grown.  Why one has ended too soon is told at its end."""
    news: asyncio.Queue[tuple[int, str | None]] = asyncio.Queue()

    async def follow(i: int, stream: Any) -> None:
        try:
            async with aclosing(stream):
                async for piece in stream:
                    news.put_nowait((i, piece))
        except Unanswered as error:
            news.put_nowait((i, f"[{error}]"))
        finally:
            news.put_nowait((i, None))

    tasks = [asyncio.create_task(follow(i, stream)) for i, stream in enumerate(streams)]
    texts, left = [""] * len(streams), len(streams)
    try:
        while left:
            found = [await news.get()]
            while not news.empty():
                found.append(news.get_nowait())
            for i, piece in found:
                left -= piece is None
                texts[i] += piece or ""
            yield list(texts)
        # an error of ours is not to be passed over
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
