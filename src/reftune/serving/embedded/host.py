"""This server, as fine-tuning knows it: its base model, and how adapters come and go.

Must not know: HTTP, how jobs are run.
"""

from __future__ import annotations

from concurrent.futures import TimeoutError as StillRunning
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...config import ReftConfig
from ...models import resolve_model
from ..adapters import read_adapter
from ..jobs.metrics import JobsCollector
from ..jobs.plan import Base
from ..jobs.service import Jobs
from ..jobs.shelf import Loaded
from ..plans import Sites
from ..prompts import style_of
from .engine import Engine

if TYPE_CHECKING:
    from .api import Service

__all__ = ["jobs_of"]

# Seconds; answers that need an adapter go on without anybody waiting for them.
PATIENCE = 5.0


class EngineHost:
    """From any thread but the engine's."""

    def __init__(self, engine: Engine, *, limit: int) -> None:
        self.engine = engine
        self.limit = limit

    def check(self, config: ReftConfig, sites: Sites) -> None:
        """All can be served."""

    def load(self, name: str, folder: Path) -> None:
        files = read_adapter(folder, limit=self.limit)
        self.engine.load(name, files, style=style_of(folder, name=name), replace=True).result()

    def unload(self, name: str) -> None:
        with suppress(StillRunning):
            self.engine.unload(name).result(PATIENCE)

    def loaded(self) -> list[Loaded]:
        return [Loaded.of(entry.name, entry.card) for entry in self.engine.bank]


def jobs_of(service: Service) -> Jobs:
    """What trains on the base model of this server."""
    settings, engine = service.settings, service.engine
    assert settings.fine_tuning is not None
    model: Any = engine.bank.base
    text = model.config.get_text_config()
    path = resolve_model(settings.model)
    base = Base(
        settings.base_name,
        str(Path(path).absolute()) if Path(path).is_dir() else path,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        limit=service.reader.limit,
        dtype=settings.dtype,
    )
    host = EngineHost(engine, limit=settings.max_adapter_bytes)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    jobs = Jobs(settings.fine_tuning, base, host, host.loaded, weights=weights)
    service.metrics.registry.register(JobsCollector(jobs.store))
    return jobs
