"""Frozen-prefix reuse: what training cannot change is computed once an example and replayed in every epoch, exactly.

See `frozen` for what that is.  The replay goes through the model's own forward: blocks up to r pass through, block r
gives its stored output, and the cache holds the stored keys and values of the blocks behind it.

Must not know: Trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from ..errors import ReftuneError
from ..positions import TURN, content_terms
from ..tuner import BASE, call_state
from .frozen import FrozenPlan, Watch, fingerprint
from .loss import head_as
from .replay import CALL_ERRORS, cache_name, others_of, passing, takes_position_ids
from .rows import Batch, Row, batch_of, call_tokens, split
from .shared import SharedPrefix
from .store import GB, DiskStore, Entry, Store, choose_store, remove_folder

__all__ = ["FrozenPrefix", "Unsupported"]

Span: TypeAlias = "tuple[int, int]"

FILL_TOKENS = 2048


class Unsupported(Exception):
    """The model cannot be replayed exactly; the message completes "reuse is off: "."""


class FrozenPrefix:
    """The store of one model and adapter, and calls of the model that make use of it."""

    def __init__(
        self,
        model: nn.Module,
        plan: FrozenPlan,
        *,
        folder: Path,
        limit_gb: float | None = None,
        shared: SharedPrefix | None = None,
    ) -> None:
        self.plan = plan
        self.shared = shared
        # blocks whose outputs are kept, r among them
        self.kept = (plan.replayed,) if shared is None else shared.depths
        self.folder = folder
        self.limit_gb = limit_gb
        self.fingerprint = self._fingerprint()
        kind = self.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        self._numerics = str(autocast)
        self._watch = Watch(model)
        state = call_state(plan.root)
        assert state is not None, "a plan is made of adapters"
        self._state = state
        self._store: Store | None = None
        self._others: int | None = None

    # --- the store --------------------------------------------------------------------------------------------------

    @property
    def where(self) -> str:
        return "" if self._store is None else self._store.where

    @property
    def device(self) -> torch.device:
        """Where the model begins."""
        return self.plan.root.get_input_embeddings().weight.device

    @property
    def stays(self) -> bool:
        """Whether the entries outlive a training: those on disk that are one adapter's own do not."""
        return self.shared is not None or not isinstance(self._store, DiskStore)

    def is_current(self) -> bool:
        """Whether nothing seems to have changed since the entries were made; looked at in each step."""
        return self._watch.is_unchanged()

    def is_valid(self, plan: FrozenPlan) -> bool:
        """The same of the weights themselves, and whether the same is edited."""
        own = plan if self.shared is None else self.shared.plan_of(plan)
        return own == self.plan and self.fingerprint == self._fingerprint()

    def _fingerprint(self) -> str:
        return fingerprint(self.plan.root) if self.shared is None else self.shared.fingerprint(self.plan.root)

    def holds(self, row: Row) -> bool:
        return self._store is not None and self._key(row, self._spans([row])[0]) in self._store

    def _is_shared(self, row: Row) -> bool:
        """Whether an adapter before this one has left it in what they share."""
        store = None if self.shared is None else self.shared.store
        return store is not None and self._key(row, self._spans([row])[0]) in store

    def close(self, *, keep: bool = False) -> None:
        """Let go of the entries; with `keep`, those on disk stay there.  What is shared is not this one's to let go."""
        if self._store is not None and self.shared is None:
            self._store.close(keep=keep)

    def _spans(self, rows: Sequence[Row]) -> list[Span]:
        """Of each row what is kept: outputs from the first number on, keys and values before the second."""
        if self.shared is not None:
            return self.shared.spans(rows)
        return [(w, w) for w in self.plan.starts(rows)]

    def size(self, rows: Sequence[Row]) -> int:
        """Bytes that the entries of these rows take.

        Raises:
            Unsupported: the cache of the model is not one of keys and values of one shape a block.
        """
        probe = min(rows, key=lambda row: len(row.ids))
        span = self._spans([probe])[0]
        try:
            entry = self._record([probe], [[(probe, span)]])[0][0]
        except CALL_ERRORS as error:
            name = type(self.plan.root).__name__
            raise Unsupported(f"{name} takes no plain cache of keys and values ({error!r})") from error
        hidden = entry.hidden.nbytes // max(1, len(probe.ids) - span[0])
        layers, _, heads, _, width = entry.kv.shape
        kv = layers * 2 * heads * width * entry.kv.element_size()
        spans = zip(rows, self._spans(rows), strict=True)
        return sum((len(row.ids) - low) * hidden + high * kv for row, (low, high) in spans)

    def open(self, rows: Sequence[Row]) -> int:
        """Choose where the entries of these rows go; how many bytes those take that are not there yet.

        Raises:
            Unsupported: there is no room for them, or as `size`.
        """
        if self.shared is not None:
            missing = [row for row in rows if not self._is_shared(row)]
            size = self.size(missing) if missing else 0
            store = self.shared.open(size, device=self.device)
            if store is None:
                # those of earlier adapters have made room
                size = self.size(rows)
                store = self.shared.open(size, device=self.device) or "there is no room for what adapters share"
        else:
            size = self.size(rows)
            store = choose_store(size, device=self.device, folder=self.folder, limit_gb=self.limit_gb)
        if isinstance(store, str):
            raise Unsupported(store)
        if self.shared is None and not isinstance(store, DiskStore):
            # of an earlier run that was broken off
            remove_folder(self.folder)
        self._store = store
        return size

    def add(self, rows: Sequence[Row]) -> None:
        """The entries of further rows, to what several adapters share.

        Raises:
            Unsupported: there is no room for them beside the others.
        """
        missing = [row for row in rows if not self._is_shared(row)]
        if missing:
            assert self.shared is not None
            store = self.shared.open(self.size(missing), device=self.device)
            if store is not self._store:
                raise Unsupported("there is no room for further rows")
            self.fill(missing, lambda done: None)

    def fill(self, rows: Sequence[Row], advance: Callable[[int], None]) -> None:
        """Compute the entries of the rows that have none; `advance` is told of each that is there.

        Raises:
            Unsupported: they cannot be written.
        """
        try:
            self._fill(rows, advance)
        except ReftuneError as error:
            raise Unsupported(str(error)) from error

    def _fill(self, rows: Sequence[Row], advance: Callable[[int], None]) -> None:
        assert self._store is not None
        keyed = {self._key(row, span): (row, span) for row, span in zip(rows, self._spans(rows), strict=True)}
        missing = {key for key in keyed if key not in self._store}
        advance(len(rows) - len(missing))
        # what is there is in the parts too: sums are rounded by what is computed with them, and a run that goes on
        # where another was killed ends in the same bits
        computed = self._computed({key: row for key, (row, _) in keyed.items()})
        todo = sorted(computed, key=lambda keys: len(keyed[keys[-1]][0].ids))
        while todo:
            count = max(1, FILL_TOKENS // len(keyed[todo[-1][-1]][0].ids))
            chosen, todo = todo[-count:], todo[:-count]
            for indices in split([len(keyed[keys[-1]][0].ids) for keys in chosen], overhead=call_tokens(self.device)):
                part = [chosen[i] for i in indices]
                wanted = [[key for key in keys if key in missing] for keys in part]
                if not any(wanted):
                    continue
                rows_of_part = [keyed[keys[-1]][0] for keys in part]
                entries = self._record(rows_of_part, [[keyed[key] for key in keys] for keys in wanted])
                self._store.add(dict(zip(chain(*wanted), chain(*entries), strict=True)))
                advance(sum(map(len, wanted)))
        self._store.flush()

    def _computed(self, rows: Mapping[str, Row]) -> list[list[str]]:
        """Keys of rows that are computed as one, which begins with each of them: the turns of a conversation.

        The last of each list is the longest.
        """
        if any(kind in self.plan.root.config.to_json_string() for kind in ('"longrope"', '"dynamic"')):
            # these rotary embeddings of a token depend on how long the text is
            return [[key] for key in rows]
        found: list[list[str]] = []
        # what begins with a row comes right behind it
        for key, row in sorted(rows.items(), key=lambda item: (item[1].ids, item[0])):
            if found and rows[found[-1][-1]].ids == row.ids[: len(rows[found[-1][-1]].ids)]:
                found[-1].append(key)
            else:
                found.append([key])
        return found

    def _key(self, row: Row, span: Span) -> str:
        # the adapter is in it by r and w only: nothing else of it matters to what is stored
        of_all = (self.fingerprint, self._numerics, self.kept, span)
        digest = blake2b(repr(of_all).encode(), digest_size=16)
        digest.update(torch.tensor(row.ids).numpy().tobytes())
        return digest.hexdigest()

    def _record(self, rows: Sequence[Row], kept: Sequence[Sequence[tuple[Row, Span]]]) -> list[list[Entry]]:
        """Entries of those that are kept of each row, which begins with them, and how much of them.

        From one call of the model without its adapters, which change nothing of what is kept.
        """
        root = self.plan.root
        batch = batch_of(rows, device=self.device)
        cache, outputs = DynamicCache(), []
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(self._state.announcing(adapter_names=(BASE,) * len(rows)))
            stack.enter_context(head_as(root.get_output_embeddings(), lambda of, hidden: hidden[:1, :1]))
            for r in self.kept:
                if r >= 0:
                    handle = self.plan.blocks[r].register_forward_hook(lambda block, args, out: outputs.append(out))
                    stack.callback(handle.remove)
            root(input_ids=batch.inputs["input_ids"], **{cache_name(root): cache}, use_cache=True)
        shape = batch.inputs["input_ids"].shape
        hidden = torch.stack([self._hidden(out) for out in outputs]) if outputs else torch.zeros(0, *shape, 0)
        kv = self._keys_and_values(cache, shape)
        return [
            [
                Entry(hidden[:, i, low : len(row.ids)].clone(), kv[:, :, i, :, :high].clone())
                for row, (low, high) in of_row
            ]
            for i, of_row in enumerate(kept)
        ]

    def _hidden(self, output: Any) -> Tensor:
        self._others = others_of(output)
        return output[0] if isinstance(output, tuple) else output

    def _keys_and_values(self, cache: DynamicCache, shape: torch.Size) -> Tensor:
        """[L, 2, B, H, T, D] of the blocks behind the first whose output is kept."""
        layers = cache.layers[self.kept[0] + 1 :]
        found = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]
        flat = [tensor for pair in found for tensor in pair]
        if len(cache.layers) != len(self.plan.blocks) or not all(
            isinstance(t, Tensor) and t.ndim == 4 and (t.shape[0], t.shape[2]) == tuple(shape) for t in flat
        ):
            raise Unsupported(f"the cache of {type(self.plan.root).__name__} is not one of keys and values a block")
        if len({t.shape for t in flat if isinstance(t, Tensor)}) > 1:
            raise Unsupported("the keys and values of the blocks have different shapes")
        if not layers:
            return torch.zeros(0, 2, shape[0], 1, shape[1], 1, device=self.device)
        return torch.stack([torch.stack([keys, values]) for keys, values in found])  # type: ignore[list-item]

    # --- the replay -------------------------------------------------------------------------------------------------

    def widths(self, rows: Sequence[Row]) -> list[int]:
        """Tokens of each row that are still to be computed."""
        return [len(row.ids) - w for row, w in zip(rows, self.plan.starts(rows), strict=True)]

    @contextmanager
    def replaying(self, rows: Sequence[Row]) -> Iterator[Batch]:
        """Inside, a call of the model with this batch computes what is left of the rows, all of which are held."""
        assert self._store is not None
        starts = self.plan.starts(rows)
        device = self.device
        batch = batch_of(rows, device=device, starts=starts)
        width, past = batch.inputs["input_ids"].shape[1], max(starts)
        entries = [
            self._own(self._store[self._key(row, span)], span[0], w)
            for row, span, w in zip(rows, self._spans(rows), starts, strict=True)
        ]
        if past:
            self._add_cache(batch.inputs, entries, starts, width)
            if any(content_terms(specs, *TURN) for specs in self.plan.sites):
                batch.inputs["prompt_ids"] = _prompts_from(rows, [past - w for w in starts]).to(device)
        with ExitStack() as stack:
            if self.plan.replayed >= 0:
                hidden = _padded([entry.hidden for entry in entries], width, device)
                blocks = self.plan.blocks[: self.plan.replayed + 1]
                stack.enter_context(passing(blocks, hidden, self._others))
            yield batch

    def _own(self, entry: Entry, low: int, start: int) -> Entry:
        """Of what is kept of a row from `low` on, the part for r and w: hidden [Q, d] and kv [L, 2, H, w, D]."""
        r = self.plan.replayed
        behind = entry.kv[r - self.kept[0] :, ..., :start, :]
        if r < 0:
            return Entry(torch.zeros(entry.hidden.shape[1] - (start - low), 0), behind)
        at = [depth for depth in self.kept if depth >= 0].index(r)
        return Entry(entry.hidden[at, start - low :], behind)

    def _add_cache(self, inputs: dict[str, Any], entries: list[Entry], starts: list[int], width: int) -> None:
        """The keys and values of each row right before its window, so that all windows begin in one column."""
        device, past = inputs["input_ids"].device, max(starts)
        layers, _, heads, _, size = entries[0].kv.shape
        kv = torch.zeros(layers, 2, len(entries), heads, past, size, dtype=entries[0].kv.dtype, device=device)
        for i, (entry, w) in enumerate(zip(entries, starts, strict=True)):
            kv[:, :, i, :, past - w :] = entry.kv.to(device, non_blocking=True)
        cache = DynamicCache()
        for layer in range(len(self.plan.blocks)):
            j = layer - self.plan.replayed - 1
            # of blocks that pass through only the length is asked for
            k, v = kv[j] if j >= 0 else kv.new_zeros(2, len(entries), 1, past, 1)
            cache.update(k, v, layer)
        begin = torch.tensor(starts, device=device)[:, None]
        columns = torch.arange(past + width, device=device)[None]
        inputs["attention_mask"] = (columns >= past - begin).long()
        inputs[cache_name(self.plan.root)], inputs["use_cache"] = cache, True
        if takes_position_ids(self.plan.root):
            # padding stays within its row: some rotary embeddings look at the largest position of a call
            last = begin + torch.tensor([[len(entry.hidden) - 1] for entry in entries], device=device)
            inputs["position_ids"] = torch.minimum(begin + torch.arange(width, device=device)[None], last)


def _prompts_from(rows: Sequence[Row], columns: Sequence[int]) -> Tensor:
    """[B, T] ids of whole rows, each from its column on."""
    width = max(column + len(row.ids) for row, column in zip(rows, columns, strict=True))
    found = torch.zeros(len(rows), width, dtype=torch.long)
    for i, (row, column) in enumerate(zip(rows, columns, strict=True)):
        found[i, column : column + len(row.ids)] = torch.tensor(row.ids)
    return found


def _padded(values: list[Tensor], width: int, device: torch.device) -> Tensor:
    padded = torch.zeros(len(values), width, values[0].shape[-1], dtype=values[0].dtype, device=device)
    for i, value in enumerate(values):
        padded[i, : len(value)] = value.to(device, non_blocking=True)
    return padded


def describe(size: int, rows: int, where: str) -> str:
    """One line for the user, before the entries are computed."""
    amount = f"{size / GB:.2f} GB" if size >= 0.1 * GB else f"{size / 1e6:.2f} MB"
    return f"frozen-prefix reuse: {rows} examples, {amount} in {where}"
