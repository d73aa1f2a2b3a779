"""This server, as fine-tuning knows it: its base model, and how adapters come and go in all of its processes.

Must not know: routes, how jobs are run.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY

from ...config import ReftConfig
from ...errors import ReftuneError
from ..adapters import AdapterError
from ..folded import check_linear
from ..jobs import fine_tuning_of
from ..jobs.metrics import JobsCollector
from ..jobs.plan import Base
from ..jobs.service import Jobs
from ..jobs.shelf import Loaded
from ..plans import Sites, sets_by_length
from .adapters import Reader
from .registry import Registry

__all__ = ["VllmHost", "jobs_of"]

Change = Callable[[str], Awaitable[None]]


class VllmHost:
    """From any thread but the event loop's."""

    def __init__(self, registry: Registry, reader: Reader, *, load: Callable[[str, str], Any], unload: Change) -> None:
        """`load`, of a name and a folder, and `unload`, of a name: coroutines of the running loop."""
        self.registry = registry
        self.reader = reader
        self._load = load
        self._unload = unload
        self._loop = asyncio.get_running_loop()

    def check(self, config: ReftConfig, sites: Sites) -> None:
        groups = config.resolved_groups()
        check_linear(groups, "such an adapter")
        ranks = [sum(groups[part.group].r for part in parts) for sets in sets_by_length(sites) for parts in sets]
        if max(ranks, default=0) > self.reader.options.max_rank:
            raise AdapterError(
                f"such an adapter edits a token by rank {max(ranks)}, but this server takes ranks up to "
                f"{self.reader.options.max_rank}; start it with --reft-max-rank {max(ranks)}"
            )

    def load(self, name: str, folder: Path) -> None:
        self._wait(self._load(name, str(folder)))

    def unload(self, name: str) -> None:
        self._wait(self._unload(name))

    def loaded(self) -> list[Loaded]:
        return [Loaded.of(name, card) for name, card in self.registry.cards().items()]

    def _wait(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()


def jobs_of(args: Any, config: Any, base: str, host: VllmHost) -> Jobs | None:
    """What trains on the base model of this server, `base` to clients; None where nothing is to be trained.

    Raises:
        ReftuneError: the folder cannot be used.
    """
    settings = fine_tuning_of(args)
    if settings is None:
        return None
    model = config.model_config
    path = Path(model.model)
    text = model.hf_text_config
    # the engine has its own dtype names; what is trained on is what is served
    found = Base(
        base,
        str(path.absolute()) if path.is_dir() else model.model,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        limit=model.max_model_len,
        dtype=str(model.dtype).rpartition(".")[2],
    )
    weights = sum(file.stat().st_size for file in path.glob("*.safetensors")) if path.is_dir() else 0
    jobs = Jobs(settings, found, host, host.loaded, weights=weights)
    try:
        REGISTRY.register(JobsCollector(jobs.store))
    except ValueError as error:
        raise ReftuneError("fine-tuning was set up twice in one process") from error
    return jobs
