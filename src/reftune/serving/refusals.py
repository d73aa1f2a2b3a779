"""Errors as the OpenAI API tells them: a status and one object.

Must not know: the backends, what requests ask for.
"""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

__all__ = ["ApiError", "describe", "no_such"]

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """What a client is told."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        kind = TYPES.get(status, "invalid_request_error")
        # half a surrogate pair, which a message may quote, cannot be sent
        clean = message.encode(errors="backslashreplace").decode()
        self.body = {"error": {"message": clean, "type": kind, "param": param, "code": code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, headers=self.headers)


def describe(problems: list[Any]) -> ApiError:
    """The first thing that is wrong with a request, by the name of its parameter."""
    first = problems[0] if problems else {"loc": (), "msg": "the request is not valid"}
    places = [str(part) for part in first["loc"] if part != "body"]
    message = str(first["msg"]).removeprefix("Value error, ")
    if message.startswith("not served: "):
        names = message.removeprefix("not served: ")
        inside = f" in {'.'.join(places)}" if places else ""
        message = f"unsupported parameters{inside}: {names}"
        return ApiError(400, message, param=names.split(", ")[0], code="unsupported_parameter")
    place = ".".join(places)
    message = f"{place}: {message}" if place else message
    return ApiError(400, message, param=places[0] if places else None)


def no_such(what: str, name: str | None, param: str | None = None) -> ApiError:
    """The answer to a request for what is not there."""
    return ApiError(404, f"there is no {what} {(name or '')[:200]!a}", code="not_found", param=param)
