"""The server's life: model and adapters are loaded, requests answered, and what runs is finished at the end.

Must not know: what requests ask for.
"""

from __future__ import annotations

import copy
import logging
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import uvicorn
from huggingface_hub import snapshot_download

from ...errors import ReftuneError
from ...models import HUB_NAME, load_base
from ..adapters import read_adapter
from ..modules import FILES, ReftModule
from ..page import PATH
from .api import Service, make_app
from .bank import load_to
from .engine import Engine, EngineOptions
from .gate import Gate
from .metrics import Metrics
from .prompts import PromptReader, context_length, style_of
from .settings import ServeSettings

__all__ = ["EmbeddedServer", "build", "run"]

logger = logging.getLogger("reftune.serving")


class EmbeddedServer(uvicorn.Server):
    """On the first signal: new requests are answered 503, those that run are finished.  On the second: the end."""

    def __init__(self, service: Service) -> None:
        settings = service.settings
        self.service = service
        self.gate = Gate(
            make_app(service),
            api_key=settings.api_key,
            max_body_bytes=settings.max_body_bytes,
            body_timeout=settings.request_timeout,
            on_done=service.metrics.request,
            page=PATH if settings.ui else None,
        )
        service.draining = lambda: self.gate.draining
        super().__init__(
            uvicorn.Config(
                self.gate,
                host=settings.host,
                port=settings.port,
                log_level=settings.log_level,
                # the page's events are handled by tasks that begin with it
                lifespan="on" if settings.ui else "off",
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
        if self.gate.draining and not self.gate.in_flight:
            self.should_exit = True
        return await super().on_tick(counter)


def run(settings: ServeSettings) -> None:
    """Serve until the end."""
    service = build(settings)
    server = EmbeddedServer(service)
    try:
        server.run()
    finally:
        service.engine.stop(abort=server.force_exit)


def build(settings: ServeSettings) -> Service:
    """Everything but the socket; the engine runs.

    Raises:
        ReftuneError: the model or an adapter cannot be loaded.
    """
    dtype = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    model, tokenizer = load_base(settings.model, dtype=dtype)
    config: Any = model.config
    if config.is_encoder_decoder:
        raise ReftuneError(f"{settings.model!r} is an encoder-decoder; only decoders are served")
    limit = context_length(config)
    if settings.max_model_len is not None:
        if settings.max_model_len > limit:
            raise ReftuneError(f"max_model_len={settings.max_model_len}, but this model takes {limit} tokens")
        limit = settings.max_model_len
    ends = end_tokens(model, tokenizer)
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
        for module in settings.modules:
            load_module(service, module)
    except BaseException:
        engine.stop()
        raise
    return service


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """What ends an answer: as the model's files and its tokenizer say."""
    said = model.generation_config.eos_token_id
    found = said if isinstance(said, (list, tuple)) else [said]
    return frozenset(token for token in (*found, tokenizer.eos_token_id) if isinstance(token, int))


def load_module(service: Service, module: ReftModule) -> None:
    """An adapter that is served from the start.

    Raises:
        ReftuneError: it cannot be loaded.
    """
    folder = Path(module.path)
    if not folder.is_dir() and HUB_NAME.fullmatch(module.path):
        try:
            folder = Path(snapshot_download(module.path, allow_patterns=list(FILES)))
        except (OSError, ValueError) as error:
            raise ReftuneError(
                f"the adapter {module.name!r}: {module.path!r} is neither a folder nor to be had from the Hub"
            ) from error
    files = read_adapter(folder, limit=service.settings.max_adapter_bytes)
    service.engine.load(module.name, files, style=style_of(folder, name=module.name)).result()
