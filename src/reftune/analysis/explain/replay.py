"""Calls of one text with many switches, each begun where it differs from a call that was made already.

A text is called once without edits and once with all.  Below the first layer, and before the first token, at which a
switch differs from one of these, all states are theirs: blocks up to there pass on what is kept, and a cache holds the
keys and values of the tokens before.  Switches that begin alike go together as rows of one call.

Must not know: what is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from ...training.loss import head_as
from ...training.replay import CALL_ERRORS, cache_name, others_of, passing, takes_position_ids
from ...training.rows import call_tokens, split
from .switches import EVERY, NONE, Switch, Text, first_of, switched, wide

if TYPE_CHECKING:
    from .probe import Probe

__all__ = ["Kept", "Replay"]

T = TypeVar("T")

# Elements of logits, and tokens, of one call; bytes that are kept of all texts.
LOGITS, TOKENS, ROOM = 2**25, 2**12, 2**31
REFERENCES = (NONE, EVERY)


class Start(NamedTuple):
    """Where a switch begins to differ: from which reference, at which block and token."""

    reference: int
    layer: int
    column: int


class Kept:
    """What is kept of several texts, the latest ones."""

    def __init__(self) -> None:
        self._replays: dict[Text, Replay] = {}

    def replay(self, probe: Probe, text: Text) -> Replay:
        """Of this text, made now if it is not there."""
        found = self._replays.pop(text, None) or Replay(probe, text)
        self._replays[text] = found
        while len(self._replays) > 1 and sum(replay.nbytes for replay in self._replays.values()) > ROOM:
            del self._replays[next(iter(self._replays))]
        return found


class Replay:
    """One text."""

    def __init__(self, probe: Probe, text: Text) -> None:
        self.probe, self.text = probe, text
        self.width = len(text.ids)
        self.places = [(site, column, number) for site in probe.sites for column, number in probe.edits(site, text)]
        self.blocks = probe.blocks
        inside = {id(module): i for i, block in enumerate(self.blocks) for module in block.modules()}
        self._inside = {site.name: inside[id(site.module)] for site in probe.sites if id(site.module) in inside}
        self._others: int | None = None
        self._states: list[Tensor] = []
        self._kv: Tensor | None = None
        logits = self._record()
        self.known = [logits[i] for i in range(len(REFERENCES))]
        self.is_exact = self._kv is not None and self._is_exact()
        if not self.is_exact:
            self._states, self._kv = [], None

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return sum(t.nbytes for t in (*self._states, *self.known)) + (0 if self._kv is None else self._kv.nbytes)

    @torch.no_grad()
    def each(self, switches: Sequence[Switch], of: Callable[[Tensor], T]) -> list[T]:
        """`of` the logits [A + 1, V] of each switch, in order; there are never more of them than one call has."""
        found: dict[int, T] = {}
        starts = [self._start(switch) for switch in switches]
        for i, start in enumerate(starts):
            if isinstance(start, int):
                found[i] = of(self.known[start])
        left = [(i, start) for i, start in enumerate(starts) if isinstance(start, Start)]
        # as tokens of a whole call
        costs = [-(-self._cost(start) // len(self.blocks)) for _, start in left]
        for indices in split(costs, overhead=call_tokens(self.probe.model.device)):
            part = [left[i] for i in indices]
            size = self._rows_at_once(min(start.column for _, start in part))
            for at in range(0, len(part), size):
                chosen = part[at : at + size]
                logits = self._logits([switches[i] for i, _ in chosen], [start for _, start in chosen])
                for (i, _), one in zip(chosen, logits, strict=True):
                    found[i] = of(one)
        return [found[i] for i in range(len(switches))]

    def _rows_at_once(self, column: int) -> int:
        vocabulary = self.probe.root.config.get_text_config().vocab_size
        by_logits = LOGITS // (vocabulary * (len(self.text.answer) + 1))
        return max(1, min(by_logits, TOKENS // (self.width - column)))

    def _cost(self, start: Start) -> int:
        return (len(self.blocks) - start.layer) * (self.width - start.column)

    def _start(self, switch: Switch) -> Start | int:
        """Where it begins to differ from the reference that is nearest; the number of one that it is."""
        found = []
        for reference in range(len(REFERENCES)):
            changed = [
                # what is edited outside of the blocks may change all of them
                (self._inside.get(site.name, 0), column)
                for site, column, number in self.places
                if switch.changes(site.name, column, number, from_every=REFERENCES[reference] is EVERY)
            ]
            if not changed:
                return reference
            layer, column = (min(values) for values in zip(*changed, strict=True))
            found.append(Start(reference, layer, min(column, self.text.prompt_length - 1)))
        return min(found, key=self._cost) if self.is_exact else Start(0, 0, 0)

    # --- calls --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _record(self) -> Tensor:
        """The logits [2, A + 1, V] of both references; what they pass through is kept, if it can be replayed."""
        cache: Any = DynamicCache()
        outputs: list[Any] = []
        try:
            with ExitStack() as stack:
                for block in self.blocks:
                    # behind the hook that edits
                    handle = block.register_forward_hook(lambda _, args, out: outputs.append(out))
                    stack.callback(handle.remove)
                more = {cache_name(self.probe.root): cache, "use_cache": True}
                logits = self._call(REFERENCES, 0, 0, more)
        except CALL_ERRORS:
            return self._call(REFERENCES, 0, 0, {})
        flat = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
        tensors = [t for t in flat if isinstance(t, Tensor) and t.ndim == 4]
        shapes = {(t.shape[0], t.shape[2], t.shape) for t in tensors}
        is_whole = len(tensors) == len(flat) == 2 * len(outputs) == 2 * len(self.blocks) and len(shapes) == 1
        if is_whole and next(iter(shapes))[:2] == (len(REFERENCES), self.width):
            self._others = others_of(outputs[-1])
            self._states = [first_of(out) for out in outputs]
            self._kv = torch.stack(tensors).unflatten(0, (-1, 2))
        return logits

    def _is_exact(self) -> bool:
        """Whether all edits, begun where they begin, come to the logits of the whole call."""
        if not self.places:
            return True
        layer = min(self._inside.get(site.name, 0) for site, _, _ in self.places)
        column = min(min(column for _, column, _ in self.places), self.text.prompt_length - 1)
        whole = self.known[1]
        try:
            found = self._logits([EVERY], [Start(0, layer, column)])[0]
        except CALL_ERRORS:
            return False
        tolerance = 1e-3 if self.probe.model.dtype in (torch.float32, torch.float64) else 5e-2
        return torch.allclose(found, whole, rtol=tolerance, atol=tolerance * float(whole.abs().max()))

    def _logits(self, switches: Sequence[Switch], starts: Sequence[Start]) -> Tensor:
        """[rows, A + 1, V], begun at the first layer and token at which any of the switches differs."""
        layer, column = min(start.layer for start in starts), min(start.column for start in starts)
        rows = [start.reference for start in starts]
        more: dict[str, Any] = {}
        if column:
            more = self._cached(rows, layer, column)
        with ExitStack() as stack:
            if layer:
                hidden = self._states[layer - 1][rows, column:]
                stack.enter_context(passing(self.blocks[:layer], hidden, self._others))
            return self._call(switches, layer, column, more)

    def _cached(self, rows: list[int], layer: int, column: int) -> dict[str, Any]:
        """Arguments by which a call goes on behind the tokens before `column`."""
        assert self._kv is not None
        cache, device = DynamicCache(), self.probe.model.device
        for i, (keys, values) in enumerate(self._kv):
            # of blocks that pass through only the length is asked for
            k, v = (t[rows, :, :column] if i >= layer else t[rows, :1, :column, :1] for t in (keys, values))
            cache.update(k, v, i)
        mask = torch.ones(len(rows), self.width, dtype=torch.long, device=device)
        more: dict[str, Any] = {cache_name(self.probe.root): cache, "use_cache": True, "attention_mask": mask}
        if takes_position_ids(self.probe.root):
            more["position_ids"] = torch.arange(column, self.width, device=device)[None].expand(len(rows), -1)
        return more

    def _call(self, switches: Sequence[Switch], layer: int, column: int, more: dict[str, Any]) -> Tensor:
        probe, answers = self.probe, len(self.text.answer) + 1
        kept = self.text.prompt_length - 1 - column
        # below, states pass through that nothing comes of
        off = {name for name, at in self._inside.items() if at < layer}
        with (
            switched(probe.sites, switches, self.width, start=column, off=off),
            head_as(probe.head, lambda of, hidden: of(hidden[:, kept:])),
        ):
            found = probe.call(self.text, len(switches), column, **more)
        # a model that does not call its head has them all
        return wide(found[:, -answers:])
