"""What every request passes first: the key, the end of the server, the size of its body.

A body is read here, up to the limit, whatever its headers say of its length, and then handed on.  Until it is there
nothing has begun: the end of the server does not wait for it.

Must not know: what requests ask for.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ApiError

__all__ = ["Gate"]

OPEN = ("/health",)
# nginx's number for it: the client left before it was answered
LEFT = 499
ANSWERED_TO_THE_END = ("/health", "/metrics")
# A refused body is still taken in for a while: a client that is cut off while it sends does not read the reason.
SPARE_BYTES = 64 << 20
# At the end of the server, seconds for which a client may take nothing of its answer.
PATIENCE = 5.0

logger = logging.getLogger("reftune.serving")


class _Stuck(Exception):
    """The client takes nothing any more."""


@dataclass
class _Seen:
    """What came of a request."""

    status: int = 500
    ended: bool = False
    left: bool = False


class Gate:
    """ASGI middleware; `in_flight` and `draining` are for the server's end."""

    def __init__(
        self,
        app: Any,
        *,
        api_key: str | None,
        max_body_bytes: int,
        body_timeout: float,
        on_done: Callable[[str, int, float], None],
        page: str | None = None,
        larger: Mapping[str, int] | None = None,
    ) -> None:
        """`page`: below it, nobody is asked for the key.  `larger`: paths whose bodies have a limit of their own."""
        self.app = app
        self.key = None if api_key is None else api_key.encode()
        self.max_body_bytes = max_body_bytes
        self.body_timeout = body_timeout
        self.on_done = on_done
        self.page = page
        self.larger = larger or {}
        self.in_flight = 0
        """Requests whose bodies are there and whose answers are not."""
        self.draining = False
        self._reading: dict[asyncio.Future[bytes | None], bool] = {}
        """What is being read, and whether it is answered also at the end."""
        self._sending: dict[asyncio.Future[Any], float] = {}

    def drop_idle(self) -> None:
        """Refuse the requests whose bodies are not there yet, and leave clients that do not read their answers.

        At the end of the server, in the event loop.  What is answered to the end is refused only when nothing else
        runs any more: a page that is about to ask for its next part would never be whole.
        """
        for reading, to_the_end in self._reading.items():
            if not (to_the_end and self.in_flight):
                reading.cancel()
        for sending, since in self._sending.items():
            if time.monotonic() - since > PATIENCE:
                sending.cancel()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, seen = time.monotonic(), _Seen()

        async def heard() -> Any:
            message = await receive()
            # after the end, every client is gone
            seen.left |= message["type"] == "http.disconnect" and not seen.ended
            return message

        async def note(message: Any) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
            await self._send(send, message)
            seen.ended |= message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self._pass(scope, heard, note)
        except _Stuck:
            seen.left = True
            logger.warning("a client took nothing of its answer any more, and is left alone")
        finally:
            self.on_done(scope["path"], LEFT if seen.left else seen.status, time.monotonic() - began)

    async def _send(self, send: Any, message: Any) -> None:
        """A client that takes nothing any more is not waited for as long as it likes."""
        sending = asyncio.ensure_future(send(message))
        self._sending[sending] = time.monotonic()
        try:
            await asyncio.wait({sending}, timeout=self.body_timeout)
        finally:
            del self._sending[sending]
            stuck = not sending.done() or sending.cancelled()
            sending.cancel()
        if stuck:
            raise _Stuck
        sending.result()

    async def _pass(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            self._check_key(scope)
            self._check_draining(scope)
            limit = self.larger.get(scope["path"], self.max_body_bytes)
            body = await self._read(receive, limit, self._is_answered_to_the_end(scope))
            self._check_draining(scope)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if body is None:
            return
        self.in_flight += 1
        try:
            await self.app(scope, _again(body, receive), send)
        finally:
            self.in_flight -= 1

    async def _read(self, receive: Any, limit: int, to_the_end: bool) -> bytes | None:
        """The body, None if the client left."""
        reading = asyncio.ensure_future(self._body(receive, limit))
        self._reading[reading] = to_the_end
        try:
            done, _ = await asyncio.wait({reading}, timeout=self.body_timeout)
        finally:
            del self._reading[reading]
            reading.cancel()
        if not done:
            raise ApiError(408, "the request's body did not arrive in time", headers={"Connection": "close"})
        if reading.cancelled():
            raise _stopping()
        return reading.result()

    def _check_draining(self, scope: Any) -> None:
        if self.draining and not self._is_answered_to_the_end(scope):
            raise _stopping()

    def _is_answered_to_the_end(self, scope: Any) -> bool:
        return scope["path"] in ANSWERED_TO_THE_END or self._is_page(scope)

    def _is_page(self, scope: Any) -> bool:
        return self.page is not None and f"{scope['path']}/".startswith(f"{self.page}/")

    def _check_key(self, scope: Any) -> None:
        if self.key is None or scope["path"] in OPEN or self._is_page(scope):
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        # compared even where the scheme is wrong: nothing is to be learnt from the time that it takes
        is_right = hmac.compare_digest(token.strip(), self.key)
        if not (is_right and scheme.lower() == b"bearer"):
            what = "the API key is wrong" if given else "an API key is needed: send it as Authorization: Bearer KEY"
            headers = {"WWW-Authenticate": "Bearer", "Connection": "close"}
            raise ApiError(401, what, code="invalid_api_key", headers=headers)

    async def _body(self, receive: Any, limit: int) -> bytes | None:
        """The whole body, None if the client left."""
        body, size, more = bytearray(), 0, True
        while more and size <= limit + SPARE_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk, more = message.get("body", b""), message.get("more_body", False)
            size += len(chunk)
            if size <= limit:
                body += chunk
            else:
                body.clear()
        if size > limit:
            message = f"the request's body is larger than {limit} bytes"
            raise ApiError(413, message, code="request_too_large", headers={"Connection": "close"})
        return bytes(body)


def _stopping() -> ApiError:
    return ApiError(503, "the server is stopping", code="stopping", headers={"Connection": "close"})


def _again(body: bytes, receive: Any) -> Any:
    """`receive` for the application: the body that was read, then whatever comes."""
    given = False

    async def receive_again() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
