"""What of an adapter's edits is on in a call, and what the call passes through.

Edits are switched off where they are made: a state that is not to be edited stays as it is, bit for bit, and all that
comes after it is computed anew.

Must not know: models, what is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...tuner import ReftLayer

__all__ = ["EVERY", "NONE", "EditSite", "Seen", "Switch", "Text", "first_of", "size", "switched", "wide"]


@dataclass(frozen=True)
class Text:
    """A prompt and an answer to it, as tokens."""

    ids: tuple[int, ...]
    prompt_length: int
    pieces: tuple[str, ...]
    """Each token as it is read."""
    answer_text: str
    spans: tuple[int, ...] | None = None
    """Of each token 1 where the prompt marks it, else 0; None where nothing is marked."""

    @property
    def answer(self) -> tuple[int, ...]:
        return self.ids[self.prompt_length :]


@dataclass(frozen=True)
class EditSite:
    """One place where the adapter edits."""

    name: str
    """`resid_post.16`: the output of block 16; `attn_out.16`, `mlp_out.16`, `z.16.3`; else the path of the module."""
    layer: int
    module: ReftLayer
    adapter: str
    in_stream: bool
    """Whether the edit is added to the residual stream as it is, so that a logit lens means something."""


@dataclass(frozen=True)
class Switch:
    """Which of the adapter's edits are on; None: all."""

    sites: frozenset[str] | None = None
    columns: frozenset[int] | None = None
    without: tuple[str, int, int] | None = None
    """Site, number of its Φ, row of the rank: this one is off."""

    def changes(self, site: str, column: int, number: int, *, from_every: bool) -> bool:
        """Whether the edit of a Φ of a site at a token is another than when every edit is on, or than when none is."""
        is_on = (self.sites is None or site in self.sites) and (self.columns is None or column in self.columns)
        if not from_every:
            return is_on
        return not is_on or (self.without is not None and self.without[:2] == (site, number))


EVERY, NONE = Switch(), Switch(sites=frozenset())


@dataclass
class Seen:
    """What one call passed through, for its first row."""

    before: dict[str, Tensor] = field(default_factory=dict)
    """By site, [T, d] as it came."""
    after: dict[str, Tensor] = field(default_factory=dict)
    """By site, [T, d] with the edit."""
    blocks: list[Tensor] = field(default_factory=list)
    """[T, d] behind each block."""

    def delta(self, site: str) -> Tensor:
        return self.after[site] - self.before[site]


@contextmanager
def switched(
    sites: Sequence[EditSite],
    switches: Sequence[Switch],
    width: int,
    *,
    start: int = 0,
    off: Collection[str] = (),
    seen: Seen | None = None,
) -> Iterator[None]:
    """Inside, row i of a call of the tokens [start, width) has the edits of switch i, but none at the sites `off`."""
    with ExitStack() as stack:
        for site in sites:
            columns = range(start, width)
            gate = torch.tensor([[False] if site.name in off else _gate(site.name, s, columns) for s in switches])
            if seen is not None or not gate.all():
                stack.enter_context(_edit_as(site, gate, seen))
            stack.enter_context(_without_rows(site, switches))
        yield


def first_of(output: Any) -> Tensor:
    """The hidden state that a block returns, alone or first of several."""
    return output[0] if isinstance(output, (tuple, list)) else output


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def size(x: Tensor) -> float:
    """The Euclidean norm of x [d]."""
    return float(wide(x).norm())


def _gate(name: str, switch: Switch, columns: range) -> list[bool]:
    if switch.sites is not None and name not in switch.sites:
        return [False] * len(columns)
    return [switch.columns is None or column in switch.columns for column in columns]


@contextmanager
def _edit_as(site: EditSite, gate: Tensor, seen: Seen | None) -> Iterator[None]:
    """Inside, the site edits where gate [B, T] is true."""
    own: Callable[[Tensor], Tensor] = site.module.edit
    attributes: dict[str, Any] = vars(site.module)
    is_off = not gate.any()

    def edit(h: Tensor) -> Tensor:
        edited = h if is_off else torch.where(gate.to(h.device).reshape(*h.shape[:-1], 1), own(h), h)
        if seen is not None:
            seen.before[site.name] = h.reshape(*gate.shape, -1)[0].clone()
            seen.after[site.name] = edited.reshape(*gate.shape, -1)[0].clone()
        return edited

    attributes["edit"] = edit
    try:
        yield
    finally:
        del attributes["edit"]


@contextmanager
def _without_rows(site: EditSite, switches: Sequence[Switch]) -> Iterator[None]:
    """Inside, row i of a call lacks at this site the row of the rank that switch i leaves out."""
    off = [(i, s.without) for i, s in enumerate(switches) if s.without and s.without[0] == site.name]
    if not off:
        yield
        return
    own, attributes = site.module._rank_mask, vars(site.module)
    banks = [unit.bank for unit in site.module.units(site.adapter)]

    def rank_mask(unit: Any, rows: Tensor, batch: int) -> Tensor | None:
        table = torch.ones(batch, unit.group.options.r, device=rows.device)
        for i, (_, number, row) in off:
            if banks[number] == unit.bank:
                table[i, row] = 0
        known = own(unit, rows, batch)
        return table[rows] if known is None else known * table[rows]

    attributes["_rank_mask"] = rank_mask
    try:
        yield
    finally:
        del attributes["_rank_mask"]
