"""Adapters on the base model: put there, exchanged and taken away between batches, each under a slot of its own.

Requests name adapters as users do; PEFT knows them by slots ("a0", "a1", …), so that a name may hold any character, and
a reload puts the new adapter beside the old one, which answers that have begun go on with.

Must not know: the queue, HTTP.  All but `find` and iterating is for the worker thread.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from peft.utils import set_peft_model_state_dict
from torch import nn

from ...errors import ReftuneError
from ..adapters import AdapterError, AdapterFiles, check_layers, check_width
from ..cards import AdapterCard
from .edits import card_of

__all__ = ["BASE", "AdapterBank", "Entry"]

BASE = "__base__"


@dataclass(eq=False)
class Entry:
    """A loaded adapter: what users call it, where it came from, and how many answers need it."""

    name: str
    path: str
    slot: str
    card: AdapterCard
    style: Any = None
    created: int = field(default_factory=lambda: int(time.time()))
    users: int = 0
    retired: bool = False


class AdapterBank:
    """The base model with all adapters that are loaded."""

    def __init__(self, model: Any, *, limit: int) -> None:
        self.base = model
        self.limit = limit
        self.adapted: PeftModel | None = None
        self._entries: dict[str, Entry] = {}
        self._retired: list[Entry] = []
        self._free = [f"a{i}" for i in reversed(range(2 * limit + 1))]
        self._lock = threading.Lock()

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

    def put(self, name: str, files: AdapterFiles, *, style: Any = None, replace: bool = False) -> Entry:
        """Load an adapter.  One that cannot be loaded changes nothing.

        Raises:
            ReftuneError: the name is taken, there are too many adapters, or the adapter does not fit the model.
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
            self._add(slot, files)
        except BaseException:
            self._free.append(slot)
            raise
        assert self.adapted is not None
        entry = Entry(name, str(files.path), slot, card_of(self.adapted, slot, files.digest), style)
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
            arguments.pop("prompt_length")
            return self.base.generate(**arguments)
        names = [BASE if entry is None else entry.slot for entry in adapters]
        generator: Any = self.adapted
        return generator.generate(adapter_names=names, **arguments)

    def _retire(self, entry: Entry | None) -> None:
        if entry is not None:
            entry.retired = True
            self._retired.append(entry)

    def _add(self, slot: str, files: AdapterFiles) -> None:
        text: Any = self.base.config.get_text_config()
        check_width(files, text.hidden_size)
        check_layers(files, text.num_hidden_layers)
        config = copy.deepcopy(files.config)
        config.inference_mode, config.task_type = True, None
        try:
            if self.adapted is None:
                self.adapted = PeftModel(self.base, config, adapter_name=slot)
            else:
                self.adapted.add_adapter(slot, config)
            self._fill(slot, files)
        except (ValueError, TypeError, RuntimeError, KeyError, AttributeError, AssertionError) as error:
            self._forget(slot)
            if isinstance(error, AdapterError):
                raise
            reason = " ".join(str(error).split())[:500]
            raise AdapterError(f"the adapter {str(files.path)!r} does not fit this model: {reason}") from error
        self.adapted.eval()

    def _fill(self, slot: str, files: AdapterFiles) -> None:
        assert self.adapted is not None
        result = set_peft_model_state_dict(self.adapted, dict(files.tensors), adapter_name=slot)
        missing = [key for key in result.missing_keys if f".{slot}." in key]
        if missing or result.unexpected_keys:
            keys = [*missing, *result.unexpected_keys]
            what = "lacks" if missing else "has, but the model has not,"
            raise AdapterError(
                f"the adapter {str(files.path)!r} was made for another model: it {what} {len(keys)} tensors such as "
                f"{keys[0].replace(f'.{slot}', '')!r}"
            )
        # nothing is active but what a batch names
        tuner: Any = self.adapted.base_model
        tuner.set_adapter([])

    def _forget(self, slot: str) -> None:
        """Undo an `_add` that failed anywhere."""
        if self.adapted is not None and slot in self.adapted.peft_config:
            self._remove(slot)

    def _remove(self, slot: str) -> None:
        assert self.adapted is not None
        if len(self.adapted.peft_config) > 1:
            self.adapted.delete_adapter(slot)
            # PEFT keeps the name of an adapter that it took for active, and looks it up at every call
            self.adapted.active_adapter = next(iter(self.adapted.peft_config))
            return
        tuner: Any = self.adapted.base_model
        tuner.unload()
        self.adapted = None


def load_to(model: nn.Module, device: str) -> nn.Module:
    """The model on its device, for inference."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval().requires_grad_(False)
