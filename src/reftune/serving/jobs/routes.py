"""The routes of fine-tuning, for the FastAPI app of either server.  Errors are told as OpenAI's, by the routes alone.

Must not know: what is done with requests.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from ...errors import ReftuneError
from ..refusals import ApiError, describe
from .schemas import CreateJob, PreviewRequest
from .service import Jobs

__all__ = ["UPLOADS", "jobs_router"]

logger = logging.getLogger("reftune.serving")

UPLOADS = "/v1/files"
# Of a field; pydantic calls kinds of values "int", "constrained-float", "literal['auto']".
NAME = re.compile(r"(?!(?:int|float|str|bool)$)[A-Za-z_]+")
# Of a request around its file.
FRAME = 1 << 16
MOST_JOBS, MOST_EVENTS, MOST_FILES = 100, 1000, 10_000

JobLimit = Annotated[int, Query(ge=1, le=MOST_JOBS)]
EventLimit = Annotated[int, Query(ge=1, le=MOST_EVENTS)]
FileLimit = Annotated[int, Query(ge=1, le=MOST_FILES)]
After = Annotated[str | None, Query(max_length=256)]


class Route(APIRoute):
    """Whatever goes wrong is one error of OpenAI's form, whatever the app does with errors."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        own = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await own(request)
            except ApiError as error:
                return error.response()
            except RequestValidationError as error:
                return _told(list(error.errors())).response()
            except HTTPException as error:
                return ApiError(error.status_code, str(error.detail)).response()
            except ReftuneError as error:
                return ApiError(400, str(error)).response()
            except Exception:
                logger.exception("fine-tuning: %s %s", request.method, request.url.path)
                return ApiError(500, "the server made a mistake; its log says which").response()

        return handle


def _told(problems: list[Any]) -> ApiError:
    """The first problem by the name of its parameter; of a value of several kinds, all that it is not."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for problem in problems:
        # after the names of fields come those of the kinds
        names = [part for part in problem["loc"][1:] if isinstance(part, int) or NAME.fullmatch(part)]
        message = str(problem["msg"]).removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "there is no such parameter"
        elif problem["type"] == "json_invalid":
            names, message = [], f"the body is not JSON: {problem['ctx']['error']}"
        elif not names:
            message = f"the body is not an object of parameters, sent as application/json ({message})"
        found.setdefault(tuple(names), []).append(message)
    names, messages = next(iter(found.items()))
    return describe([{"loc": names, "msg": " or ".join(messages)}])


def jobs_router(jobs: Callable[[], Jobs]) -> APIRouter:
    """`jobs`: known when requests come, not earlier."""
    router = APIRouter(route_class=Route)
    _add_files(router, jobs)
    _add_jobs(router, jobs)
    _add_ours(router, jobs)
    return router


def _add_files(router: APIRouter, jobs: Callable[[], Jobs]) -> None:
    @router.post(UPLOADS)
    async def upload(request: Request) -> Any:
        filename, purpose, content = await _uploaded(request, jobs().settings.max_file_bytes)
        return await asyncio.to_thread(jobs().upload, filename, purpose, content)

    @router.get(UPLOADS)
    def files(
        after: After = None,
        limit: FileLimit = MOST_FILES,
        order: Literal["asc", "desc"] = "desc",
        purpose: str | None = None,
    ) -> Any:
        return jobs().files(after=after, limit=limit, order=order, purpose=purpose)

    @router.get(f"{UPLOADS}/{{id}}")
    def file(id: str) -> Any:
        return jobs().file(id)

    @router.get(f"{UPLOADS}/{{id}}/content")
    def content(id: str) -> Response:
        name, found = jobs().content(id)
        return _attachment(name, found, "application/octet-stream")

    @router.delete(f"{UPLOADS}/{{id}}")
    def delete(id: str) -> Any:
        return jobs().delete_file(id)


def _add_jobs(router: APIRouter, jobs: Callable[[], Jobs]) -> None:
    path = "/v1/fine_tuning/jobs"

    @router.post(path)
    def create(body: CreateJob) -> Any:
        return jobs().create(body)

    @router.get(path)
    def all_jobs(request: Request, after: After = None, limit: JobLimit = 20) -> Any:
        metadata = {
            key[len("metadata[") : -1]: value
            for key, value in request.query_params.items()
            if key.startswith("metadata[") and key.endswith("]")
        }
        return jobs().jobs(after=after, limit=limit, metadata=metadata)

    @router.get(f"{path}/{{id}}")
    def job(id: str) -> Any:
        return jobs().job(id)

    @router.post(f"{path}/{{id}}/cancel")
    def cancel(id: str) -> Any:
        return jobs().cancel(id)

    @router.post(f"{path}/{{id}}/pause")
    def pause(id: str) -> Any:
        return jobs().pause(id)

    @router.post(f"{path}/{{id}}/resume")
    def resume(id: str) -> Any:
        return jobs().resume(id)

    @router.get(f"{path}/{{id}}/events")
    def events(id: str, after: After = None, limit: EventLimit = 20) -> Any:
        return jobs().events(id, after=after, limit=limit)

    @router.get(f"{path}/{{id}}/checkpoints")
    def checkpoints(id: str, after: After = None, limit: JobLimit = 10) -> Any:
        return jobs().checkpoints(id, after=after, limit=limit)


def _add_ours(router: APIRouter, jobs: Callable[[], Jobs]) -> None:
    path = "/v1/reft/adapters"

    @router.post("/v1/reft/preview")
    def preview(body: PreviewRequest) -> Any:
        return jobs().preview(body)

    @router.get(path)
    def adapters() -> Any:
        return {"object": "list", "data": jobs().shelf.adapters()}

    @router.get(f"{path}/{{name:path}}/download")
    def download(name: str) -> Response:
        filename, found = jobs().shelf.download(name)
        return _attachment(filename, found, "application/zip")

    @router.get(f"{path}/{{name:path}}")
    def adapter(name: str) -> Any:
        return jobs().shelf.adapter(name)

    @router.post(f"{path}/{{name:path}}/load")
    def load(name: str) -> Any:
        return jobs().shelf.load(name)

    @router.post(f"{path}/{{name:path}}/unload")
    def unload(name: str) -> Any:
        return jobs().shelf.unload(name)

    @router.delete(f"{path}/{{name:path}}")
    def delete(name: str) -> Any:
        return jobs().shelf.delete(name)


def _attachment(name: str, content: bytes, kind: str) -> Response:
    plain = "".join(sign if sign.isascii() and (sign.isalnum() or sign in "._-") else "_" for sign in name)
    return Response(content, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{plain}"'})


async def _uploaded(request: Request, most: int) -> tuple[str, str, bytes]:
    """Name, purpose and content of the file in a form; no more of it is taken in than may be.

    Raises:
        ApiError: it is larger, or no such form.
    """
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise ApiError(400, f"the content type is {kind[:100]!r}; files are sent as multipart/form-data", param="file")
    too_large = ApiError(413, f"the file is larger than {most} bytes", code="file_too_large", param="file")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > most + FRAME:
        raise too_large

    async def limited() -> AsyncIterator[bytes]:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > most + FRAME:
                raise too_large
            yield part

    try:
        form = await MultiPartParser(request.headers, limited(), max_files=1, max_fields=8).parse()  # type: ignore[arg-type]
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        message = getattr(error, "message", None) or str(error)
        raise ApiError(400, f"the form cannot be read: {message[:200]}", param="file") from error
    try:
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile):
            raise ApiError(400, "the form has no file; send it as the part 'file'", param="file")
        if not isinstance(purpose, str):
            raise ApiError(400, "the form has no purpose; use 'fine-tune'", param="purpose")
        unknown = sorted(set(form.keys()) - {"file", "purpose"})
        if unknown:
            raise ApiError(400, f"unsupported parameters: {', '.join(unknown)[:200]!a}", param=unknown[0][:100])
        content = await file.read()
        if len(content) > most:
            raise too_large
        return file.filename or "", purpose, content
    finally:
        await form.close()
