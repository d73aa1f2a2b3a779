"""What every request passes first: the key, the end of the server, the size of its body.

A body is read here, up to the limit, whatever its headers say of its length, and then handed on.

Must not know: what requests ask for.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from typing import Any

from .errors import ApiError

__all__ = ["Gate"]

OPEN = ("/health",)
ANSWERED_TO_THE_END = ("/health", "/metrics")
# A refused body is still taken in for a while: a client that is cut off while it sends does not read the reason.
SPARE_BYTES = 64 << 20


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
    ) -> None:
        """`page`: below this path, others ask for the key."""
        self.app = app
        self.key = None if api_key is None else api_key.encode()
        self.max_body_bytes = max_body_bytes
        self.body_timeout = body_timeout
        self.on_done = on_done
        self.page = page
        self.in_flight = 0
        self.draining = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def note(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.in_flight += 1
        try:
            await self._pass(scope, receive, note)
        finally:
            self.in_flight -= 1
            self.on_done(scope["path"], status, time.monotonic() - began)

    async def _pass(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            self._check_key(scope)
            # the page tells what was asked before; what it asks from now on is refused as all else
            if self.draining and scope["path"] not in ANSWERED_TO_THE_END and not self._is_page(scope):
                raise ApiError(503, "the server is stopping", code="stopping", headers={"Connection": "close"})
            body = await asyncio.wait_for(self._body(receive), self.body_timeout)
        except ApiError as error:
            await error.response()(scope, receive, send)
        except (asyncio.TimeoutError, TimeoutError):
            slow = ApiError(408, "the request's body did not arrive in time", headers={"Connection": "close"})
            await slow.response()(scope, receive, send)
        else:
            if body is not None:
                await self.app(scope, _again(body, receive), send)

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

    async def _body(self, receive: Any) -> bytes | None:
        """The whole body, None if the client left."""
        body, size, more = bytearray(), 0, True
        while more and size <= self.max_body_bytes + SPARE_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk, more = message.get("body", b""), message.get("more_body", False)
            size += len(chunk)
            if size <= self.max_body_bytes:
                body += chunk
            else:
                body.clear()
        if size > self.max_body_bytes:
            message = f"the request's body is larger than {self.max_body_bytes} bytes"
            raise ApiError(413, message, code="request_too_large", headers={"Connection": "close"})
        return bytes(body)


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
