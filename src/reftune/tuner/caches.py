"""Caches of models: how many columns they hold, and for which prompts these were edited.

Not every cache counts its columns: those of recurrent models hold one state.  So a call leaves a note on the cache
that it fills, which goes along where the cache is copied.

Must not know: calls, adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import PositionError
from ..positions import MARKED, PositionSpec, Segments, content_terms, joint_span, slots, term_slots, token_mask

__all__ = ["Filled", "cached_length", "filled_columns", "find_cache", "is_cache_name", "note_of", "put_note"]

NOTE = "_reft_filled"
FIRST = ("past_key_values", "cache_params")
# RWKV, XLNet and models whose code comes from elsewhere
ENDINGS = ("cache", "cache_params", "caches", "_past", "mems", "past_buckets_states", "inference_params")


@dataclass(frozen=True)
class Filled:
    """What the columns of a cache are: how many, and the prompts for which they were edited."""

    columns: int
    segments: Segments
    told: bool
    """Whether something said where the prompts end; else all that was there was taken for them."""
    checked: set[PositionSpec] = field(default_factory=set)

    def for_call(self, columns: int, segments: Segments) -> Filled:
        """The first `columns` of it, to be held against a call with these segments."""
        return replace(self, columns=columns, segments=self.segments.repeated(segments.batch), checked=set())

    def check(self, spec: PositionSpec, segments: Segments) -> None:
        """Refuse prompts of which some cached token would be edited otherwise than it was.

        Raises:
            PositionError: it says for which prompts the cache was filled.
        """
        if spec in self.checked or not spec.needs_prompt or not self.columns:
            return
        if content_terms([spec], *MARKED):
            raise PositionError(
                f"positions {str(spec)!r}: the cache holds {self.columns} columns, and it does not say which of their "
                "tokens were marked, or by which turns they were counted, when they were edited. Leave the cache out"
            )
        before = _edited(spec, self.segments, self.columns)
        if not torch.equal(before, _edited(spec, segments.to(before.device), self.columns)):
            raise PositionError(
                f"positions {str(spec)!r}: the cache holds {self.columns} columns that were edited for prompts of "
                f"{_lengths(self.segments)} tokens, but now the prompts have {_lengths(segments)} tokens, so other "
                "tokens of them should have been edited. Leave the cache out, or say the length of the whole prompt "
                "when it is filled: model(ids, past_key_values=cache, prompt_length=[…])"
            )
        self.checked.add(spec)


def _edited(spec: PositionSpec, segments: Segments, columns: int) -> Tensor:
    """[batch, columns] which slot (from 1) of the spec a cached token is, 0 for none; of terms [terms, batch, columns].

    What depends on the tokens themselves is as it was: they are the same.
    """
    if spec.scope == "terms":
        segments = segments._replace(stop=segments.stop.clamp(min=columns))
        return torch.stack(term_slots(spec, joint_span([spec]), segments, 0, columns))
    if spec.scope != "span":
        # what was generated is response up to the end of the cache
        segments = segments._replace(stop=segments.stop.clamp(min=columns))
        return token_mask(spec, segments, 0, columns).long()
    at = slots(spec, segments, 0, columns)
    numbers = torch.arange(1, spec.count + 1, device=at.rows.device) * at.valid
    table = torch.zeros(segments.batch, columns, dtype=torch.long, device=at.rows.device)
    return table.index_put((at.rows, at.columns), numbers, accumulate=True)


def _lengths(segments: Segments) -> str:
    lengths = sorted(set((segments.end - segments.start).tolist()))
    return ", ".join(str(n) for n in lengths[:5]) + (", …" if len(lengths) > 5 else "")


def is_cache_name(name: str) -> bool:
    """Whether an argument of this name holds what was computed of earlier columns."""
    return name in FIRST or name == "state" or (name.endswith(ENDINGS) and not name.startswith("use_"))


def find_cache(given: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a call, whatever it is called; None if there is none."""
    for name in FIRST:
        if given.get(name) is not None:
            return given[name]
    return next((value for name, value in given.items() if value is not None and is_cache_name(name)), None)


def cached_length(cache: Any) -> int | Tensor | None:
    """Number of columns that a cache says it holds; None if it does not count them."""
    if cache is None:
        return 0
    if isinstance(cache, (tuple, list)):
        if not cache or cache[0] is None:
            return 0
        first = cache[0]
        # keys and values of each layer, as they were before there were caches of a class
        counts = isinstance(first, (tuple, list)) and isinstance(first[0], Tensor) and first[0].ndim == 4
        return first[0].shape[-2] if counts else None
    layers = getattr(cache, "layers", None)
    if isinstance(layers, list) and layers and not any(hasattr(layer, "get_seq_length") for layer in layers):
        # states of a recurrent model only, which transformers' own count refuses
        return None
    count: Any = getattr(cache, "get_seq_length", None)
    return None if count is None else count()


def filled_columns(cache: Any) -> int | Tensor | None:
    """Columns of any cache: as it counts them, else by the note on it, else 0 if it is fresh; None if not known."""
    length = cached_length(cache)
    if length is not None:
        return length
    note = note_of(cache)
    if note is not None:
        return note.columns
    return 0 if _is_fresh(cache) else None


def _is_fresh(cache: Any) -> bool:
    """Whether a cache of states that counts nothing has seen nothing yet."""
    if getattr(cache, "rnn_state_initial", False) is True:  # xLSTM
        return True
    states = [getattr(layer, "has_previous_state", None) for layer in getattr(cache, "layers", None) or ()]
    return bool(states) and all(isinstance(state, dict) and not any(state.values()) for state in states)


def note_of(cache: Any) -> Filled | None:
    """What an earlier call noted on the cache."""
    return getattr(cache, NOTE, None)


def put_note(cache: Any, note: Filled) -> None:
    """Note on a cache what it holds; a list of tensors takes no note."""
    if hasattr(cache, "__dict__"):
        setattr(cache, NOTE, note)
