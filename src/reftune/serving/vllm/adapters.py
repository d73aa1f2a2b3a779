"""Adapters as a server process knows them: files read, checked and folded; and what was read before.

Must not know: the engine, HTTP.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..adapters import AdapterError, read_adapter
from ..folded import FoldedAdapter, fold_adapter
from ..plans import most_sets
from .architectures import ARCHITECTURES
from .options import Options
from .requests import Wire

__all__ = ["Reader"]

FILES = ("adapter_config.json", "adapter_model.safetensors")


class Reader:
    """Reads adapters for one model."""

    def __init__(self, config: Any, options: Options) -> None:
        text = config.model_config.hf_text_config
        self.architecture: str = config.model_config.architecture
        self.layers: int = text.num_hidden_layers
        self.width: int = text.hidden_size
        self.options = options
        sequences = config.scheduler_config.max_num_seqs
        self.most_sets = max(1, options.slots_for(sequences) // sequences)
        self.on_cpu = config.device_config.device_type == "cpu"
        self._known: dict[tuple[Any, ...], Wire] = {}

    def known(self, path: str) -> Wire | None:
        """What was read of a folder before, as long as its files stay as they are."""
        return self._known.get(_stamp(path))

    def read(self, path: str) -> FoldedAdapter:
        """The adapter in a folder.

        Raises:
            AdapterError: it cannot be served; the message says why.
        """
        stamp = _stamp(path)
        found = self._checked(path)
        self._known[stamp] = Wire(found.digest, found.sites)
        return found

    def _checked(self, path: str) -> FoldedAdapter:
        prefix = ARCHITECTURES[self.architecture].path
        adapter = fold_adapter(read_adapter(path), layers=self.layers, width=self.width, prefix=prefix)
        if adapter.rank > self.options.max_rank:
            raise AdapterError(
                f"the adapter {path!r} has rank {adapter.rank}, but this server takes ranks up to "
                f"{self.options.max_rank}; start it with --reft-max-rank {adapter.rank}"
            )
        if not self.on_cpu and most_sets(adapter.sites) > self.most_sets:
            raise AdapterError(
                f"the adapter {path!r} edits a prompt by {most_sets(adapter.sites)} different sets of interventions, "
                f"but there is room for {self.most_sets} of each request; start the server with more --reft-slots"
            )
        return adapter


def _stamp(path: str) -> tuple[Any, ...]:
    """Another one whenever a file of the folder was written."""
    try:
        states = [os.stat(Path(path) / name) for name in FILES]
    except (OSError, ValueError):
        return (path,)
    return (path, *((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in states))
