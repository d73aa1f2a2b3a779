"""Errors as the OpenAI API tells them: a status and one object.

Must not know: models, batches.
"""

from __future__ import annotations

import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ...errors import ReftuneError
from ..prompts import PromptTooLong
from .engine import EngineStopped, QueueFull, UnknownAdapter

__all__ = ["ApiError", "api_error", "install_handlers"]

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


def api_error(error: Exception) -> ApiError:
    """The reply to an error of ours."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), code="queue_full", headers={"Retry-After": "1"})
    if isinstance(error, EngineStopped):
        return ApiError(503, str(error), code="stopping")
    if isinstance(error, UnknownAdapter):
        return ApiError(404, str(error), code="model_not_found", param="model")
    if isinstance(error, PromptTooLong):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, ReftuneError):
        return ApiError(400, str(error))
    return ApiError(500, "the server made a mistake; its log says which")


def timed_out(seconds: float) -> ApiError:
    return ApiError(504, f"the answer took longer than {math.ceil(seconds)} s", code="timeout")


def install_handlers(app: FastAPI) -> None:
    """Every error, FastAPI's own included, in one form."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        return api_error(error).response()

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return describe(list(error.errors())).response()

    async def by_status(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {})).response()

    for kind in (ApiError, ReftuneError, Exception):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, by_status)


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
