"""The rows of a collated batch without their padding, and batches of rows made anew: by length, padded on the right.

Padding on the right needs no attention mask in a causal model, and the columns behind a row's last label need not be
computed at all, since nothing that counts depends on either.

Must not know: models, interventions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.tokenize import IGNORE

__all__ = ["Batch", "Row", "batch_of", "call_tokens", "packed_batch", "rows_of", "split"]

ROW_KEYS = frozenset({"input_ids", "attention_mask", "labels", "prompt_length", "subspaces", "spans"})


@dataclass(frozen=True)
class Row:
    """One example up to the last token that predicts a label."""

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    """targets[i] is the label of the token behind ids[i], `IGNORE` where there is none."""
    prompt_length: int
    subspaces: tuple[int, ...] | None = None
    spans: tuple[int, ...] | None = None
    """Of each token 1 where it is marked, else 0."""

    @cached_property
    def first_target(self) -> int:
        """The first token that predicts a label."""
        return next(i for i, target in enumerate(self.targets) if target != IGNORE)

    @property
    def labelled(self) -> int:
        """How many tokens predict a label."""
        return sum(target != IGNORE for target in self.targets)


class Batch(NamedTuple):
    """Arguments of one call of the model; hidden states [rows, columns] of its output predict `targets`, each [N]."""

    inputs: dict[str, Any]
    rows: Tensor
    columns: Tensor
    targets: Tensor


def rows_of(inputs: Mapping[str, Any]) -> list[Row] | None:
    """The rows of a padded batch; None if it holds more than that, so that it must be taken as it is."""
    if not {"input_ids", "labels"} <= set(inputs) <= ROW_KEYS:
        return None
    ids, labels = inputs["input_ids"], inputs["labels"]
    if ids.ndim != 2 or labels.shape != ids.shape:
        return None
    mask = inputs.get("attention_mask")
    kept = torch.ones_like(ids) if mask is None else mask
    if kept.shape != ids.shape:
        return None
    lengths, choices = inputs.get("prompt_length"), inputs.get("subspaces")
    given = [None] * len(ids) if lengths is None else torch.as_tensor(lengths).tolist()
    chosen = [None] * len(ids) if choices is None else choices
    if len(given) != len(ids) or len(chosen) != len(ids):
        return None
    spans = inputs.get("spans")
    if spans is not None and spans.shape != ids.shape:
        return None
    table = torch.stack([ids, labels, kept, torch.zeros_like(ids) if spans is None else spans]).tolist()
    rows = [_row(*values, has_spans=spans is not None) for values in zip(*table, given, chosen, strict=True)]
    found = [row for row in rows if row is not None]
    return found if len(found) == len(rows) else None


def _row(
    ids: list[int],
    labels: list[int],
    kept: list[int],
    spans: list[int],
    length: int | None,
    chosen: Any,
    *,
    has_spans: bool,
) -> Row | None:
    tokens = sum(map(bool, kept))
    start = kept.index(1) if tokens else 0
    if not tokens or not all(kept[start : start + tokens]):
        return None
    ids, labels, spans = (values[start : start + tokens] for values in (ids, labels, spans))
    marked = [i for i, label in enumerate(labels) if label != IGNORE]
    if not marked or marked[-1] == 0:
        return None
    length = marked[0] if length is None else length
    if not 0 < length <= tokens:
        # the model's own hooks say what is wrong with it
        return None
    end = marked[-1]
    # a prompt that ends behind the last label is still as long as it is
    stop = max(end, length)
    targets = [*labels[1 : end + 1], *[IGNORE] * (stop - end)]
    marked_tokens = tuple(spans[:stop]) if has_spans else None
    return Row(tuple(ids[:stop]), tuple(targets), length, None if chosen is None else tuple(chosen), marked_tokens)


def batch_of(rows: Sequence[Row], *, device: torch.device, starts: Sequence[int] | None = None) -> Batch:
    """Tokens from `starts` (by default the first) on, padded on the right."""
    starts = [0] * len(rows) if starts is None else starts
    width = max(len(row.ids) - start for row, start in zip(rows, starts, strict=True))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    at: list[tuple[int, int, int]] = []
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[i, : len(row.ids) - start] = torch.tensor(row.ids[start:])
        at += [(i, j - start, target) for j, target in enumerate(row.targets) if target != IGNORE]
    lengths = torch.tensor([row.prompt_length for row in rows])
    inputs: dict[str, Any] = {"input_ids": ids.to(device), "prompt_length": lengths.to(device)}
    if rows[0].spans is not None:
        spans = torch.zeros_like(ids)
        for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
            spans[i, : len(row.ids) - start] = torch.tensor((row.spans or ())[start:])
        inputs["spans"] = spans.to(device)
    if rows[0].subspaces is not None:
        inputs["subspaces"] = [list(row.subspaces or ()) for row in rows]
    found = torch.tensor(at, dtype=torch.long).T.to(device)
    return Batch(inputs, found[0], found[1], found[2])


def packed_batch(inputs: Mapping[str, Any]) -> Batch | None:
    """A batch whose rows are packed already, with position ids that restart; None if it holds more than that."""
    known = {"input_ids", "labels", "position_ids", "prompt_length"}
    if set(inputs) - {"spans"} != known or len(inputs["input_ids"]) != 1:
        return None
    targets = inputs["labels"][:, 1:]
    rows, columns = (targets != IGNORE).nonzero(as_tuple=True)
    rest = {key: value for key, value in inputs.items() if key != "labels"}
    return Batch(rest, rows, columns, targets[rows, columns])


def call_tokens(device: torch.device) -> int:
    """What one more call of a model costs, in tokens of one: on a CPU little, on a GPU as many as keep it busy."""
    return 64 if device.type == "cpu" else 4096


def split(widths: Sequence[int], *, overhead: int) -> list[list[int]]:
    """Indices of rows in parts of similar width, so that padded tokens and `overhead` tokens a part are fewest."""
    order = sorted(range(len(widths)), key=lambda i: -widths[i])
    best: list[tuple[int, int]] = [(0, 0)]
    for stop in range(1, len(order) + 1):
        costs = [(best[i][0] + overhead + (stop - i) * widths[order[i]], i) for i in range(stop)]
        best.append(min(costs))
    parts, stop = [], len(order)
    while stop:
        start = best[stop][1]
        parts.append(sorted(order[start:stop]))
        stop = start
    return parts[::-1]
