"""Which adapters a process has had its engine load, and which of them it could do without.

An adapter that has a name in the server stays until its name goes.  One that a request brought along (`ReftRequest`
offline, an RL loop) stays until there is no room or its folder holds another one.

Must not know: the engine, files.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = ["Loaded"]


class Loaded:
    """Adapters by their digests.  For one thread, or one event loop."""

    def __init__(self) -> None:
        self._used: OrderedDict[str, None] = OrderedDict()
        self._named: set[str] = set()
        self._of_folder: dict[str, str] = {}
        self._coming: Counter[str] = Counter()

    def __contains__(self, digest: str) -> bool:
        return digest in self._used

    @contextmanager
    def coming(self, digest: str) -> Iterator[None]:
        """Inside, a request for the adapter is on its way to the engine, which cannot know of it yet."""
        self._coming[digest] += 1
        self.touch(digest)
        try:
            yield
        finally:
            self._coming[digest] -= 1
            if not self._coming[digest]:
                del self._coming[digest]

    def touch(self, digest: str) -> None:
        """A request is for it."""
        if digest in self._used:
            self._used.move_to_end(digest)

    def add(self, digest: str, *, named: bool, dropped: Iterable[str] = ()) -> None:
        """The engine has it now, and has dropped others for it."""
        for other in dropped:
            self.discard(other)
        self._used[digest] = None
        self._used.move_to_end(digest)
        if named:
            self._named.add(digest)

    def discard(self, digest: str) -> None:
        """The engine has it no more, or lets it go."""
        self._used.pop(digest, None)
        self._named.discard(digest)
        self._of_folder = {folder: held for folder, held in self._of_folder.items() if held != digest}

    def spare(self) -> list[str]:
        """What the engine may drop unless requests for it run, the longest unused first."""
        return [digest for digest in self._used if digest not in self._named and digest not in self._coming]

    def rewritten(self, folder: str, digest: str) -> str | None:
        """The adapter that a folder held before it held this one, unless something else still needs it."""
        former = self._of_folder.get(folder)
        self._of_folder[folder] = digest
        others = set(self._of_folder.values()) | self._named | self._coming.keys()
        return former if former in self._used and former not in others else None
