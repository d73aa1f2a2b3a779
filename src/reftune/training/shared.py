"""Frozen prefixes for several adapters on one base: each example's is computed once, and holds what each of them needs.

Of an example are kept the outputs of all blocks that some adapter begins behind, from the first token on that some
adapter edits, and the keys and values before the last such token.  An adapter takes its part: so it computes as little
as alone, and the pass that fills the store is made once.

Must not know: models, Trainer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model

from ..config import ReftConfig, resolve_layers
from ..positions import PositionSpec
from .frozen import FrozenPlan, base_tensors, fingerprint, starts_of
from .loss import ResponseLoss
from .rows import Row
from .store import GB, Store, choose_store

__all__ = ["SharedPrefix", "adapted"]


@contextmanager
def adapted(base: Any, config: ReftConfig, *, keep: bool = False) -> Iterator[PeftModel]:
    """A base model with a fresh adapter; afterwards it is as before, unless the adapter is to be kept."""
    model = get_peft_model(base, config)
    assert isinstance(model, PeftModel)
    try:
        yield model
    finally:
        if not keep:
            model.unload()


class SharedPrefix:
    """What `ReftTrainer(shared=…)` of several adapters on the same base replay.

    It serves adapters that begin at or behind the lowest block of the configurations, with first edited tokens between
    theirs; others have their own store, as ever.  `adapters` is how many are to come, by which it is judged whether to
    fill it pays.  When there is no room for further examples, those of earlier adapters are let go.
    """

    def __init__(
        self,
        configs: Sequence[ReftConfig],
        blocks: int,
        *,
        folder: Path,
        limit_gb: float | None = None,
        adapters: int | None = None,
    ) -> None:
        members = [found for config in configs if (found := _begins(config, blocks)) is not None]
        self.depths: tuple[int, ...] = tuple(sorted({depth for depth, _ in members}))
        self.sites: tuple[tuple[PositionSpec, ...], ...] = tuple(dict.fromkeys(specs for _, specs in members))
        self.adapters = len(configs) if adapters is None else adapters
        self.folder = folder
        self.limit_gb = limit_gb
        self.store: Store | None = None
        self._bytes = 0
        # found by the first adapter, and the same for all
        self.loss: ResponseLoss | None = None
        self.checked: set[tuple[Any, ...]] = set()
        self._seen: tuple[Any, ...] = ()
        self._fingerprint = ""

    def plan_of(self, plan: FrozenPlan) -> FrozenPlan | None:
        """The plan with the last block that is kept for r; None if the adapter begins below all of them."""
        below = [depth for depth in self.depths if depth <= plan.replayed]
        return replace(plan, replayed=below[-1]) if below else None

    def fingerprint(self, root: Any) -> str:
        """That of `frozen.fingerprint`, taken anew where a weight lies elsewhere or was changed in place."""
        seen = (root, [(tensor.data_ptr(), tensor._version) for _, tensor in base_tensors(root)])
        if self._seen != seen:
            self._seen, self._fingerprint = seen, fingerprint(root)
        return self._fingerprint

    def covers(self, plan: FrozenPlan, rows: Sequence[Row]) -> bool:
        """Whether what is kept of these rows has what the plan needs."""
        spans = zip(self.spans(rows), plan.starts(rows), strict=True)
        return bool(self.sites) and all(low <= w <= high for (low, high), w in spans)

    def spans(self, rows: Sequence[Row]) -> list[tuple[int, int]]:
        """Of each row the first and the last w of any adapter."""
        starts = [starts_of((specs,), rows) for specs in self.sites]
        return [(min(of_row), max(of_row)) for of_row in zip(*starts, strict=True)]

    def open(self, size: int, *, device: torch.device) -> Store | str | None:
        """The store, with room for `size` bytes more; or why there is none.

        None: there was no room beside what was there, which is let go; ask again with the size of all that is needed.
        """
        left = None if self.limit_gb is None else max(0.0, self.limit_gb - self._bytes / GB)
        found = choose_store(size, device=device, folder=self.folder, limit_gb=left)
        if self.store is None:
            if isinstance(found, str):
                return found
            self.store = found
        elif type(found) is not type(self.store):
            self.close()
            return None
        self._bytes += size
        return self.store

    def close(self) -> None:
        """Let go of everything."""
        if self.store is not None:
            self.store.close(keep=False)
        self.store, self._bytes = None, 0


def _begins(config: ReftConfig, blocks: int) -> tuple[int, tuple[PositionSpec, ...]] | None:
    """The last block whose output an adapter does not change, and its positions; None where only a model can tell."""
    groups = config.resolved_groups()
    depths: list[int] = []
    for group in groups:
        if group.layers is None and config.target_modules is not None:
            return None
        try:
            first = resolve_layers(group.layers if group.layers is not None else "all", blocks)[0]
        except ValueError:
            # whoever puts it on the model says so
            return None
        # an edit within a block changes what that block returns
        depths.append(first if group.component == "block_output" else first - 1)
    return min(depths), tuple(dict.fromkeys(group.spec for group in groups))
