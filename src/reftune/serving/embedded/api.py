"""The routes: requests to rows, and their pieces to replies.

Must not know: how batches are made, how adapters are put on the model.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from ...data.style import PromptStyle
from ..adapters import read_adapter
from ..jobs.routes import jobs_router
from ..jobs.service import Jobs
from ..modules import allowed_path, check_name
from ..page import attach_page
from ..prompts import Prompt, PromptReader, style_of
from .engine import Engine
from .errors import ApiError, install_handlers, timed_out
from .metrics import Metrics
from .replies import ChatFormat, CompletionFormat, Format, Ticket, collect, events
from .rows import Row, RowRequest
from .schemas import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    LoadRequest,
    Model,
    ModelList,
    TokenizeRequest,
    TokenReply,
    UnloadRequest,
    now,
)
from .settings import ServeSettings
from .stream import EventStream, until_gone

__all__ = ["Service", "make_app"]

router = APIRouter()


@dataclass
class Service:
    """What the routes work with."""

    settings: ServeSettings
    engine: Engine
    reader: PromptReader
    tokenizer: Any
    """For the worker thread, not the reader's."""
    ends: frozenset[int]
    metrics: Metrics
    created: int = field(default_factory=now)
    draining: Any = bool
    """Whether the server is about to end."""
    admission: asyncio.Lock = field(default_factory=asyncio.Lock)
    jobs: Jobs | None = None
    """What trains, where it is asked for."""

    def adapter_of(self, model: str) -> str | None:
        """None for the base model.

        Raises:
            ApiError: nothing of this name is served.
        """
        if model == self.settings.base_name:
            return None
        if self.engine.bank.find(model) is None:
            raise not_found(model)
        return model

    def style_of(self, model: str) -> PromptStyle | None:
        """How an adapter's prompts were written in training, None if nothing says."""
        entry = self.engine.bank.find(model)
        return None if entry is None else entry.card.style

    def stop(self, *, abort: bool = False) -> None:
        """Finish what runs, or with `abort` break it off; jobs go on when there is a server again."""
        if self.jobs is not None:
            self.jobs.stop()
        self.engine.stop(abort=abort)

    def token_text(self, token: int) -> str:
        return str(self.tokenizer.decode([token], clean_up_tokenization_spaces=False))


def make_app(service: Service) -> FastAPI:
    # no pages of documentation: they load their scripts from elsewhere
    app = FastAPI(title="reftune", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    app.include_router(router)
    if service.jobs is not None:
        jobs = service.jobs
        app.include_router(jobs_router(lambda: jobs))
    install_handlers(app)
    if service.settings.ui:
        attach_page(app, cards=lambda _: {entry.name: entry.card for entry in service.engine.bank})
    return app


def service_of(request: Request) -> Service:
    return request.app.state.service


def not_found(model: str) -> ApiError:
    return ApiError(404, f"the model {model!a} does not exist", code="model_not_found", param="model")


# --- answers ----------------------------------------------------------------------------------------------------------


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    service = service_of(request)
    service.adapter_of(body.model)
    turns = [message.as_turn() for message in body.messages]
    prompt = await asyncio.to_thread(service.reader.chat, turns, service.style_of(body.model), body.tools)
    limit = body.max_completion_tokens or body.max_tokens
    form = ChatFormat(body.model, service.token_text, logprobs=body.reported is not None)
    return await answer(service, request, body, form, [prompt], limit)


@router.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request) -> Response:
    service = service_of(request)
    service.adapter_of(body.model)
    if not body.prompts:
        raise ApiError(400, "prompt is empty", param="prompt")

    if body.reft_spans is not None and service.adapter_of(body.model) is None:
        raise ApiError(400, f"{body.model!a} is the base model, none of whose tokens are edited", param="reft_spans")
    prompts = await asyncio.to_thread(service.reader.prompts, body.prompts, body.reft_spans)
    form = CompletionFormat(body.model, service.token_text, logprobs=body.reported is not None)
    return await answer(service, request, body, form, prompts, body.max_tokens or 16)


async def answer(
    service: Service,
    request: Request,
    body: GenerationRequest,
    form: Format,
    prompts: list[Prompt],
    max_tokens: int | None,
) -> Response:
    """Queue the rows of a request and reply with what comes of them."""
    if body.reft_strength is not None and service.adapter_of(body.model) is None:
        raise ApiError(400, f"{body.model!a} is the base model, which has no strength", param="reft_strength")
    ticket = Ticket(timeout=service.settings.request_timeout)
    count = body.n or 1
    if len(prompts) * count > service.settings.max_queue:
        # before they are made
        raise ApiError(400, f"{len(prompts) * count} answers at once; at most {service.settings.max_queue}", param="n")
    ends = frozenset(body.stop_token_ids or ()) | (frozenset() if body.ignore_eos else service.ends)
    continues = isinstance(form, CompletionFormat)
    strength = 1.0 if body.reft_strength is None else body.reft_strength
    for prompt in prompts:
        room = service.reader.room(prompt.ids, max_tokens)
        for i in range(count):
            sampling = body.sampling(i, vocabulary=service.reader.vocabulary)
            asked = RowRequest(prompt.ids, room, sampling, body.stops, ends, continues, strength, prompt.spans)
            listener = ticket.listener(len(ticket.rows))
            ticket.rows.append(Row(asked, service.tokenizer, listener, streams=bool(body.stream)))
    began = time.monotonic()
    service.engine.submit(ticket.rows, service.adapter_of(body.model))
    prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
    if body.stream:
        chunks = events(ticket, form, prompt_tokens=prompt_tokens, include_usage=body.include_usage)
        return EventStream(timed(chunks, service, began), on_gone=ticket.cancel)
    watch = asyncio.create_task(until_gone(request.receive, ticket.cancel))
    try:
        reply = await collect(ticket, form, prompt_tokens=prompt_tokens)
    finally:
        watch.cancel()
    return JSONResponse(reply.model_dump())


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> TokenReply:
    """The tokens of the prompt that this model would be given."""
    service = service_of(request)
    service.adapter_of(body.model)

    def read() -> Prompt:
        if body.messages is None:
            return service.reader.text(body.prompt or "")
        turns = [message.as_turn() for message in body.messages]
        return service.reader.chat(turns, service.style_of(body.model), body.tools)

    tokens, spans = await asyncio.to_thread(read)
    texts = [str(text) for text in service.tokenizer.convert_ids_to_tokens(tokens)] if body.return_token_strs else None
    return TokenReply(
        count=len(tokens), max_model_len=service.reader.limit, tokens=tokens, token_strs=texts, spans=spans
    )


async def timed(chunks: AsyncIterator[dict[str, Any]], service: Service, began: float) -> AsyncIterator[dict[str, Any]]:
    """The same chunks; the first is noted."""
    first = True
    async for chunk in chunks:
        if first:
            service.metrics.first_piece(time.monotonic() - began)
            first = False
        yield chunk


# --- models -----------------------------------------------------------------------------------------------------------


@router.get("/v1/models")
async def models(request: Request) -> ModelList:
    return ModelList(data=list(_models(service_of(request))))


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> Model:
    for found in _models(service_of(request)):
        if found.id == name:
            return found
    raise not_found(name)


def _models(service: Service) -> Any:
    base, length = service.settings.base_name, service.reader.limit
    yield Model(id=base, created=service.created, root=service.settings.model, max_model_len=length)
    for entry in service.engine.bank:
        yield Model(id=entry.name, created=entry.created, root=entry.path, parent=base, max_model_len=length)


@router.get("/v1/reft_adapters")
async def reft_adapters(request: Request) -> dict[str, Any]:
    """All adapters, and what they edit."""
    entries = service_of(request).engine.bank
    return {"object": "list", "data": [{"id": entry.name, **entry.card.as_dict()} for entry in entries]}


@router.post("/v1/load_reft_adapter")
async def load_reft_adapter(body: LoadRequest, request: Request) -> Response:
    service = runtime_loading(request)
    check_name(body.reft_name, base_names=(service.settings.base_name,))
    if not body.load_inplace and service.engine.bank.find(body.reft_name) is not None:
        raise ApiError(
            400, f"the adapter {body.reft_name!r} is loaded already; load_inplace=true exchanges it", param="reft_name"
        )

    def load() -> Any:
        folder: Path = allowed_path(body.reft_path, service.settings.allowed_folders)
        files = read_adapter(folder, limit=service.settings.max_adapter_bytes)
        style = style_of(folder, name=body.reft_name)
        return service.engine.load(body.reft_name, files, style=style, replace=body.load_inplace)

    # one at a time: each may take as much memory as max_adapter_bytes
    async with service.admission:
        await in_time(await asyncio.to_thread(load), service.settings.request_timeout)
    return JSONResponse({"status": "ok", "name": body.reft_name})


@router.post("/v1/unload_reft_adapter")
async def unload_reft_adapter(body: UnloadRequest, request: Request) -> Response:
    service = runtime_loading(request)
    if service.engine.bank.find(body.reft_name) is None:
        raise not_found(body.reft_name)
    await in_time(service.engine.unload(body.reft_name), service.settings.request_timeout)
    return JSONResponse({"status": "ok", "name": body.reft_name})


def runtime_loading(request: Request) -> Service:
    service = service_of(request)
    if not service.settings.allow_runtime_loading:
        raise ApiError(404, "adapters are not loaded at run time here; the server must be started to allow it")
    return service


async def in_time(future: Any, seconds: float) -> None:
    """The result of the worker's; it goes on where nobody waits any more."""
    try:
        await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), seconds)
    except (asyncio.TimeoutError, TimeoutError) as error:
        raise timed_out(seconds) from error


# --- the server itself ------------------------------------------------------------------------------------------------


@router.get("/health")
async def health(request: Request) -> Response:
    service = service_of(request)
    is_well = service.engine.alive and not service.draining()
    return Response(status_code=200 if is_well else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    page, kind = service_of(request).metrics.page()
    return Response(page, media_type=kind)
