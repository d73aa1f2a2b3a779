"""What requests for the page pass first: the key, and a list of the routes that the page needs.

Gradio has many more, for uploads, files, proxies and dashboards; they are not there.

Must not know: what the page shows.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["PageGate"]

NEEDED = {
    "GET": re.compile(
        r"/?|/config/?|/theme\.css|/(?:static|assets|svelte)/.*|/gradio_api/(?:info|queue/data|startup-events)/?"
    ),
    "POST": re.compile(r"/gradio_api/(?:queue/join|cancel|reset)/?"),
}
NEEDED["HEAD"] = NEEDED["GET"]
HEADERS = (
    # Gradio's own scripts and styles are partly written into the page; nothing comes from anywhere else
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; "
        b"frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class PageGate:
    """ASGI middleware; what is not below `path` passes untouched."""

    def __init__(self, app: Any, *, path: str, keys: Sequence[str]) -> None:
        self.app = app
        self.path = path
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        inner = self._inner(scope)
        if inner is None:
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            # the page opens no websocket
            await send({"type": "websocket.close", "code": 1008})
        elif not self._is_let_in(scope):
            challenge = (b"www-authenticate", b'Basic realm="the API key is the password", charset="UTF-8"')
            await _refuse(send, 401, "this page asks for the server's API key, as the password\n", challenge)
        elif _header(scope, b"sec-fetch-site") not in (b"", b"none", b"same-origin") and scope["method"] == "POST":
            # a browser sends the key along, whoever's page has asked for it
            await _refuse(send, 403, "only the page itself may ask\n")
        elif (wanted := NEEDED.get(scope["method"])) is None or wanted.fullmatch(inner) is None:
            await _refuse(send, 404, "there is no such page\n")
        else:
            await self.app(_undisturbed(scope), receive, _with_headers(send))

    def _inner(self, scope: Any) -> str | None:
        """The path below the page's, None if it is another's."""
        if scope["type"] not in ("http", "websocket"):
            return None
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        head, rest = path[: len(self.path)], path[len(self.path) :]
        return rest if head == self.path and rest[:1] in ("", "/") else None

    def _is_let_in(self, scope: Any) -> bool:
        if not self.keys:
            return True
        kind, _, encoded = _header(scope, b"authorization").partition(b" ")
        try:
            password = base64.b64decode(encoded, validate=True).partition(b":")[2]
        except binascii.Error:
            password = b""
        # all are compared: how long it takes tells nothing
        found = [hmac.compare_digest(password, key) for key in self.keys]
        return kind.lower() == b"basic" and any(found)


def _header(scope: Any, wanted: bytes) -> bytes:
    return next((value for name, value in scope["headers"] if name == wanted), b"")


def _undisturbed(scope: Any) -> Any:
    """The scope of a server that does not have a stream cancelled when its client leaves, as ASGI 2.4 has it.

    Gradio's stream of events looks for itself whether the client is there, and ends what it asked for.  Cancelled while
    a piece is being sent, it would end nothing (Gradio 6.31, `sse_stream`, answers that with another `yield`).
    """
    return {**scope, "asgi": {**scope.get("asgi", {}), "spec_version": "2.4"}}


def _with_headers(send: Any) -> Any:
    async def send_more(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
        await send(message)

    return send_more


async def _refuse(send: Any, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    body = text.encode()
    head = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
