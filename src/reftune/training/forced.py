"""Answers of a model that is being trained, by teacher forcing: their loss, and which greedy decoding would give.

Greedy decoding gives an answer exactly if each of its tokens is the likeliest behind those before it, so no answer has
to be generated.  What training cannot change of the rows is replayed as in training.

Must not know: tasks, the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ReftuneError
from .loss import ResponseLoss
from .prepare import dataset_rows, evaluating
from .reuse import Unsupported
from .rows import Row
from .trainer import ReftTrainer

__all__ = ["Forced", "forced", "rows_to_force"]


@dataclass(frozen=True)
class Forced:
    """Of each row, in their order."""

    losses: list[float]
    """Σ −log p over the tokens of the answer."""
    tokens: list[int]
    right: list[bool]
    """Whether greedy decoding would give the answer, its end included."""

    @property
    def loss(self) -> float:
        """Mean over all tokens, as in training."""
        return sum(self.losses) / sum(self.tokens)

    @property
    def share(self) -> float:
        return sum(self.right) / len(self.right)


def rows_to_force(trainer: ReftTrainer, dataset: Any) -> list[Row]:
    """The rows of a data set as `build_dataset` makes it.

    Raises:
        ReftuneError: they hold more than tokens, labels and prompt lengths.
    """
    rows = dataset_rows(dataset, trainer.data_collator)
    if rows is None:
        raise ReftuneError("answers can be forced of rows with tokens, labels and prompt lengths only")
    return rows


def forced(trainer: ReftTrainer, rows: Sequence[Row]) -> Forced:
    """The model as it is now, on rows that need not be those it is trained on; after the first step of a training.

    Raises:
        ReftuneError: its loss is not the usual one of a causal language model.
    """
    loss, frozen = trainer._loss, trainer._frozen
    if not isinstance(loss, ResponseLoss):
        raise ReftuneError(
            "answers can be forced of causal language models with the usual loss only, and this one is another"
        )
    model: Any = trainer.model
    if frozen is not None and frozen.shared is not None and frozen.shared.covers(frozen.plan, rows):
        try:
            frozen.add(rows)
        except Unsupported:
            # they are computed in full
            trainer._drop_frozen()
    order = {id(row): i for i, row in enumerate(rows)}
    losses, right = [0.0] * len(rows), [False] * len(rows)
    # with some rotary embeddings a long row depends on the longest of its call
    limit = loss.longest
    long = [[row] for row in rows if limit is not None and len(row.ids) >= limit]
    short = [row for row in rows if limit is None or len(row.ids) < limit]
    with evaluating(model), torch.no_grad(), trainer.compute_loss_context_manager():
        for together in [short, *long]:
            for part, batch in trainer.batches(together):
                found, hits = loss.tokens(model, batch)
                for j, row in enumerate(part):
                    own = batch.rows == j
                    losses[order[id(row)]] = float(found[own].sum())
                    right[order[id(row)]] = bool(hits[own].all())
    return Forced(losses, [row.labelled for row in rows], right)
