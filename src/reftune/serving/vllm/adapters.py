"""Adapters as a server process knows them: files read, checked and folded; and what was read before.

Must not know: the engine, HTTP.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from ...data.style import PromptStyle
from ...errors import DataError
from ..adapters import AdapterError, AdapterFiles, read_adapter
from ..cards import AdapterCard, group_facts
from ..folded import FoldedAdapter, fold_adapter
from ..modules import FILES
from ..plans import most_sets
from .architectures import ARCHITECTURES
from .options import Options

__all__ = ["ReadAdapter", "Reader"]

# Folders that are not read again as long as they are as they were.
KNOWN = 10_000


class ReadAdapter(NamedTuple):
    """For the workers the maps, for everybody else the card."""

    maps: FoldedAdapter
    card: AdapterCard


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
        self._known: dict[str, tuple[tuple[Any, ...], AdapterCard]] = {}

    def known(self, path: str) -> AdapterCard | None:
        """What was read of a folder before, as long as its files stay as they are."""
        stamp, card = self._known.get(path, (None, None))
        return card if stamp == _stamp(path) else None

    def read(self, path: str) -> ReadAdapter:
        """The adapter in a folder.

        Raises:
            AdapterError: it cannot be served; the message says why.
        """
        stamp = _stamp(path)
        files = read_adapter(path)
        maps = self._folded(path, files)
        try:
            style = PromptStyle.read(path)
        except DataError as error:
            raise AdapterError(str(error)) from error
        card = _card(files, maps, style)
        self._known[path] = stamp, card
        if len(self._known) > KNOWN:
            # a loop may write a folder for each of its steps
            del self._known[next(iter(self._known))]
        return ReadAdapter(maps, card)

    def _folded(self, path: str, files: AdapterFiles) -> FoldedAdapter:
        prefix = ARCHITECTURES[self.architecture].path
        adapter = fold_adapter(files, layers=self.layers, width=self.width, prefix=prefix)
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


def _card(files: AdapterFiles, maps: FoldedAdapter, style: PromptStyle | None) -> AdapterCard:
    # workers count sites as the maps do
    layers = tuple(tuple(layer for layer, at in maps.layers.items() if at == site) for site in range(len(maps.sites)))
    return AdapterCard(maps.digest, maps.sites, layers, group_facts(files.groups), style)


def _stamp(path: str) -> tuple[Any, ...]:
    """Another one whenever a file of the folder was written."""
    return tuple(_state(Path(path) / name) for name in FILES)


def _state(file: Path) -> tuple[int, ...] | None:
    try:
        state = os.stat(file)
    except (OSError, ValueError):
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
