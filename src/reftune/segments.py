"""Where the prompts of one call lie: what is known of its tokens (mask, labels, lengths, packed position ids).

Must not know: which of the tokens are edited, models, interventions, adapters.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .errors import PositionError

__all__ = ["Segments", "segments_from_mask", "segments_from_position_ids", "segments_of_full_rows"]

IGNORED_LABEL = -100


class Segments(NamedTuple):
    """Prompts of one call: N segments, at least one a row, more if rows are packed.  Columns are absolute.

    rows [N] batch row; start [N] first prompt column; end [N] one past the last prompt column, which is where the
    response begins; stop [N] one past the last column of the response as far as it is known.  gap: from which column
    [N] to which [N] there is padding within the response, as behind prompts that were padded on the right.
    """

    rows: Tensor
    start: Tensor
    end: Tensor
    stop: Tensor
    batch: int
    # without defaults, which torch.compile of torch 2.11 would leave out of the tuple
    one_per_row: bool
    gap: tuple[Tensor, Tensor] | None

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

    def with_gap(self, mask: Tensor) -> Segments:
        """The same segments, with the padding that lies within the response of a row.

        Raises:
            PositionError: there is padding in several places, so that the tokens of a response cannot be counted.
        """
        columns = torch.arange(mask.shape[1], device=mask.device)[None]
        inside = (columns >= self.end[:, None]) & (columns < self.stop[:, None])
        padding = inside & ~mask.bool()[self.rows]
        begin = torch.where(padding, columns, mask.shape[1]).amin(1)
        end = torch.maximum(torch.where(padding, columns + 1, 0).amax(1), begin)
        if not torch.compiler.is_compiling() and bool((padding.sum(1) != end - begin).any()):
            raise PositionError("the attention_mask leaves out tokens in several places of a response")
        return self._replace(gap=(begin, end))

    def repeated(self, batch: int) -> Segments:
        """For `batch` rows where each row was repeated in place: beams, several returned sequences."""
        if batch == self.batch:
            return self
        if not self.one_per_row or batch % self.batch:
            raise PositionError(f"the prompts of {self.batch} rows cannot be mapped onto a batch of {batch}")
        times = batch // self.batch
        rows = torch.arange(batch, device=self.rows.device)
        start, end, stop = (t.repeat_interleave(times, 0) for t in (self.start, self.end, self.stop))
        gap = self.gap and tuple(t.repeat_interleave(times, 0) for t in self.gap)
        return Segments(rows, start, end, stop, batch, one_per_row=True, gap=gap)  # type: ignore[arg-type]

    def to(self, device: torch.device) -> Segments:
        """The same segments on another device."""
        rows, start, end, stop = (t.to(device) for t in (self.rows, self.start, self.end, self.stop))
        gap = self.gap and tuple(t.to(device) for t in self.gap)
        return Segments(rows, start, end, stop, self.batch, self.one_per_row, gap)  # type: ignore[arg-type]

    def tokens(self, past: int | Tensor, width: int) -> Tensor:
        """[N, width] which token of its segment each column is, the first response token being the prompt's length.

        −1: none, as for padding and for columns of other segments.
        """
        columns = torch.arange(width, device=self.start.device)[None] + past
        found = columns - self.start[:, None]
        inside = (columns >= self.start[:, None]) & (columns < self.stop[:, None])
        if self.gap is not None:
            begin, end = (t[:, None] for t in self.gap)
            inside &= (columns < begin) | (columns >= end)
            found = torch.where(columns >= end, found - (end - begin).clamp(min=0), found)
        return torch.where(inside, found, -1)


def segments_of_full_rows(batch: int, columns: int | Tensor, device: torch.device) -> Segments:
    """Every row is one prompt of `columns` tokens, none of them padding."""
    rows = torch.arange(batch, device=device)
    start = torch.zeros(batch, dtype=torch.long, device=device)
    end = start + columns
    return Segments(rows, start, end, end, batch, one_per_row=True, gap=None)


def segments_from_mask(mask: Tensor) -> Segments:
    """mask [B, T] of 0 and 1, padding on either side → every row is one prompt without its padding.

    A row that is all padding is an empty prompt behind the last column: what follows it may be its beginning.
    """
    kept = mask.bool()
    batch, total = kept.shape
    columns = torch.arange(total, device=mask.device)[None]
    start = torch.where(kept, columns, total).amin(1)
    end = torch.maximum(torch.where(kept, columns + 1, 0).amax(1), start)
    rows = torch.arange(batch, device=mask.device)
    return Segments(rows, start, end, end, batch, one_per_row=True, gap=None)


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
    return Segments(rows, start, stop, stop, batch, one_per_row=False, gap=None)
