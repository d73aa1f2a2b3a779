"""Where the frozen prefixes of examples are kept: device memory, CPU memory or memory-mapped files.

Must not know: models, rows, what the tensors mean.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ReftuneError
from ..files import check_writable, existing_part, whole

__all__ = ["DiskStore", "Entry", "MemoryStore", "Store", "choose_store", "remove_folder"]

GB = 1e9
SHARD_BYTES = 256 * 10**6
# part of what is free that may be taken where no limit is given
SHARE = 0.5


class Entry(NamedTuple):
    """What does not change of one example: hidden [R, Q, d] behind R constant blocks, and kv [L, 2, H, W, D]."""

    hidden: Tensor
    kv: Tensor


class Store(Protocol):
    """Entries by key.  A key says all that its entry depends on."""

    where: str

    def __contains__(self, key: str) -> bool: ...
    def __getitem__(self, key: str) -> Entry: ...
    def add(self, entries: dict[str, Entry]) -> None: ...
    def flush(self) -> None: ...
    def close(self, *, keep: bool) -> None: ...


class MemoryStore:
    """Entries in the memory of `device`; on the CPU `pinned`, so that a GPU fetches them without waiting."""

    def __init__(self, device: torch.device, *, pinned: bool = False) -> None:
        self.device = device
        self.pinned = pinned
        self.where = "CPU memory" if device.type == "cpu" else f"memory of {device}"
        self._entries: dict[str, Entry] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __getitem__(self, key: str) -> Entry:
        return self._entries[key]

    def add(self, entries: dict[str, Entry]) -> None:
        for key, entry in entries.items():
            moved = [tensor.to(self.device) for tensor in entry]
            self._entries[key] = Entry(*(t.pin_memory() if self.pinned else t for t in moved))

    def flush(self) -> None:
        """Nothing is pending."""

    def close(self, *, keep: bool) -> None:
        self._entries = {}


class DiskStore:
    """Entries in safetensors files below `folder`, read by memory mapping.  What is there already is found again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where = f"files below {folder}"
        folder.mkdir(parents=True, exist_ok=True)
        self._pending: dict[str, Entry] = {}
        self._files: dict[str, safe_open] = {}
        for path in folder.glob("*.safetensors"):
            self._open(path)

    def __contains__(self, key: str) -> bool:
        return key in self._files or key in self._pending

    def __getitem__(self, key: str) -> Entry:
        if key in self._pending:
            return self._pending[key]
        file = self._files[key]
        return Entry(file.get_tensor(f"{key}.hidden"), file.get_tensor(f"{key}.kv"))

    def add(self, entries: dict[str, Entry]) -> None:
        self._pending.update({key: Entry(*(tensor.cpu() for tensor in entry)) for key, entry in entries.items()})
        if sum(t.nbytes for entry in self._pending.values() for t in entry) >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as one file, whole or not at all.

        Raises:
            ReftuneError: it cannot be written.
        """
        if not self._pending:
            return
        tensors = {
            f"{key}.{name}": tensor.contiguous()
            for key, entry in self._pending.items()
            for name, tensor in zip(Entry._fields, entry, strict=True)
        }
        # named by its first key: the same example is not written twice by one process
        path = self.folder / f"{next(iter(self._pending))}.safetensors"
        with whole(path) as part:
            save_file(tensors, str(part))
        self._pending = {}
        self._open(path)

    def close(self, *, keep: bool) -> None:
        if keep:
            # what cannot be written is computed again
            with suppress(ReftuneError):
                self.flush()
        self._files, self._pending = {}, {}
        if not keep:
            remove_folder(self.folder)

    def _open(self, path: Path) -> None:
        try:
            file = safe_open(str(path), framework="pt")
        except SafetensorError:
            # not whole, whoever did that: what was in it is computed again
            path.unlink()
            return
        for name in file.keys():  # noqa: SIM118 — it is no mapping
            self._files[name.rsplit(".", 1)[0]] = file


def remove_folder(folder: Path) -> None:
    """With its parent, if that is empty then."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


def choose_store(size: int, *, device: torch.device, folder: Path, limit_gb: float | None) -> Store | str:
    """The first of device memory, CPU memory and disk that `size` bytes fit in; if none, why not.

    `limit_gb` is the most that memory may take; by default half of what is free.
    """
    if device.type == "cuda" and size <= _limit(torch.cuda.mem_get_info(device)[0], limit_gb):
        return MemoryStore(device)
    memory = _limit(psutil.virtual_memory().available, limit_gb)
    if size <= memory:
        return MemoryStore(torch.device("cpu"), pinned=device.type == "cuda")
    try:
        check_writable(folder)
    except ReftuneError as error:
        return f"its {size / GB:.1f} GB do not fit in memory (limit {memory / GB:.1f} GB; reuse_limit_gb), and {error}"
    disk = SHARE * shutil.disk_usage(existing_part(folder)).free
    if size <= disk:
        return DiskStore(folder)
    return (
        f"its {size / GB:.1f} GB fit neither in memory (limit {memory / GB:.1f} GB; reuse_limit_gb) nor on the disk of "
        f"{str(folder)!r} (half of what is free: {disk / GB:.1f} GB)"
    )


def _limit(free: int, limit_gb: float | None) -> float:
    return SHARE * free if limit_gb is None else min(limit_gb * GB, 0.9 * free)
