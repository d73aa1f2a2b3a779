"""The edits of one worker: adapters in memory, what each token of the next step is edited by, and the op that does it.

On a CPU the op goes through the adapters of the step, each with its own matrices.  On an accelerator it is a kernel
that is steered by a table token → slot of a bank, so that graphs can be captured and nothing waits for the host.

Must not know: vLLM's runners.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..folded import Affine, FoldedAdapter
from ..plans import Edit, Part
from .bank import Bank

__all__ = ["Edits", "Window", "activate", "active", "edit_rows"]

logger = logging.getLogger("vllm.reftune")

# Digest, Φ, strength.
Key = tuple[str, tuple[Part, ...], float]
# Of strengths other than 1, so many are kept: requests may name any number.
MOST_TURNED = 64


class Window(NamedTuple):
    """What a step computes of one request: its tokens [start, stop), in batch order."""

    digest: str | None
    edits: tuple[Edit, ...]
    start: int
    stop: int
    strength: float = 1.0


@dataclass(frozen=True)
class Chosen:
    """Rows of the step's tokens that are edited alike, and by what at each layer."""

    rows: slice | Tensor
    maps: Mapping[int, Affine]


@dataclass
class Edits:
    """State of a worker.  `layers` are those that it holds."""

    layers: tuple[int, ...]
    bank: Bank | None = None
    """On an accelerator."""
    adapters: dict[str, FoldedAdapter] = field(default_factory=dict)
    maps: dict[Key, dict[int, Affine]] = field(default_factory=dict)
    step: list[Chosen] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    """Digests that a request asked for in vain, which must not happen."""

    # --- adapters -----------------------------------------------------------------------------------------------------

    def load(self, adapter: FoldedAdapter) -> None:
        self.adapters[adapter.digest] = adapter

    def unload(self, digest: str) -> None:
        self.adapters.pop(digest, None)
        for key in [key for key in self.maps if key[0] == digest]:
            del self.maps[key]
        if self.bank is not None:
            self.bank.forget(digest)

    # --- a step -------------------------------------------------------------------------------------------------------

    def begin(self, windows: Iterable[Window]) -> None:
        """Work out the edits of the step that comes next; its tokens are those of the windows, one behind the other."""
        ranges: dict[Key, list[tuple[int, int]]] = {}
        offset = 0
        for window in windows:
            if window.digest is not None:
                for edit in window.edits:
                    a = max(edit.start, window.start)
                    b = window.stop if edit.stop is None else min(edit.stop, window.stop)
                    if a < b:
                        shift = offset - window.start
                        key = (window.digest, edit.parts, window.strength)
                        ranges.setdefault(key, []).append((a + shift, b + shift))
            offset += window.stop - window.start
        if self.bank is not None:
            self.bank.assign({key: found for key, found in ranges.items() if self._maps(key)}, self._maps)
            return
        self.step = [Chosen(_rows(found), maps) for key, found in ranges.items() if (maps := self._maps(key))]

    def rest(self) -> None:
        """Nothing of the call that comes next is edited: it is a trial run."""
        self.step = []
        if self.bank is not None:
            self.bank.assign({}, self._maps)

    def _maps(self, key: Key) -> dict[int, Affine]:
        """What the parts of an adapter do at each layer that is held here; layers without an edit are left out."""
        if key not in self.maps:
            adapter = self.adapters.get(key[0])
            if adapter is None:
                # an exception here would end the server
                if key[0] not in self.missing:
                    logger.error("a request came for the ReFT adapter %s, which was not loaded", key[0])
                self.missing.add(key[0])
                return {}
            found = {layer: adapter.at(layer, key[1]) for layer in self.layers}
            # those of the strength 1 are made of the adapter, others of these, so that their sums are not made anew
            self.maps[key] = {
                layer: one if key[2] == 1 else one.times(key[2])
                for layer, one in found.items()
                if any(t is not None for t in one)
            }
            turned = [other for other in self.maps if other[2] != 1]
            if len(turned) > MOST_TURNED:
                del self.maps[turned[0]]
        return self.maps[key]

    # --- the op -------------------------------------------------------------------------------------------------------

    def apply(self, hidden: Tensor, residual: Tensor | None, layer: int) -> None:
        """Edit the output of a block in place, which is `hidden` or its sum with `residual`."""
        if self.bank is not None:
            self.bank.apply(hidden, residual, layer)
            return
        for chosen in self.step:
            one = chosen.maps.get(layer)
            if one is not None:
                edit_rows(hidden.view(-1, hidden.shape[-1]), residual, chosen.rows, one)


def edit_rows(hidden: Tensor, residual: Tensor | None, rows: slice | Tensor, one: Affine) -> None:
    """hidden, residual [T, d] in place: where there is a residual, it takes the new state and hidden becomes 0.

    So the sum, which is what the next norm takes, is exactly the new state.
    """
    if residual is None:
        h = hidden[rows].float()
        hidden[rows] = (h + one(h)).to(hidden.dtype)
        return
    h = (hidden[rows] + residual[rows]).float()
    residual[rows] = (h + one(h)).to(residual.dtype)
    hidden[rows] = 0


def _rows(ranges: list[tuple[int, int]]) -> slice | Tensor:
    if len(ranges) == 1:
        return slice(*ranges[0])
    return torch.cat([torch.arange(a, b) for a, b in ranges])


# One worker has one model; the op finds its state here, since compiled code can hold tensors and numbers only.
_ACTIVE: list[Edits] = []


def active() -> Edits | None:
    """The state of this process's model."""
    return _ACTIVE[0] if _ACTIVE else None


def activate(edits: Edits) -> None:
    """Let the ops of this process work with this state."""
    _ACTIVE[:] = [edits]
    if not _OPS:
        _define_ops()


_OPS: list[torch.library.Library] = []


def _define_ops() -> None:
    library = torch.library.Library("reftune", "DEF")
    library.define("edit_sum_(Tensor(a!) hidden, Tensor(b!) residual, int layer) -> ()")
    library.define("edit_(Tensor(a!) hidden, int layer) -> ()")
    for device in ("CPU", "CUDA"):
        library.impl("edit_sum_", lambda hidden, residual, layer: _ACTIVE[0].apply(hidden, residual, layer), device)
        library.impl("edit_", lambda hidden, layer: _ACTIVE[0].apply(hidden, None, layer), device)
    library.impl("edit_sum_", lambda hidden, residual, layer: None, "Meta")
    library.impl("edit_", lambda hidden, layer: None, "Meta")
    # it lives as long as the process
    _OPS.append(library)
