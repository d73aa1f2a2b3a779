"""Adapters on the base model: put there, exchanged and taken away between batches, each under a slot of its own.

Requests name adapters as users do; PEFT knows them by slots ("a0", "a1", …), so that a name may hold any character, and
a reload puts the new adapter beside the old one, which answers that have begun go on with.

All of the work is done by `prepare`, beside running answers; what `put` does between two batches takes a moment.
PEFT's own way of adding an adapter goes through all modules many times, which takes seconds: so it is done once, before
the first request, for an adapter that nobody asks for.

Must not know: the queue, HTTP.  All but `find`, `prepare` and iterating is for the worker thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from ...config import ReftConfig
from ...data.style import PromptStyle
from ...errors import ReftuneError
from ...tuner.bases import share_bases
from ...tuner.layer import BASE, ReftLayer
from ..adapters import AdapterError, AdapterFiles
from ..cards import AdapterCard
from .sites import ModelSites, Prepared

__all__ = ["BASE", "AdapterBank", "Entry"]

# An adapter without effect: nothing is active but what a batch names, and nobody can name this one.
IDLE = "idle"


@dataclass(eq=False)
class Entry:
    """A loaded adapter: what users call it, where it came from, and how many answers need it."""

    name: str
    path: str
    slot: str
    card: AdapterCard
    created: int = field(default_factory=lambda: int(time.time()))
    users: int = 0
    retired: bool = False


class AdapterBank:
    """The base model with all adapters that are loaded."""

    def __init__(self, model: Any, *, limit: int) -> None:
        self.base = model
        self.limit = limit
        self._entries: dict[str, Entry] = {}
        self._retired: list[Entry] = []
        self._layers: dict[str, list[ReftLayer]] = {}
        self._free = [f"a{i}" for i in reversed(range(2 * limit + 1))]
        self._lock = threading.Lock()
        self._sites = ModelSites(model)
        try:
            self.adapted: Any = PeftModel(model, ReftConfig(r=1, layers=[0], positions="f1"), adapter_name=IDLE).eval()
        except ValueError as error:
            # it serves all the same, without adapters
            self.adapted, self.problem = None, str(error)
        else:
            self.adapted.base_model.set_adapter([])
            model.requires_grad_(False)

    def __iter__(self) -> Iterator[Entry]:
        with self._lock:
            return iter(list(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, name: str, *, use: int = 0) -> Entry | None:
        """The adapter of a name; it stays until `release` was called `use` times.  From any thread."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is not None:
                entry.users += use
            return entry

    def release(self, entry: Entry) -> None:
        """Undo one `use` of `find`."""
        with self._lock:
            entry.users -= 1

    def prepare(self, files: AdapterFiles, style: PromptStyle | None = None) -> Prepared:
        """All that can be done for an adapter beside running answers.  From any thread.

        Raises:
            AdapterError: it does not fit the model.
        """
        if self.adapted is None:
            raise AdapterError(f"this model takes no adapters: {self.problem}")
        return self._sites.prepare(files, style)

    def put(self, name: str, prepared: Prepared, *, replace: bool = False) -> Entry:
        """Put an adapter on the model.  One that cannot be put there changes nothing.

        Raises:
            ReftuneError: the name is taken, or there are too many adapters.
        """
        old = self._entries.get(name)
        if old is not None and not replace:
            raise ReftuneError(f"the adapter {name!r} is loaded already; load_inplace=true exchanges it")
        if old is None and len(self._entries) >= self.limit:
            raise ReftuneError(f"{self.limit} adapters are loaded, which is all that this server takes; unload one")
        if not self._free:
            raise ReftuneError("too many adapters are being exchanged at once; wait until running answers have ended")
        slot = self._free.pop()
        try:
            self._add(slot, prepared)
        except BaseException:
            self._remove(slot)
            self._free.append(slot)
            raise
        entry = Entry(name, prepared.path, slot, prepared.card)
        with self._lock:
            self._entries[name] = entry
            self._retire(old)
        self.sweep()
        return entry

    def take(self, name: str) -> Entry:
        """Unload an adapter: no new answer gets it, and it goes when none needs it any more (see `sweep`).

        Raises:
            ReftuneError: no adapter has this name.
        """
        with self._lock:
            entry = self._entries.pop(name, None)
            if entry is None:
                known = ", ".join(map(repr, self._entries)) or "none"
                raise ReftuneError(f"no adapter is called {name!r}; loaded are: {known}")
            self._retire(entry)
        self.sweep()
        return entry

    def sweep(self) -> None:
        """Remove the retired adapters that nobody needs any more."""
        with self._lock:
            gone = [entry for entry in self._retired if entry.users == 0]
            self._retired = [entry for entry in self._retired if entry.users]
        for entry in gone:
            self._remove(entry.slot)
            self._free.append(entry.slot)

    def is_gone(self, entry: Entry) -> bool:
        return entry.retired and entry not in self._retired

    def generate(self, adapters: Sequence[Entry | None], **arguments: Any) -> Any:
        """`generate` of the model, each row with its adapter."""
        if self.adapted is None:
            for name in ("prompt_length", "strength", "spans"):
                del arguments[name]
            return self.base.generate(**arguments)
        names = [BASE if entry is None else entry.slot for entry in adapters]
        return self.adapted.generate(adapter_names=names, **arguments)

    def _retire(self, entry: Entry | None) -> None:
        if entry is not None:
            entry.retired = True
            self._retired.append(entry)

    def _add(self, slot: str, prepared: Prepared) -> None:
        tuner = self.adapted.base_model
        state = tuner._watch_model()
        changed = False
        with self._sites.lock:
            layers = self._layers[slot] = []
            for site, groups, phis in prepared.places:
                host = self._sites.modules[site.path]
                before = host._modules.get(site.child)
                layer = tuner._layer_at(site, host, state)
                layers.append(layer)
                only_prompts = layer.only_prompts
                layer.adopt(slot, groups, phis)
                changed |= layer is not before or layer.only_prompts != only_prompts
            # so that requests may name it
            tuner.peft_config[slot] = prepared.config
        if changed:
            self._share_bases()

    def _remove(self, slot: str) -> None:
        tuner = self.adapted.base_model
        with self._sites.lock:
            layers = self._layers.pop(slot, [])
            for layer in layers:
                layer.forget(slot)
            tuner.peft_config.pop(slot, None)
            if any(not layer.groups for layer in layers):
                tuner._remove_layers(lambda layer: not layer.groups)
        self._share_bases()

    def _share_bases(self) -> None:
        for stack in self._sites.stacks:
            share_bases(self.base.get_submodule(stack.path))


def load_to(model: nn.Module, device: str) -> nn.Module:
    """The model on its device, for inference."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval().requires_grad_(False)
