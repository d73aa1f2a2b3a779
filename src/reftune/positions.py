"""Which tokens of a forward call are edited: the only index arithmetic of the project.

Three pure stages: a text (``"f7+l7"``) is parsed into a `PositionSpec`, by `specs`, whose names are here too; what is
known of the tokens of a call (mask, labels, lengths, packed position ids) becomes `Segments`, one prompt per segment,
in absolute columns of the padded sequence with the cache counted in; and `slots` or `token_mask` intersect the two with
the window of columns that this forward call computes.  A decode step, a prefill chunk and a draft to be verified are
all just windows.

Must not know: models, interventions, adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import PositionError
from .specs import (
    PositionSpec,
    Tie,
    joint_span,
    own_slots,
    parse_positions,
    scope_range,
    unit_count,
    unit_slices,
)

__all__ = [
    "PositionSpec",
    "Segments",
    "Slots",
    "Tie",
    "chosen_slots",
    "columns_of_slots",
    "first_edited",
    "joint_span",
    "own_slots",
    "parse_positions",
    "scope_range",
    "segments_from_mask",
    "segments_from_position_ids",
    "segments_of_full_rows",
    "slots",
    "token_mask",
    "unit_count",
    "unit_slices",
]

IGNORED_LABEL = -100


class Segments(NamedTuple):
    """Prompts of one call: N segments, at least one a row, more if rows are packed.  Columns are absolute.

    rows [N] batch row; start [N] first prompt column; end [N] one past the last prompt column, which is where the
    response begins; stop [N] one past the last column of the response as far as it is known.
    """

    rows: Tensor
    start: Tensor
    end: Tensor
    stop: Tensor
    batch: int
    one_per_row: bool  # without a default, which torch.compile of torch 2.11 would leave out of the tuple

    def with_lengths(self, lengths: Tensor) -> Segments:
        """The same segments, the prompt being the first `lengths` [N] tokens of each.

        A row's prompt may go on behind the columns known so far, as it does in the first chunks of a prefill; the
        next packed sequence is where another one ends at the latest.
        """
        if lengths.numel() != self.start.numel():
            what = "rows of the batch" if self.one_per_row else "packed sequences"
            raise PositionError(f"prompt_length has {lengths.numel()} entries for {self.start.numel()} {what}")
        if lengths.is_floating_point():
            raise PositionError(f"prompt_length has the dtype {lengths.dtype}; it must be whole numbers")
        lengths = lengths.reshape(-1).to(self.start)
        end = self.start + lengths
        if not self.one_per_row:
            return self._replace(end=torch.minimum(end, self.stop))
        return self._replace(end=end, stop=torch.maximum(end, self.stop))

    def with_labels(self, labels: Tensor, past: int | Tensor = 0) -> Segments:
        """The same segments, the prompt being the leading run of ignored labels of each.

        labels [B, T] are those of the columns from `past` on.
        """
        columns = torch.arange(labels.shape[1], device=labels.device)[None] + past
        labelled = labels[self.rows] != IGNORED_LABEL
        inside = (columns >= self.start[:, None]) & (columns < self.stop[:, None])
        first = torch.where(labelled & inside, columns, self.stop[:, None]).amin(1)
        return self._replace(end=first)

    def labelled_stretches(self, labels: Tensor, past: int | Tensor = 0) -> Tensor:
        """[N] how many times labels begin within each segment: once, unless several answers of a chat have them.

        labels [B, T] are those of the columns from `past` on.
        """
        columns = torch.arange(labels.shape[1], device=labels.device)[None] + past
        inside = (columns >= self.start[:, None]) & (columns < self.stop[:, None])
        labelled = (labels[self.rows] != IGNORED_LABEL) & inside
        return labelled[:, :1].long().sum(1) + (labelled[:, 1:] & ~labelled[:, :-1]).sum(1)

    def repeated(self, batch: int) -> Segments:
        """For `batch` rows where each row was repeated in place: beams, several returned sequences."""
        if batch == self.batch:
            return self
        if not self.one_per_row or batch % self.batch:
            raise PositionError(f"the prompts of {self.batch} rows cannot be mapped onto a batch of {batch}")
        times = batch // self.batch
        rows = torch.arange(batch, device=self.rows.device)
        start, end, stop = (t.repeat_interleave(times, 0) for t in (self.start, self.end, self.stop))
        return Segments(rows, start, end, stop, batch, one_per_row=True)

    def to(self, device: torch.device) -> Segments:
        """The same segments on another device."""
        rows, start, end, stop = (t.to(device) for t in (self.rows, self.start, self.end, self.stop))
        return Segments(rows, start, end, stop, self.batch, self.one_per_row)


def segments_of_full_rows(batch: int, columns: int | Tensor, device: torch.device) -> Segments:
    """Every row is one prompt of `columns` tokens, none of them padding."""
    rows = torch.arange(batch, device=device)
    start = torch.zeros(batch, dtype=torch.long, device=device)
    end = start + columns
    return Segments(rows, start, end, end, batch, one_per_row=True)


def segments_from_mask(mask: Tensor) -> Segments:
    """mask [B, T] of 0 and 1, padding on either side → every row is one prompt without its padding.

    A row that is all padding is an empty prompt behind the last column: what follows it may be its beginning.
    """
    kept = mask.bool()
    batch, total = kept.shape
    columns = torch.arange(total, device=mask.device)[None]
    start = torch.where(kept, columns, total).amin(1)
    end = torch.maximum(torch.where(kept, columns + 1, 0).amax(1), start)
    return Segments(torch.arange(batch, device=mask.device), start, end, end, batch, one_per_row=True)


def segments_from_position_ids(position_ids: Tensor, batch: int, mask: Tensor | None = None) -> Segments | None:
    """position_ids [B, T] or [1, T] of packed rows: a segment begins where they do not go on by one.

    mask [B, T] says which columns are not padding; all of them if there is none.  None if no row restarts, so that the
    rows are not packed.
    """
    if position_ids.ndim != 2 or position_ids.shape[0] not in (1, batch):
        return None
    position_ids = position_ids.expand(batch, -1)
    kept = torch.ones_like(position_ids, dtype=torch.bool) if mask is None else mask.bool()
    whole = segments_from_mask(kept)
    begins = torch.zeros_like(kept)
    begins[:, 1:] = kept[:, 1:] & kept[:, :-1] & (position_ids[:, 1:] != position_ids[:, :-1] + 1)
    if not bool(begins.any()):
        return None
    columns = torch.arange(position_ids.shape[1], device=position_ids.device)[None]
    begins |= kept & (columns == whole.start[:, None])
    rows, start = begins.nonzero(as_tuple=True)
    stop = whole.stop[rows]
    stop[:-1] = torch.where(rows[1:] == rows[:-1], start[1:], stop[:-1])
    return Segments(rows, start, stop, stop, batch, one_per_row=False)


class Slots(NamedTuple):
    """P slots for each of N segments: rows [N, P], columns [N, P] within the window, valid [N, P].

    A slot that is not valid points at some column of the window and must not be edited.
    """

    rows: Tensor
    columns: Tensor
    valid: Tensor


def slots(spec: PositionSpec, segments: Segments, past: int | Tensor, width: int) -> Slots:
    """Slots of a span in the window of columns [past, past + width).

    With prompts of n tokens: if n < p + s then p ← min(p, ⌊n/2⌋) and s ← min(s, ⌈n/2⌉), the slots cut off are not
    applied (paper, section 4.1).  Slot i < p is prompt token i; slot p + j is prompt token n − s + j.
    """
    device = segments.start.device
    n = (segments.end - segments.start).clamp(min=0)[:, None]
    short = n < spec.count
    first = torch.where(short, torch.clamp(n // 2, max=spec.first), spec.first)
    last = torch.where(short, torch.clamp((n + 1) // 2, max=spec.last), spec.last)
    i = torch.arange(spec.first, device=device)[None]
    j = torch.arange(spec.last, device=device)[None]
    prefix = segments.start[:, None] + i
    suffix = segments.end[:, None] - spec.last + j
    columns = torch.cat([prefix, suffix], 1) - past
    valid = torch.cat([i < first, j >= spec.last - last], 1) & (columns >= 0) & (columns < width)
    rows = segments.rows[:, None].expand_as(columns)
    return Slots(rows, columns.clamp(0, width - 1), valid)


def columns_of_slots(spec: PositionSpec, length: int) -> list[int | None]:
    """The token of each slot of a span in one prompt of `length` tokens, None where it is too short for the slot."""
    if not spec.count or length < 1:
        return [None] * spec.count
    found = slots(spec, segments_of_full_rows(1, length, torch.device("cpu")), 0, length)
    return [c if ok else None for c, ok in zip(found.columns[0].tolist(), found.valid[0].tolist(), strict=True)]


def chosen_slots(found: Slots, chosen: Sequence[int], width: int) -> Slots:
    """The chosen slots of each segment; where they are more than the `width` columns of the window, not all of them.

    No two slots of a segment are the same token, so that at most `width` are valid: these come first, and what is left
    over is cut.  A span of 100,000 tokens takes no more room than the window.
    """
    at = torch.tensor(chosen, dtype=torch.long, device=found.rows.device)
    kept = Slots(*(t[:, at] for t in found))
    if len(chosen) <= width:
        return kept
    first = kept.valid.to(torch.int8).argsort(dim=1, descending=True)[:, :width]
    return Slots(*(t.gather(1, first) for t in kept))


def token_mask(spec: PositionSpec, segments: Segments, past: int | Tensor, width: int) -> Tensor:
    """[B, width] bool, true on the tokens of the window that a whole scope edits."""
    device = segments.start.device
    columns = torch.arange(width, device=device)[None] + past
    if spec.scope == "prompt":
        hit = (columns >= segments.start[:, None]) & (columns < segments.end[:, None])
    elif spec.scope == "response":
        hit = (columns >= segments.end[:, None]) & (columns < segments.stop[:, None])
    else:
        raise ValueError(f"positions {spec} have no token mask")
    if segments.one_per_row:
        return hit
    counts = torch.zeros(segments.batch, width, dtype=torch.int32, device=device)
    return counts.index_add(0, segments.rows, hit.to(torch.int32)) > 0


def first_edited(specs: Sequence[PositionSpec], lengths: Tensor) -> Tensor:
    """lengths [N] of prompts → [N] the first token that any of the specs of one site edits.

    A response is edited from its first token on, which is token n.  Where nothing is edited: the largest number.
    """
    none = torch.full_like(lengths, torch.iinfo(lengths.dtype).max)
    found = none
    for spec in [joint_span(specs), *(spec for spec in specs if spec.scope != "span")]:
        if spec.scope != "span":
            first = lengths if spec.scope == "response" else torch.zeros_like(lengths)
        elif spec.count == 0:
            first = none
        else:
            rows = torch.arange(len(lengths), device=lengths.device)
            zeros = torch.zeros_like(lengths)
            prompts = Segments(rows, zeros, lengths, lengths, len(lengths), one_per_row=True)
            at = slots(spec, prompts, 0, int(lengths.max()))
            first = torch.where(at.valid, at.columns, none[:, None]).amin(1)
        found = torch.minimum(found, first)
    return found
