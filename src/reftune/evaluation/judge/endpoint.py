"""A chat model behind an OpenAI-compatible endpoint: one question, one reply, with patience where it helps.

The key goes into the header of requests to the endpoint and nowhere else: redirects are not followed, and what a
server says is shown with the key blacked out.

Must not know: what is asked.
"""

from __future__ import annotations

import json
import math
import random
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ...errors import ReftuneError

__all__ = ["Endpoint", "EndpointError", "RefusedError", "Reply"]

LONGEST_WAIT = 300.0
"""Seconds.  An endpoint that asks for more, for instance until tomorrow, is not waited for."""
MAX_BYTES = 16 * 1024 * 1024
TRY_AGAIN = (408, 409, 425, 429)
REFUSALS = (400, 413, 422)
"""What a server says of one request that it does not like, for instance because it is too long."""


class EndpointError(ReftuneError):
    """The endpoint cannot be used, or no longer."""


class RefusedError(ReftuneError):
    """The endpoint does not want to answer this one request."""


class _Trouble(Exception):
    """What may pass: worth another try, `wait` seconds from now at the soonest."""

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The next host would be sent the key and the texts."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass(frozen=True)
class Reply:
    text: str
    finish: str | None
    """Why the model stopped, in the words of the server; "length" if it was cut off."""


@dataclass(frozen=True)
class Endpoint:
    """Where a chat model answers, and how patiently it is asked."""

    url: str
    """As OpenAI clients take it (`https://host/v1`), with or without `/chat/completions`; a bare host gets `/v1`."""
    model: str
    key: str | None = field(default=None, repr=False)
    max_tokens: int | None = 16
    timeout: float = 120.0
    """Seconds without a byte from the server."""
    retries: int = 6
    first_wait: float = 1.0
    """Seconds before the first retry; twice as long before each further one, and up to half as long again by chance."""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            parts.port  # noqa: B018 — raises if it is not a number
        except ValueError as error:
            raise EndpointError(f"the endpoint is not an address ({error}); give one as https://host/v1") from None
        if "@" in parts.netloc:
            raise EndpointError("the endpoint holds a name or a password before '@'; give the key by its variable")
        if parts.scheme not in ("http", "https") or not parts.hostname or not _is_plain(self.url):
            shown = self.url.partition("?")[0]
            raise EndpointError(f"the endpoint {shown!r} is not an address; give one as https://host/v1")
        # the message must not show the key, as that of urllib would
        if self.key is not None and not _is_plain(self.key):
            raise EndpointError("the key holds spaces, line breaks or letters that no key has; look at its variable")

    @property
    def address(self) -> str:
        """Where requests go."""
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/")
        if not path.endswith("/chat/completions"):
            path = f"{path or '/v1'}/chat/completions"
        return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))

    @property
    def shown(self) -> str:
        """The address without its query, which may be a secret."""
        return self.address.partition("?")[0]

    def payload(self, prompt: str) -> dict[str, Any]:
        """What is sent for a prompt: everything that the reply depends on, as far as we know it."""
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": prompt}]}
        body["temperature"] = 0
        return body if self.max_tokens is None else {**body, "max_tokens": self.max_tokens}

    def ask(self, payload: dict[str, Any], *, stop: threading.Event | None = None, answers: bool = True) -> Reply:
        """The reply.  Overload (429, 5xx), time-outs, hang-ups and garbage are waited out and asked again.

        `answers` says whether the endpoint is known to work: if not, a refused connection and an unknown host are
        told at once.  `stop` ends a wait.

        Raises:
            RefusedError: a 400, 413 or 422: another request may be answered.
            EndpointError: anything else that went wrong, once too often.
        """
        stop = stop or threading.Event()
        attempt = 0
        while True:
            try:
                return self._post(payload, answers=answers)
            except _Trouble as error:
                trouble = error
            if trouble.wait > LONGEST_WAIT:
                raise EndpointError(f"{trouble}; it asks to come back in {trouble.wait:.0f} seconds")
            if attempt == self.retries:
                raise EndpointError(f"{trouble}, {attempt + 1} times over")
            own = min(60.0, self.first_wait * 2**attempt) * random.uniform(1.0, 1.5)
            if stop.wait(max(own, trouble.wait)):
                raise EndpointError(f"{trouble}; stopped")
            attempt += 1

    def clean(self, text: str) -> str:
        """A text of the server, without the key, and such that it can be written."""
        if self.key:
            text = text.replace(self.key, "***")
        return text.encode("utf-8", "replace").decode("utf-8")

    def _post(self, payload: dict[str, Any], *, answers: bool) -> Reply:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "reftune"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.address, json.dumps(payload).encode(), headers, method="POST")
        opener = urllib.request.build_opener(_NoRedirects)
        try:
            with opener.open(request, timeout=self.timeout) as response:
                body = response.read(MAX_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                raise self._status(error) from None
        except (OSError, HTTPException) as error:
            raise self._broken(error, answers=answers) from None
        return self._read(body)

    def _read(self, body: bytes) -> Reply:
        try:
            choice = json.loads(body)["choices"][0]
            text, finish = choice["message"].get("content"), choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            said = self._shorten(body.decode("utf-8", "replace"))
            raise _Trouble(f"the endpoint {self.shown} sent no chat completion but {said!r}") from None
        if isinstance(text, list):
            # in parts, as some servers give it
            text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
        return Reply(text if isinstance(text, str) else "", finish if isinstance(finish, str) else None)

    def _status(self, error: urllib.error.HTTPError) -> Exception:
        """What a status other than 2xx means."""
        said = self._shorten(_message(error))
        told = f"the endpoint {self.shown} answers {error.code}" + (f": {said}" if said else "")
        if error.code in TRY_AGAIN or error.code >= 500:
            return _Trouble(told, _retry_after(error.headers))
        if error.code in REFUSALS:
            return RefusedError(told)
        if error.code in (401, 403):
            sent = "a key was sent" if self.key else "no key was sent: name the variable that holds it"
            return EndpointError(f"{told} ({sent})")
        if error.code == 404:
            return EndpointError(f"{told} (either it has no model {self.model!r}, or the address is not the right one)")
        if 300 <= error.code < 400:
            return EndpointError(f"{told}: it sends to another address, which is not followed; give the right one")
        return EndpointError(told)

    def _broken(self, error: OSError | HTTPException, *, answers: bool) -> Exception:
        """What an answer that did not come means."""
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        what = "no answer in time" if isinstance(reason, TimeoutError) else str(reason) or type(reason).__name__
        told = f"the endpoint {self.shown} cannot be reached: {self._shorten(what)}"
        nobody = isinstance(reason, (ConnectionRefusedError, socket.gaierror)) and not answers
        if nobody or isinstance(reason, ssl.SSLCertVerificationError):
            return EndpointError(told)
        return _Trouble(told)

    def _shorten(self, text: str) -> str:
        line = " ".join(self.clean(text).split())
        return line if len(line) <= 300 else f"{line[:297]}..."


def _message(error: urllib.error.HTTPError) -> str:
    """What the body of an error says."""
    try:
        text = error.read(MAX_BYTES).decode("utf-8", "replace")
    except (OSError, HTTPException):
        return ""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text
    inner = body.get("error", body) if isinstance(body, dict) else body
    message = inner.get("message") if isinstance(inner, dict) else inner
    return message if isinstance(message, str) else text


def _is_plain(text: str) -> bool:
    """Whether a text can stand in the head of a request."""
    return text.isascii() and text.isprintable() and " " not in text


def _retry_after(headers: Message) -> float:
    """Seconds that a server asks to wait, given as such or as a date; 0 where it says nothing that can be read."""
    value = (headers.get("Retry-After") or "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
