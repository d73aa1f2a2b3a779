"""Routes of vLLM's server by which adapters come and go, and the adapters that it starts with.

Must not know: workers, weights.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from ...errors import ReftuneError
from ..jobs.routes import jobs_router
from ..modules import ReftModule, allowed_path, check_name, parse_modules
from ..page import attach_page
from ..prompts import tell_no_style
from .adapters import Reader
from .chats import put_prompts
from .frontend import forget, load_async, reader_of
from .host import VllmHost, jobs_of
from .options import check_content_name
from .registry import Registry
from .requests import ReftRequest

__all__ = ["ReftEndpoints"]


class LoadReftAdapter(BaseModel):
    """Body of `/v1/load_reft_adapter`."""

    reft_name: str
    reft_path: str
    load_inplace: bool = False


class UnloadReftAdapter(BaseModel):
    """Body of `/v1/unload_reft_adapter`."""

    reft_name: str


class ReftEndpoints:
    """Entry point of `vllm.endpoint_plugins`."""

    name = "reftune"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        router = APIRouter()
        router.post("/v1/load_reft_adapter")(load_reft_adapter)
        router.post("/v1/unload_reft_adapter")(unload_reft_adapter)
        router.get("/v1/reft_adapters")(reft_adapters)
        app.include_router(router)
        args = app.state.args
        if getattr(args, "fine_tuning", None):
            app.include_router(jobs_router(lambda: app.state.reft_jobs))
            app.router.lifespan_context = _with_jobs(app.router.lifespan_context)
        if getattr(args, "ui", False):
            attach_page(app, cards=lambda request: request.app.state.openai_serving_models.lora_requests.cards())

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Load the adapters of the command line, before the server listens."""
        modules = getattr(args, "reft_modules", None) or []
        file = getattr(args, "reft_registry", None)
        models = state.openai_serving_models
        registry = Registry(Path(file) if file else None)
        registry.update(models.lora_requests)
        models.lora_requests = registry
        put_prompts(state.online_renderer, registry)
        state.reft_lock = asyncio.Lock()
        trains = getattr(args, "fine_tuning", None)
        if not modules and not trains:
            return
        reader = reader_of(engine_client)
        for module in parse_modules(modules, base_names=[base.name for base in models.base_model_paths]):
            # another API process may have been here first
            await add(engine_client, registry, reader, module, replace=True)
        if trains:
            await start_jobs(engine_client, state, args, reader)


async def start_jobs(engine: Any, state: Any, args: Any, reader: Reader) -> None:
    """Serve what was trained earlier, and train on.

    Raises:
        ReftuneError: the folder cannot be used, or another server has it.
    """
    registry = state.openai_serving_models.lora_requests

    async def load(name: str, folder: str) -> None:
        async with state.reft_lock:
            await add(engine, registry, reader, ReftModule(name, folder), replace=True)

    async def unload(name: str) -> None:
        async with state.reft_lock:
            await remove(engine, registry, name)

    host = VllmHost(registry, reader, load=load, unload=unload)
    bases = state.openai_serving_models.base_model_paths
    state.reft_jobs = jobs = jobs_of(args, engine.vllm_config, bases[0].name, host)
    if jobs is not None:
        # another API process of this server may have the folder
        await asyncio.to_thread(jobs.start, alone=args.api_server_count in (None, 1))


def _with_jobs(own: Any) -> Any:
    """The life of the app, at the end of which jobs leave their checkpoints."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with own(app) as state:
            try:
                yield state
            finally:
                if (jobs := getattr(app.state, "reft_jobs", None)) is not None:
                    await asyncio.to_thread(jobs.stop)

    return lifespan


async def add(engine: Any, registry: Registry, reader: Reader, module: ReftModule, *, replace: bool) -> None:
    """Read an adapter, have the workers keep it, then give it its name.

    Raises:
        ReftuneError: it cannot be served, or not under this name.
    """
    check_free(registry, module.name, replace=replace)
    maps, card = await asyncio.get_running_loop().run_in_executor(None, reader.read, module.path)
    if card.style is None:
        tell_no_style(module.name)
    await load_async(engine, maps)
    with registry.changing():
        before = registry.cards().get(module.name)
        number = registry.next_number() if before is None else registry[module.name].lora_int_id
        registry[module.name] = ReftRequest(module.name, number, module.path, card=card)
    if before is not None and before.digest != card.digest:
        await let_go(engine, registry, before.digest)


def check_free(registry: Registry, name: str, *, replace: bool) -> None:
    """Refuse a name that an adapter may not have.

    Raises:
        ReftuneError: it means something else to vLLM, or there is an adapter of this name.
    """
    check_content_name(name)
    found = registry.get(name)
    if found is not None and not isinstance(found, ReftRequest):
        raise ReftuneError(f"the adapter name {name!r} is that of a LoRA; give the ReFT adapter another")
    if found is not None and not replace:
        raise ReftuneError(f"the adapter name {name!r} is taken; unload it first, or set load_inplace to replace it")


async def let_go(engine: Any, registry: Registry, digest: str) -> None:
    """Tell the engine that no name means this adapter any more, if that is so."""
    if all(card.digest != digest for card in registry.cards().values()):
        await forget(engine, digest)


async def remove(engine: Any, registry: Registry, name: str) -> bool:
    """Take a name away, if there is an adapter of it; whether there was."""
    with registry.changing():
        found = registry.cards().get(name)
        if found is None:
            return False
        del registry[name]
    await let_go(engine, registry, found.digest)
    return True


async def load_reft_adapter(body: LoadReftAdapter, raw: Request) -> JSONResponse:
    """Load an adapter from an allowed folder under a name."""
    state = raw.app.state
    if (refusal := _refused(state)) is not None:
        return refusal
    registry, engine = state.openai_serving_models.lora_requests, state.engine_client
    bases = [base.name for base in state.openai_serving_models.base_model_paths]
    async with state.reft_lock:
        try:
            check_name(body.reft_name, base_names=bases)
            path = allowed_path(body.reft_path, state.args.reft_adapter_folder or [])
            module = ReftModule(body.reft_name, str(path))
            await add(engine, registry, reader_of(engine), module, replace=body.load_inplace)
        except ReftuneError as error:
            return _error(400, str(error))
    return JSONResponse({"status": "ok", "name": body.reft_name})


async def unload_reft_adapter(body: UnloadReftAdapter, raw: Request) -> JSONResponse:
    """Take a name away; requests that run go on to their end."""
    state = raw.app.state
    if (refusal := _refused(state)) is not None:
        return refusal
    registry = state.openai_serving_models.lora_requests
    async with state.reft_lock:
        if not await remove(state.engine_client, registry, body.reft_name):
            return _error(404, f"there is no ReFT adapter {body.reft_name!r}", "NotFoundError")
    return JSONResponse({"status": "ok", "name": body.reft_name})


async def reft_adapters(raw: Request) -> JSONResponse:
    """All adapters, and what they edit."""
    cards = raw.app.state.openai_serving_models.lora_requests.cards()
    return JSONResponse({"object": "list", "data": [{"id": name, **card.as_dict()} for name, card in cards.items()]})


def _refused(state: Any) -> JSONResponse | None:
    if getattr(state.args, "reft_allow_runtime_loading", False):
        return None
    return _error(403, "adapters cannot be loaded at run time; start the server with --reft-allow-runtime-loading")


def _error(code: int, message: str, kind: str = "BadRequestError") -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status_code=code)
