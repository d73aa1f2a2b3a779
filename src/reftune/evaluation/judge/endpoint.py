"""A chat model behind an OpenAI-compatible endpoint: one question, one reply, with patience where it helps.

Requests go through the client of the extra `judge`.  What the client does not do is here: garbage is asked again too,
a wait can be ended, the key is blacked out in all that a server says, and redirects, which would get it, are not
followed.

Must not know: what is asked.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import random
import textwrap
import threading
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from ...errors import MissingExtraError, ReftuneError

if TYPE_CHECKING:
    import openai

__all__ = ["Endpoint", "EndpointError", "RefusedError", "Reply"]

LONGEST_WAIT = 300.0
"""Seconds.  An endpoint that asks for more, for instance until tomorrow, is not waited for."""
COMPLETIONS = "/chat/completions"
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


@dataclass(frozen=True)
class Reply:
    text: str
    finish: str | None
    """Why the model stopped, in the words of the server; "length" if it was cut off."""


@dataclass(frozen=True)
class Endpoint:
    """Where a chat model answers, and how patiently it is asked.

    Raises:
        MissingExtraError: the client is not installed.
        EndpointError: the address is none, or the key.
    """

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
        if importlib.util.find_spec("openai") is None:
            raise MissingExtraError("openai", extra="judge")
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
        if self.key is not None and not _is_plain(self.key):
            raise EndpointError("the key holds spaces, line breaks or letters that no key has; look at its variable")

    @property
    def address(self) -> str:
        """Where requests go."""
        parts = urlsplit(self.url)
        path = (parts.path.rstrip("/") or "/v1").removesuffix(COMPLETIONS)
        return urlunsplit((parts.scheme, parts.netloc, path + COMPLETIONS, parts.query, ""))

    @property
    def shown(self) -> str:
        """The address without its query, which may be a secret."""
        return self.address.partition("?")[0]

    def payload(self, prompt: str) -> dict[str, Any]:
        """What is sent for a prompt: everything that the reply depends on, as far as we know it."""
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": _writable(prompt)}]}
        body["temperature"] = 0
        return body if self.max_tokens is None else {**body, "max_tokens": self.max_tokens}

    def ask(self, payload: dict[str, Any], *, stop: threading.Event | None = None, answers: bool = True) -> Reply:
        """The reply.  Overload (429, 5xx), time-outs, hang-ups and garbage are waited out and asked again.

        `answers` says whether the endpoint is known to work: if not, a connection that cannot be made is told at
        once.  `stop` ends a wait.

        Raises:
            RefusedError: a 400, 413 or 422: another request may be answered.
            EndpointError: anything else that went wrong, once too often.
        """
        stop = stop or threading.Event()
        for attempt in itertools.count():
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
        raise AssertionError

    def clean(self, text: str) -> str:
        """A text of the server, without the key, and such that it can be written."""
        return _writable(text.replace(self.key, "***") if self.key else text)

    @cached_property
    def _client(self) -> Any:
        import openai  # noqa: PLC0415 — the extra `judge`

        return openai.OpenAI(
            api_key=self.key or "none",
            base_url=self.shown.removesuffix(COMPLETIONS),
            default_query=dict(parse_qsl(urlsplit(self.url).query, keep_blank_values=True)),
            timeout=self.timeout,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )

    def _post(self, payload: dict[str, Any], *, answers: bool) -> Reply:
        import openai  # noqa: PLC0415

        # what the client finds in the environment is not for this endpoint
        unsent = ["OpenAI-Organization", "OpenAI-Project", *([] if self.key else ["Authorization"])]
        ask = self._client.chat.completions.with_raw_response.create
        try:
            return self._read(ask(**payload, extra_headers=dict.fromkeys(unsent, openai.Omit())).text)
        except openai.APIStatusError as error:
            raise self._status(error) from None
        except openai.APIConnectionError as error:
            what = "no answer in time" if isinstance(error, openai.APITimeoutError) else str(error.__cause__ or error)
            told = f"the endpoint {self.shown} cannot be reached: {self._shorten(what)}"
            nobody = type(error.__cause__).__name__ == "ConnectError" and not answers
            raise (EndpointError if nobody else _Trouble)(told) from None

    def _read(self, body: str) -> Reply:
        try:
            choice = json.loads(body)["choices"][0]
            text, finish = choice["message"].get("content"), choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            said = self._shorten(body)
            raise _Trouble(f"the endpoint {self.shown} sent no chat completion but {said!r}") from None
        if isinstance(text, list):
            # in parts, as some servers give it
            text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
        return Reply(text if isinstance(text, str) else "", finish if isinstance(finish, str) else None)

    def _status(self, error: openai.APIStatusError) -> Exception:
        """What a status other than 2xx means."""
        code = error.status_code
        inner = error.body.get("message") if isinstance(error.body, dict) else error.body
        said = self._shorten(inner if isinstance(inner, str) else error.response.text)
        told = f"the endpoint {self.shown} answers {code}" + (f": {said}" if said else "")
        if code in TRY_AGAIN or code >= 500:
            return _Trouble(told, _seconds(error.response.headers.get("Retry-After", "")))
        if code in REFUSALS:
            return RefusedError(told)
        if code in (401, 403):
            told += f" ({'a key was sent' if self.key else 'no key was sent: name the variable that holds it'})"
        if code == 404:
            told += f" (either it has no model {self.model!r}, or the address is not the right one)"
        if code < 400:
            told += ": it sends to another address, which is not followed; give the right one"
        return EndpointError(told)

    def _shorten(self, text: str) -> str:
        return textwrap.shorten(self.clean(text), 300, placeholder="...")


def _is_plain(text: str) -> bool:
    """Whether a text can stand in the head of a request."""
    return text.isascii() and text.isprintable() and " " not in text


def _writable(text: str) -> str:
    """Without halves of signs, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _seconds(wait: str) -> float:
    """What `Retry-After` asks for, as such or as a date; 0 where it says nothing that can be read."""
    try:
        seconds = float(wait)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(wait).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
