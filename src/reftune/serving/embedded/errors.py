"""The reply to each error of a request.

Must not know: models, batches.
"""

from __future__ import annotations

import math

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ...errors import ReftuneError
from ..prompts import PromptTooLong
from ..refusals import ApiError, describe
from .engine import EngineStopped, QueueFull, UnknownAdapter

__all__ = ["ApiError", "api_error", "install_handlers"]


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
