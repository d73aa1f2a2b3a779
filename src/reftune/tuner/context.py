"""What is known of the call that is running: its prompts, its window of columns, its adapters.

`CallState` is shared by the model and all its `ReftLayer`s.  Hooks on the model open a frame before the blocks run and
always close it after, an exception included; what one call leaves behind, another cannot see, but for a warning.  It
is per thread.

Must not know: interventions and how they are applied.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import PositionError
from ..positions import (
    TURN,
    PositionSpec,
    Segments,
    Slots,
    Term,
    Tie,
    chosen_slots,
    content_terms,
    named_tokens,
    own_slots,
    segments_of_full_rows,
    slots,
    token_mask,
    token_units,
    turn_marks,
)
from .caches import Filled
from .meter import Meter

__all__ = [
    "PROMPT_IDS",
    "PROMPT_LENGTH",
    "SPANS",
    "STRENGTH",
    "SUBSPACES",
    "CallState",
    "Frame",
    "Outer",
    "Pick",
    "Progress",
    "Role",
    "frame_of_full_rows",
    "pick",
    "required_frame",
    "strengths_of",
    "turned",
]

PROMPT_LENGTH = "prompt_length"
PROMPT_IDS = "prompt_ids"
SUBSPACES = "subspaces"
STRENGTH = "strength"
SPANS = "spans"

SubspaceChoice = Sequence[Sequence[int]]
# causal: prompt and response in one row (or no response: BERT); encoder: of an encoder-decoder, all is prompt;
# decoder: of an encoder-decoder, the prompt is the start token; above: the root, and what lies between it and a stack
Role = Literal["causal", "encoder", "decoder", "above"]


class Pick(NamedTuple):
    """Some of the slots of a call: rows and tokens [N, P], and valid [N, P, 1], None where all are.

    Tokens are counted through all rows of the call, row · width + column.
    """

    rows: Tensor
    tokens: Tensor
    valid: Tensor | None


def pick(found: Slots, chosen: list[int], width: int) -> Pick:
    """The chosen slots of each segment; `width` is the call's."""
    found = chosen_slots(found, chosen, width)
    valid = found.valid[..., None]
    # on a GPU, to look would be to wait for it; compiled code does not look
    known = valid.device.type == "cpu" and not torch.compiler.is_compiling() and bool(valid.all())
    return Pick(found.rows, found.rows * width + found.columns, None if known else valid)


@dataclass
class Frame:
    """One forward call of a stack of blocks: columns [past, past + width) of `batch` rows."""

    batch: int
    width: int
    past: int | Tensor = 0
    segments: Segments | None = None
    unknown: str | None = None
    """Why the prompt is not known; raised only if an intervention needs it."""
    no_prompt: bool = False
    """Whether nothing of the prompt can lie in this window, so that edits of prompts cost nothing."""
    answered: int = 0
    """Tokens of the response of each row that surely lie before this window."""
    uncounted: bool = False
    """Whether it is not known how many tokens of the response lie before this window."""
    tokens: Tensor | None = None
    """[batch, width] ids of the window; None if they are not known."""
    spans: Tensor | None = None
    """[batch, width] of 0 and 1, which tokens of the window are marked; None if nothing says so."""
    prompt_ids: Tensor | None = None
    """[batch, columns] ids from column 0 on, of which turns are made; None if they are not known."""
    text_mask: Tensor | None = None
    """[batch, columns] of 0 and 1, where one was given and `segments` do not say where their gaps are."""
    taken_whole: bool = False
    """Whether nothing said where the prompt ends, so that all there is was taken for it."""
    in_training: bool = False
    """Whether the call computes gradients for training, where a whole text is seldom a prompt."""
    labelled_before: bool = False
    """Whether the same tokens came with labels just before, as trainers do that call the model anew for its logits."""
    several_turns: bool = False
    """Whether labels begin more than once in a text: of its prompts only the first is known."""
    sampled_in_turns: bool = False
    """Whether a text was sampled by several calls of `generate`, whose prompts ended elsewhere than these."""
    filled: Filled | None = None
    """Of a cache that was there before: the prompts for which its columns were edited, to be held against these."""
    of_tokens: bool = True
    """False for a model of pixels or sounds: each row that its blocks pass on is a prompt, whatever its length."""
    bases: dict[nn.Module, Tensor] = field(default_factory=dict)
    """Orthonormal rows of the interventions that need them, as far as they were computed in one batch."""
    folds: dict[nn.Module, Callable[[Tensor], Tensor | None]] = field(default_factory=dict)
    """Of sites whose edits are folded for this call: h [B, T, d] → h with the edits, None where that does not fit."""
    slot_cache: dict[PositionSpec, Slots] = field(default_factory=dict)
    pick_cache: dict[str, Pick] = field(default_factory=dict)
    mask_cache: dict[PositionSpec, Tensor] = field(default_factory=dict)
    unit_cache: dict[tuple[PositionSpec, Tie, PositionSpec], Tensor] = field(default_factory=dict)
    hit_cache: dict[tuple[PositionSpec, Tie, PositionSpec, int], tuple[Tensor, Tensor | None]] = field(
        default_factory=dict
    )

    def is_past(self, spec: PositionSpec) -> bool:
        """Whether nothing that these positions name can lie in this window."""
        return self.no_prompt and self.answered >= spec.reach

    def _known(self, spec: PositionSpec) -> Segments:
        if self.unknown is not None:
            raise PositionError(f"positions {str(spec)!r}: {self.unknown}")
        if self.taken_whole and self.in_training:
            _refuse_guess(spec)
        elif self.labelled_before and spec.needs_end:
            _warn_of_lost_labels(spec)
        if self.sampled_in_turns and spec.needs_end:
            _refuse_turns(spec)
        if self.several_turns and spec.needs_end:
            _warn_of_turns(spec)
        if self.uncounted and spec.needs_rank:
            raise PositionError(
                f"positions {str(spec)!r}: this token follows a cache of which it is not known where its prompt ended, "
                f"so which token of the response it is cannot be counted. Pass {PROMPT_LENGTH}= (tokens of each row's "
                "prompt), or use generate()"
            )
        assert self.segments is not None
        if self.filled is not None:
            self.filled.check(spec, self.segments)
        return self.segments

    def slots(self, spec: PositionSpec, device: torch.device) -> Slots | None:
        """Slots of a span, None if there is nothing to edit."""
        if self.no_prompt:
            return None
        if spec not in self.slot_cache:
            self.slot_cache[spec] = slots(spec, self._known(spec).to(device), self.past, self.width)
        found = self.slot_cache[spec]
        return found if found.rows.device == device else Slots(*(t.to(device) for t in found))

    def pick(
        self, joint: PositionSpec, spec: PositionSpec, part: slice, name: str, device: torch.device
    ) -> Pick | None:
        """Slots of `joint` that are `part` of those of `spec`, the same for all layers; None if there are none.

        They are kept by `name`, a text that says all of that: its hash is at hand.
        """
        kept = self.pick_cache.get(name)
        if kept is None or kept.rows.device != device:
            found = self.slots(joint, device)
            if found is None:
                return None
            kept = self.pick_cache[name] = pick(found, own_slots(spec, joint)[part], self.width)
        return kept

    def mask(self, spec: PositionSpec, device: torch.device) -> Tensor | None:
        """[batch, width] bool of a whole scope other than `all`, None if there is nothing to edit."""
        if self.is_past(spec):
            return None
        if spec not in self.mask_cache:
            self.mask_cache[spec] = token_mask(spec, self._known(spec).to(device), self.past, self.width)
        return self.mask_cache[spec].to(device)

    def hits(
        self, spec: PositionSpec, tie: Tie, joint: PositionSpec, unit: int, device: torch.device
    ) -> tuple[Tensor, Tensor | None] | None:
        """Tokens that the Φ number `unit` of positions of terms edits: a mask [batch, width], and their numbers [M, 1].

        Numbers count through all rows, row · width + column; None in compiled code, where how many there are must not
        matter.  None altogether if there is nothing to edit.
        """
        if self.is_past(spec):
            return None
        key = (spec, tie, joint, unit)
        found = self.hit_cache.get(key)
        if found is None or found[0].device != device:
            mask = self._units(spec, tie, joint, device) == unit
            numbers = None if torch.compiler.is_compiling() else mask.flatten().nonzero()
            found = self.hit_cache[key] = (mask, numbers)
        if found[1] is not None and not len(found[1]) and not torch.is_grad_enabled():
            return None
        return found

    def _units(self, spec: PositionSpec, tie: Tie, joint: PositionSpec, device: torch.device) -> Tensor:
        key = (spec, tie, joint)
        if key not in self.unit_cache:
            segments = self._prompts_of_terms(spec, device)
            content = content_terms([spec])
            if self.spans is None and content_terms([spec], "span"):
                raise PositionError(
                    f"positions {str(spec)!r}: nothing says which tokens of these prompts are marked. Pass {SPANS}= "
                    "([rows, columns] of 0 and 1, as input_ids are), or use data with marked spans and ReftCollator"
                )
            if self.tokens is None and content_terms([spec], "id"):
                raise PositionError(
                    f"positions {str(spec)!r}: the model was given no input_ids here (inputs_embeds, or a module that "
                    "is called with hidden states), so which tokens these are is not known. Pass input_ids, or use "
                    "positions that only count tokens"
                )
            ids, spans = (None if t is None else t.to(device) for t in (self.tokens, self.spans))
            named = named_tokens(content, ids, spans)
            if turns := content_terms([spec], *TURN):
                named |= self._turns(spec, turns, segments)
            self.unit_cache[key] = token_units(spec, tie, joint, segments, self.past, self.width, named)
        return self.unit_cache[key].to(device)

    def _turns(self, spec: PositionSpec, terms: Sequence[Term], segments: Segments) -> dict[Term, Tensor]:
        """[batch, width] what each of the terms names of the window."""
        if self.no_prompt:
            none = torch.zeros(self.batch, self.width, dtype=torch.bool, device=segments.start.device)
            return dict.fromkeys(terms, none)
        ids = self.prompt_ids
        known = ids is not None and (torch.compiler.is_compiling() or not bool((segments.end > ids.shape[1]).any()))
        if ids is None or not known:
            raise PositionError(
                f"positions {str(spec)!r}: turns are counted in whole prompts, whose tokens are not known here "
                "(inputs_embeds, or a part of a prompt outside of generate). Pass whole prompts as input_ids, or use "
                "positions that count no turns"
            )
        columns = torch.arange(self.width, device=segments.start.device) + self.past
        at = columns.clamp(max=ids.shape[1] - 1)
        marks = turn_marks(terms, ids.to(segments.start.device), segments)
        return {term: mark[:, at] & (columns < ids.shape[1]) for term, mark in marks.items()}

    def _prompts_of_terms(self, spec: PositionSpec, device: torch.device) -> Segments:
        if spec.needs_prompt:
            found = self._known(spec)
            if spec.needs_rank and self.text_mask is not None and found.gap is None and found.one_per_row:
                found = found.with_gap(self.text_mask)
            return found.to(device)
        if self.segments is None or self.unknown is not None:
            return segments_of_full_rows(self.batch, self.past + self.width, device)
        return self.segments.to(device)


def _refuse_guess(spec: PositionSpec) -> None:
    if not spec.needs_end:
        warnings.warn(
            f"positions {str(spec)!r}: the model is trained with neither labels nor {PROMPT_LENGTH}, so nothing says "
            f"where the prompt ends. These positions are right where every prompt has at least {spec.longest} tokens; "
            "in shorter ones tokens of the response would be edited too",
            stacklevel=2,
        )
        return
    raise PositionError(
        f"positions {str(spec)!r}: the model is trained with neither labels nor {PROMPT_LENGTH}, so nothing says where "
        "the prompt ends, and edits would land on tokens of the response. What to do:\n"
        f"- in Trainer and TRL's SFTTrainer: data_collator=reftune.data.ReftCollator(tokenizer), which adds "
        f"{PROMPT_LENGTH}; label_smoothing_factor and compute_loss_func take the labels away\n"
        "- in TRL's SFTTrainer without these: rows of 'prompt' and 'completion', or 'messages' with "
        "assistant_only_loss=True and a chat template that marks the answers ({% generation %})\n"
        "- in trainers that call the model without labels by design (TRL's ORPO, CPO, TPO, GKD, GOLD, OnlineDPO, A2PO; "
        "LLaMA-Factory's DPO and KTO): not supported with these positions, unless your batches have "
        f"{PROMPT_LENGTH}=[…] (tokens of each row's prompt); positions 'all' work, and so do 'f…' where prompts are no "
        "shorter\n"
        "- if the whole text really is the prompt, as where a reward or an embedding is trained: "
        "ReftConfig(unknown_prompt='whole')"
    )


def _refuse_turns(spec: PositionSpec) -> None:
    raise PositionError(
        f"positions {str(spec)!r}: a text of this batch was sampled in several turns, as with tools, an "
        "environment_factory or a rollout_func in TRL's GRPOTrainer. Each turn was sampled with edits at the end of "
        "all that came before it, but here the prompt ends before the first, so later turns would be trained with "
        "other edits than they were sampled with. Use positions 'f…' or 'all', or train without tools"
    )


def _warn_of_lost_labels(spec: PositionSpec) -> None:
    warnings.warn(
        f"positions {str(spec)!r}: these tokens came with labels just before and now come without, so nothing says "
        "where the prompt ends and the whole text is taken for it. What is computed from these logits, such as "
        "compute_metrics of a trainer, is of other edits than the loss. Use data_collator="
        f"reftune.data.ReftCollator(tokenizer), or pass {PROMPT_LENGTH}=[…] (tokens of each row's prompt)",
        stacklevel=2,
    )


def _warn_of_turns(spec: PositionSpec) -> None:
    if not torch.compiler.is_compiling():
        warnings.warn(
            f"positions {str(spec)!r}: some texts have several labelled stretches, as conversations with several "
            "trained answers have. Only what lies before the first is taken for the prompt, while at inference the "
            "prompt is all that came before an answer, so later answers are trained otherwise than they will be used. "
            "Make one row of each answer (reftune.data.split_turns does), or use positions 'f…' or 'all'",
            stacklevel=2,
        )


def strengths_of(value: Any) -> Tensor:
    """What a caller gives as `strength`, a number or one for each row, as a tensor [1] or [rows].

    Raises:
        ValueError: it is something else, or not finite.
    """
    try:
        found = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        found = torch.tensor(torch.nan)
    if found.ndim > 1 or not found.numel() or not bool(found.isfinite().all()):
        raise ValueError(f"strength={value!r} is not valid; use a number, 1 for the edit as it is, or one for each row")
    return found.reshape(-1)


def turned(delta: Tensor, own: float | None, outer: Outer, rows: Tensor, batch: int) -> Tensor:
    """delta [N, P, d] times the adapter's own strength and the call's; rows [N, P] are batch rows."""
    if own is not None:
        delta = delta * own
    if outer.strength is None:
        return delta
    if batch % len(outer.strength):
        raise ValueError(f"strength has {len(outer.strength)} entries for a batch of {batch} rows")
    # beams and several sequences repeat the rows in place
    table = outer.strength.to(delta).repeat_interleave(batch // len(outer.strength))
    return delta * table[rows][..., None]


@dataclass
class Progress:
    """How far a generation is whose cache does not count its columns."""

    columns: int = 0


def frame_of_full_rows(batch: int, width: int, device: torch.device) -> Frame:
    """Of something that is not tokens: each row of h is a prompt."""
    return Frame(batch, width, segments=segments_of_full_rows(batch, width, device))


def required_frame(frame: Frame | None, spec: PositionSpec, h: Tensor) -> Frame:
    """The frame, if h [B, T, d] is of its tokens.

    Raises:
        PositionError: there is none, or h has other rows and columns.
    """
    if frame is None:
        raise PositionError(
            f"positions {str(spec)!r}: a block was called outside of its model, or a module that is not within the "
            "blocks is edited, so its tokens are not known; call the model, edit its blocks, or use positions 'all'"
        )
    if h.ndim != 3 or tuple(h.shape[:2]) != (frame.batch, frame.width):
        raise PositionError(
            f"positions {str(spec)!r}: the module returns {list(h.shape)} where the call has {frame.batch} rows of "
            f"{frame.width} tokens, so its tokens are not known; edit a module that returns [rows, tokens, width], as "
            "blocks mostly do, or use positions 'all'"
        )
    return frame


@dataclass(frozen=True)
class Outer:
    """What callers above the blocks say: adapters per row, prompts fixed by `generate`, lengths, labels."""

    adapter_names: tuple[str, ...] | None = None
    subspaces: SubspaceChoice | None = None
    strength: Tensor | None = None
    """[1] or [rows]: what the edits of each row are multiplied by; None: by 1."""
    prompts: Segments | None = None
    prompt_columns: int = 0
    decoder_columns: int = 1
    prompt_length: Tensor | None = None
    spans: Tensor | None = None
    """[B, columns] of 0 and 1, which tokens are marked, as far as prompts go; or [B, width] of one call."""
    prompt_ids: Tensor | None = None
    """[B, columns] ids of the prompts and their padding, from column 0 on."""
    labels: Tensor | None = None
    mask: Tensor | None = None
    """[B, T], as the caller gave it: what reaches the blocks may have another form."""
    tokens: Tensor | None = None
    """[B, T] ids, as the caller gave them."""
    scored_columns: bool = False
    generating: bool = False
    unknown: str | None = None
    """Why `generate` does not know the prompts; raised only if an intervention needs them."""
    filled: Filled | None = None
    progress: Progress | None = None
    bases: dict[nn.Module, Tensor] | None = None
    """Shared by several calls between which no parameter changes; None where there are none such."""
    steps: dict[Any, Any] | None = None
    """What the steps of a generation share of their edits, for `fold`; None outside of one."""
    meter: Meter | None = None
    """What is told of every edit, if anything is."""


class CallState(threading.local):
    """What is open in this thread.  A copy or a pickle of it is an empty one."""

    def __init__(self) -> None:
        self.announced: list[Outer] = [Outer()]
        self.calls: list[tuple[nn.Module | None, Outer, Frame | None]] = []
        self.labelled: Tensor | None = None
        """Tokens of the last call that had labels."""
        self.sampled_behind: frozenset[tuple[int, ...]] = frozenset()
        """Prompts of the last `generate` in training mode."""

    def __reduce__(self) -> tuple[type[CallState], tuple[()]]:
        return CallState, ()

    @property
    def frame(self) -> Frame | None:
        """The innermost open frame."""
        return self.calls[-1][2] if self.calls else None

    @property
    def outer(self) -> Outer:
        """What is known above the blocks."""
        return self.calls[-1][1] if self.calls else self.announced[-1]

    @contextmanager
    def announcing(self, **known: Any) -> Iterator[None]:
        """Calls of the model inside know the `known` fields of `Outer`."""
        self.announced.append(replace(self.announced[-1], **known))
        try:
            yield
        finally:
            self.announced.pop()

    @contextmanager
    def resumed(self, frame: Frame | None, outer: Outer) -> Iterator[None]:
        """Inside, a call that was open earlier is open again: a block is computed anew in the backward pass."""
        self.calls.append((None, outer, frame))
        try:
            yield
        finally:
            self.calls.pop()
