"""A stream of events as a reply, and what becomes of it when the client leaves.

Must not know: what the events say.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.responses import Response

from .errors import api_error

__all__ = ["EventStream", "until_gone"]

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventStream(Response):
    """Server-sent events.  The head is sent with the first of them, so that an error before it has its own status."""

    def __init__(self, chunks: AsyncIterator[dict[str, Any]], *, on_gone: Callable[[], None]) -> None:
        super().__init__()
        self.chunks = chunks
        self.on_gone = on_gone

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        watch = asyncio.create_task(until_gone(receive, self.on_gone))
        begun = False
        try:
            async for chunk in self.chunks:
                if not begun:
                    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                    begun = True
                await send(_part(f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"))
        except Exception as error:  # the stream must be closed, whatever it is
            told = api_error(error)
            if not begun:
                await told.response()(scope, receive, send)
                return
            await send(_part(f"data: {json.dumps(told.body)}\n\n"))
            if told.status == 500:
                raise
        finally:
            watch.cancel()
            self.on_gone()
        if not begun:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send(_part("data: [DONE]\n\n"))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_gone(receive: Any, on_gone: Callable[[], None]) -> None:
    """Wait until the client leaves, and say so."""
    while (await receive())["type"] != "http.disconnect":
        pass
    on_gone()


def _part(text: str) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text.encode(errors="replace"), "more_body": True}
