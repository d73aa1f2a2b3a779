"""The adapters of a server: what is told of them, and how they come, go and are taken along.

Must not know: HTTP, the backends, how they were trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..cards import AdapterCard
from ..refusals import ApiError, no_such
from .blobs import Folder
from .plan import Base, groups_told
from .schemas import AdapterObject, Deleted
from .store import Job, Store
from .supervisor import Host, name_of

__all__ = ["Loaded", "Shelf"]


@dataclass(frozen=True)
class Loaded:
    """An adapter that a server has loaded."""

    name: str
    groups: list[dict[str, Any]]
    layers: list[int]

    @classmethod
    def of(cls, name: str, card: AdapterCard) -> Loaded:
        """What is told of a card: layers as the numbers of blocks."""
        sites = list(zip(card.sites, card.layers, strict=True))
        groups = [
            {**facts, "layers": sorted({i for site, at in sites for i in at if any(part[0] == n for part in site)})}
            for n, facts in enumerate(card.groups)
        ]
        return cls(name, groups, sorted({layer for at in card.layers for layer in at}))


class Shelf:
    """From any thread."""

    def __init__(
        self, store: Store, folder: Folder, base: Base, host: Host, loaded: Callable[[], list[Loaded]]
    ) -> None:
        """`loaded`: all adapters that the server has."""
        self.store = store
        self.folder = folder
        self.base = base
        self.host = host
        self.loaded = loaded

    def adapters(self) -> list[AdapterObject]:
        """Those of jobs, the newest first, then others that the server has."""
        loaded = {adapter.name: adapter for adapter in self.loaded()}
        made = [self._adapter_object(job, loaded) for job in reversed(self.store.of_status("succeeded"))]
        names = {adapter.id for adapter in made}
        others = [found for name, found in loaded.items() if name not in names]
        return made + [
            AdapterObject(id=other.name, loaded=True, groups=other.groups, layers=other.layers) for other in others
        ]

    def adapter(self, name: str) -> AdapterObject:
        found = next((adapter for adapter in self.adapters() if adapter.id == name), None)
        if found is None:
            raise no_such("adapter", name)
        return found

    def load(self, name: str) -> AdapterObject:
        job = self._made(name)
        if name not in {adapter.name for adapter in self.loaded()}:
            self.host.load(name, self.folder.adapter(job.id))
        self.store.note(job.id, served=True)
        return self.adapter(name)

    def unload(self, name: str) -> AdapterObject:
        job = self._made(name)
        self.store.note(job.id, served=False)
        if name in {adapter.name for adapter in self.loaded()}:
            self.host.unload(name)
        return self.adapter(name)

    def download(self, name: str) -> tuple[str, bytes]:
        """A name for the file, and the zip."""
        job = self._made(name)
        return f"{job.id}.zip", self.folder.zipped(job.id)

    def delete(self, name: str) -> Deleted:
        """Unload it and remove its files, with its job."""
        job = self._made(name)
        self.unload(name)
        self.store.remove_job(job.id)
        self.folder.forget_adapter(job.id)
        return Deleted(id=name, object="reft.adapter")

    def _made(self, name: str) -> Job:
        for job in self.store.of_status("succeeded"):
            if name_of(job) == name:
                return job
        if any(adapter.name == name for adapter in self.loaded()):
            raise ApiError(400, f"{name!a} was not made by a job of this server, and is not managed here")
        raise no_such("adapter", name)

    def _adapter_object(self, job: Job, loaded: dict[str, Loaded]) -> AdapterObject:
        groups = groups_told(job.spec["reft"], self.base)
        name, training = name_of(job), job.spec["training"]
        return AdapterObject(
            id=name,
            loaded=name in loaded,
            job=job.id,
            created_at=job.finished_at,
            bytes=job.result.get("bytes"),
            parameters=job.result.get("parameters"),
            groups=groups,
            layers=sorted({layer for group in groups for layer in group["layers"]}),
            training_file=training["id"],
            filename=training["filename"],
            rows=training["rows"],
            train_loss=job.result.get("train_loss"),
            valid_loss=job.result.get("valid_loss"),
            metadata=job.spec["metadata"],
        )
