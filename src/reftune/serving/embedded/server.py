"""The server's life: model and adapters are loaded, requests answered, and what runs is finished at the end.

Must not know: what requests ask for.
"""

from __future__ import annotations

import copy
import logging
import signal
import socket
from types import FrameType
from typing import Any

import torch
import uvicorn

from ...data.style import PromptStyle
from ...errors import ReftuneError
from ...generation import end_tokens
from ...models import check_model, load_base
from ..adapters import AdapterFiles, check_layers, check_width, read_adapter
from ..jobs.routes import FRAME, UPLOADS
from ..modules import ReftModule, folder_of
from ..page import PATH
from ..prompts import PromptReader, context_length, style_of
from .api import Service, make_app
from .bank import load_to
from .engine import Engine, EngineOptions
from .gate import PATIENCE, Gate
from .host import jobs_of
from .metrics import Metrics
from .settings import ServeSettings

__all__ = ["EmbeddedServer", "build", "run"]

logger = logging.getLogger("reftune.serving")
# Seconds that an idle connection stays.  Clients keep theirs for 5 (httpx, openai) and proxies for 60: if the server is
# no later than they are, it can close one while a request is on its way, which is then lost.
KEEP_ALIVE = 65


class EmbeddedServer(uvicorn.Server):
    """On the first signal: new requests are answered 503, those that run are finished.  On the second: the end."""

    def __init__(self, service: Service) -> None:
        settings = service.settings
        tuning = settings.fine_tuning
        self.service = service
        self.gate = Gate(
            make_app(service),
            api_key=settings.api_key,
            max_body_bytes=settings.max_body_bytes,
            body_timeout=settings.request_timeout,
            on_done=service.metrics.request,
            page=PATH if settings.ui else None,
            larger={} if tuning is None else {UPLOADS: tuning.max_file_bytes + FRAME},
        )
        service.draining = lambda: self.gate.draining
        super().__init__(
            uvicorn.Config(
                self.gate,
                host=settings.host,
                port=settings.port,
                log_level=settings.log_level,
                timeout_keep_alive=KEEP_ALIVE,
                # all is answered by then; what is left are clients that do not read it
                timeout_graceful_shutdown=int(PATIENCE),
                lifespan="off",
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.gate.draining:
            self.should_exit = self.force_exit = True
        self.drain(signal.Signals(sig).name)

    def drain(self, reason: str) -> None:
        """From now on, no new requests; when none runs any more, the server ends."""
        if not self.gate.draining:
            logger.warning("%s: %d requests are finished, then the server ends", reason, self.gate.in_flight)
        self.gate.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self.gate.draining:
            self.gate.drop_idle()
            self.should_exit |= not self.gate.in_flight
        return await super().on_tick(counter)


def run(settings: ServeSettings) -> None:
    """Serve until the end."""
    service = build(settings)
    server = EmbeddedServer(service)
    try:
        server.run()
    finally:
        service.stop(abort=server.force_exit)


def build(settings: ServeSettings) -> Service:
    """Everything but the socket; the engine runs.

    Raises:
        ReftuneError: the model or an adapter cannot be loaded.
    """
    # whatever can be known to be wrong is told before the model is loaded, which can take minutes
    limit = check_base(settings)
    check_address(settings)
    found = [read_module(settings, module) for module in settings.modules]
    dtype = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    model, tokenizer = load_base(settings.model, dtype=dtype)
    ends = frozenset(end_tokens(getattr(model, "generation_config", None), tokenizer) or ())
    metrics = Metrics()
    engine = Engine(
        load_to(model, settings.device),
        options=EngineOptions(
            max_batch_size=settings.max_batch_size,
            max_batch_tokens=settings.max_batch_tokens,
            batch_wait=settings.batch_wait,
            slice_steps=settings.slice_steps,
            max_queue=settings.max_queue,
            max_adapters=settings.max_adapters,
        ),
        pad_token=pad if isinstance(pad := tokenizer.pad_token_id, int) else 0,
        watcher=metrics,
    )
    metrics.watch("waiting_rows", "Rows that wait in the queue.", lambda: engine.waiting)
    metrics.watch("running_rows", "Rows of the batch that runs.", lambda: engine.running)
    metrics.watch("adapters_loaded", "Adapters that are loaded.", lambda: len(engine.bank))
    embeddings: Any = model.get_input_embeddings()
    reader = PromptReader(tokenizer, limit=limit, vocabulary=int(embeddings.weight.shape[0]))
    service = Service(settings, engine, reader, copy.deepcopy(tokenizer), ends, metrics)
    engine.start()
    try:
        for module, (files, style) in zip(settings.modules, found, strict=True):
            engine.load(module.name, files, style=style).result()
        if settings.fine_tuning is not None:
            service.jobs = jobs_of(service)
            service.jobs.start(alone=True)
    except BaseException:
        service.stop()
        raise
    return service


def check_base(settings: ServeSettings) -> int:
    """Look at the base model's configuration and at the device; the most tokens of prompt and answer together.

    Raises:
        ReftuneError: there is no such model, or it cannot be served as it is asked for.
    """
    config: Any = check_model(settings.model)
    if config.is_encoder_decoder:
        raise ReftuneError(f"{settings.model!r} is an encoder-decoder; only decoders are served")
    if settings.device != "auto":
        try:
            torch.empty(0, device=settings.device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ReftuneError(f"device={settings.device!r} cannot be used: {str(error).splitlines()[0]}") from error
    limit = context_length(config)
    if settings.max_model_len is None:
        return limit
    if settings.max_model_len > limit:
        raise ReftuneError(f"max_model_len={settings.max_model_len}, but this model takes {limit} tokens")
    return settings.max_model_len


def check_address(settings: ServeSettings) -> None:
    """Refuse a host and port at which nothing can listen, as where another server does.

    Raises:
        ReftuneError: the system says why.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            # as uvicorn does
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except (OSError, UnicodeError) as error:
        raise ReftuneError(f"the server cannot listen at {settings.host}:{settings.port}: {error}") from error


def read_module(settings: ServeSettings, module: ReftModule) -> tuple[AdapterFiles, PromptStyle | None]:
    """An adapter that is served from the start, compared with the base model's configuration.

    Raises:
        ReftuneError: it cannot be served.
    """
    folder = folder_of(module)
    files = read_adapter(folder, limit=settings.max_adapter_bytes)
    text = check_model(settings.model).get_text_config()
    check_width(files, text.hidden_size)
    check_layers(files, text.num_hidden_layers)
    return files, style_of(folder, name=module.name)
