"""Names of a server's adapters, the same in all of its processes.

vLLM looks a request's `model` up in a dictionary; this is it.  With several API processes its content is in a file,
which is looked at whenever a name is looked up, and written whole by whichever process loads or unloads an adapter.

Must not know: the engine, HTTP.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...files import write_text
from ..cards import AdapterCard
from .requests import ReftRequest

__all__ = ["Registry"]


class Registry(dict[str, Any]):
    """Name → request.  vLLM's own LoRA adapters may be among them; these stay in their process."""

    def __init__(self, file: Path | None = None) -> None:
        super().__init__()
        self.file = file
        self._seen: Any = None

    # --- looked at by vLLM --------------------------------------------------------------------------------------------

    def __contains__(self, name: object) -> bool:
        self.refresh()
        return super().__contains__(name)

    def __getitem__(self, name: str) -> Any:
        self.refresh()
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.refresh()
        return super().get(name, default)

    def values(self) -> Any:
        self.refresh()
        return super().values()

    def items(self) -> Any:
        self.refresh()
        return super().items()

    # --- looked at by us ----------------------------------------------------------------------------------------------

    def cards(self) -> dict[str, AdapterCard]:
        """Of the ReFT adapters, by name."""
        self.refresh()
        found = {name: request for name, request in dict.items(self) if isinstance(request, ReftRequest)}
        return {name: request.card for name, request in found.items() if request.card is not None}

    # --- changed by us ------------------------------------------------------------------------------------------------

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Inside, no other process changes the names; what is changed here, all see afterwards."""
        if self.file is None:
            yield
            return
        with open(f"{self.file}.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.refresh()
            yield
            self._write()

    def next_number(self) -> int:
        """A number that no adapter has."""
        return 1 + max((request.lora_int_id for request in dict.values(self)), default=0)

    def refresh(self) -> None:
        """Take over what another process has written."""
        if self.file is None:
            return
        try:
            state = os.stat(self.file)
        except FileNotFoundError:
            return
        seen = (state.st_ino, state.st_mtime_ns, state.st_size)
        if seen == self._seen:
            return
        entries = json.loads(self.file.read_text())
        for name in [name for name, request in dict.items(self) if isinstance(request, ReftRequest)]:
            dict.pop(self, name)
        for entry in entries:
            dict.__setitem__(self, entry["name"], _request(entry))
        self._seen = seen

    def _write(self) -> None:
        assert self.file is not None
        entries = [_entry(request) for request in dict.values(self) if isinstance(request, ReftRequest)]
        write_text(self.file, json.dumps(entries))
        state = os.stat(self.file)
        self._seen = (state.st_ino, state.st_mtime_ns, state.st_size)


def _entry(request: ReftRequest) -> dict[str, Any]:
    assert request.card is not None, "only what is loaded has a name"
    names = {"name": request.lora_name, "number": request.lora_int_id, "path": request.lora_path}
    return {**names, "card": request.card.as_dict()}


def _request(entry: dict[str, Any]) -> ReftRequest:
    return ReftRequest(entry["name"], entry["number"], entry["path"], card=AdapterCard.from_dict(entry["card"]))
