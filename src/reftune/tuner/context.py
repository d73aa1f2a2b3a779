"""What is known of the call that is running: its prompts, its window of columns, its adapters.

`CallState` is shared by the model and all its `ReftLayer`s.  Hooks on the model open a frame before the blocks run and
always close it after, an exception included; what one call leaves behind, another cannot see.  It is per thread.

Must not know: interventions and how they are applied.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import PositionError
from ..positions import (
    PositionSpec,
    Segments,
    Slots,
    chosen_slots,
    own_slots,
    segments_from_mask,
    segments_from_position_ids,
    segments_of_full_rows,
    slots,
    token_mask,
)

__all__ = [
    "PROMPT_LENGTH",
    "SUBSPACES",
    "CallState",
    "Frame",
    "Outer",
    "Pick",
    "Role",
    "cached_length",
    "call_state",
    "check_lengths",
    "pick",
    "unwatch",
    "watch",
]

PROMPT_LENGTH = "prompt_length"
SUBSPACES = "subspaces"
WATCHED = "_reft_watched"
HANDLES = "_reft_handles"

SubspaceChoice = Sequence[Sequence[int]]
# causal: prompt and response in one row (or no response: BERT); encoder: of an encoder-decoder, all is prompt;
# decoder: of an encoder-decoder, the prompt is the start token; root: not itself a stack of blocks
Role = Literal["causal", "encoder", "decoder", "root"]


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
    taken_whole: bool = False
    """Whether nothing said where the prompt ends, so that all there is was taken for it."""
    in_training: bool = False
    """Whether the call computes gradients for training, where a whole text is seldom a prompt."""
    of_tokens: bool = True
    """False for a model of pixels or sounds: each row that its blocks pass on is a prompt, whatever its length."""
    bases: dict[nn.Module, Tensor] = field(default_factory=dict)
    """Orthonormal rows of the interventions that need them, as far as they were computed in one batch."""
    slot_cache: dict[PositionSpec, Slots] = field(default_factory=dict)
    pick_cache: dict[str, Pick] = field(default_factory=dict)
    mask_cache: dict[PositionSpec, Tensor] = field(default_factory=dict)

    def _known(self, spec: PositionSpec) -> Segments:
        if self.unknown is not None:
            raise PositionError(f"positions {str(spec)!r}: {self.unknown}")
        if self.taken_whole and self.in_training and (spec.scope != "span" or spec.last):
            _warn_of_guess(spec)
        assert self.segments is not None
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
        if self.no_prompt and spec.scope == "prompt":
            return None
        if spec not in self.mask_cache:
            self.mask_cache[spec] = token_mask(spec, self._known(spec).to(device), self.past, self.width)
        return self.mask_cache[spec].to(device)


@dataclass(frozen=True)
class Outer:
    """What callers above the blocks say: adapters per row, prompts fixed by `generate`, lengths, labels."""

    adapter_names: tuple[str, ...] | None = None
    subspaces: SubspaceChoice | None = None
    prompts: Segments | None = None
    prompt_columns: int = 0
    decoder_columns: int = 1
    prompt_length: Tensor | None = None
    labels: Tensor | None = None
    scored_columns: bool = False
    generating: bool = False
    bases: dict[nn.Module, Tensor] | None = None
    """Shared by several calls between which no parameter changes; None where there are none such."""


@dataclass(frozen=True)
class Watched:
    """What the hooks on a module need to know of it."""

    state: CallState
    role: Role
    is_root: bool
    is_lm: bool
    parameters: tuple[str, ...]


class CallState(threading.local):
    """What is open in this thread.  A copy or a pickle of it is an empty one."""

    def __init__(self) -> None:
        self.announced: list[Outer] = [Outer()]
        self.calls: list[tuple[nn.Module | None, Outer, Frame | None]] = []

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


def cached_length(cache: Any) -> int | Tensor:
    """Number of columns that the key-value cache holds already."""
    if cache is None:
        return 0
    if isinstance(cache, (tuple, list)):
        return cache[0][0].shape[-2] if cache and cache[0] is not None else 0
    return cache.get_seq_length()


def watch(module: nn.Module, state: CallState, *, role: Role, is_root: bool, is_lm: bool) -> None:
    """Register the hooks that open and close a call of `module`.  `unwatch` removes them."""
    # hooks get positional values without names
    names = tuple(list(inspect.signature(type(module).forward).parameters)[1:])
    module.__dict__[WATCHED] = Watched(state, role, is_root, is_lm, names)
    module.__dict__[HANDLES] = (
        module.register_forward_pre_hook(enter_model, with_kwargs=True),
        module.register_forward_hook(leave_model, with_kwargs=True, always_call=True),
    )


def unwatch(module: nn.Module) -> None:
    """Undo `watch`."""
    for handle in module.__dict__.pop(HANDLES, ()):
        handle.remove()
    module.__dict__.pop(WATCHED, None)


def call_state(root: nn.Module) -> CallState | None:
    """The state of calls of a model that has ReFT adapters; None if it has none."""
    watched: Watched | None = root.__dict__.get(WATCHED)
    return None if watched is None else watched.state


def enter_model(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Forward pre-hook of the root model and of each stack: opens what `leave_model` closes."""
    watched: Watched = module.__dict__[WATCHED]
    state = watched.state
    given = {**dict(zip(watched.parameters, args, strict=False)), **kwargs}
    if watched.is_root:
        # A model does not call itself: what is open here was left by an interrupt (Ctrl-C passes by leave_model).
        state.calls.clear()
    outer = state.outer
    lengths, subspaces = given.get(PROMPT_LENGTH), given.get(SUBSPACES)
    if PROMPT_LENGTH in kwargs or SUBSPACES in kwargs:
        kwargs = {k: v for k, v in kwargs.items() if k not in (PROMPT_LENGTH, SUBSPACES)}
    if lengths is not None:
        outer = replace(outer, prompt_length=torch.as_tensor(lengths))
    if subspaces is not None:
        outer = replace(outer, subspaces=subspaces)
    if watched.is_lm and (labels := given.get("labels")) is not None:
        outer = replace(outer, labels=labels)
    if _scores_columns(given.get("logits_to_keep")):
        outer = replace(outer, scored_columns=True)
    frame = None if watched.role == "root" else open_frame(watched.role, outer, given)
    if frame is not None:
        frame.in_training = watched.is_lm and module.training and torch.is_grad_enabled()
    state.calls.append((module, outer, frame))
    return args, kwargs


def leave_model(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    """Forward hook of the same modules, called always: closes what `enter_model` opened, if it did open it."""
    calls = module.__dict__[WATCHED].state.calls
    if calls and calls[-1][0] is module:
        calls.pop()


def _scores_columns(logits_to_keep: Any) -> bool:
    """Whether logits of several columns are asked for: the mark of scoring, which a prefill does not have."""
    if isinstance(logits_to_keep, Tensor):
        return logits_to_keep.numel() > 1
    return bool(logits_to_keep) and logits_to_keep > 1


def open_frame(role: Role, outer: Outer, given: Mapping[str, Any]) -> Frame:
    """The frame of one call of a stack, from the arguments of its forward and from what is known above it."""
    tokens = given.get("input_ids")
    tokens = tokens if tokens is not None else given.get("inputs_embeds")
    if tokens is None or tokens.ndim < 2:
        return Frame(0, 0, of_tokens=False)
    batch, width = tokens.shape[:2]
    past = cached_length(given.get("past_key_values")) if role != "encoder" else 0
    if isinstance(past, Tensor) and not torch.compiler.is_compiling():
        # a static cache counts on the device; as a number it lets decode steps go without any Φ
        past = int(past)
    frame = Frame(batch, width, past)
    if role == "encoder":
        frame.segments = _segments_of_arguments(given, batch, width, 0, tokens.device)
    elif role == "decoder":
        frame.segments = segments_of_full_rows(batch, outer.decoder_columns, tokens.device)
        frame.segments = frame.segments._replace(stop=frame.segments.end + (width + past))
        frame.no_prompt = isinstance(past, int) and past >= outer.decoder_columns
    elif outer.prompts is not None:
        # the response of a generation has no end yet
        prompts = outer.prompts.repeated(batch)
        frame.segments = prompts._replace(stop=prompts.end.clamp(min=outer.prompt_columns) + width + past)
        frame.no_prompt = isinstance(past, int) and past >= outer.prompt_columns
    else:
        _fill_causal(frame, outer, given, tokens.device)
    return frame


def _fill_causal(frame: Frame, outer: Outer, given: Mapping[str, Any], device: torch.device) -> None:
    """Prompts of a call that `generate` did not announce: given lengths, else labels, else all that is there."""
    past, width = frame.past, frame.width
    segments = _segments_of_arguments(given, frame.batch, width, past, device)
    labels = outer.labels
    if outer.prompt_length is not None:
        check_lengths(segments, outer.prompt_length, past + width)
        frame.segments = segments.with_lengths(outer.prompt_length)
        if isinstance(past, int) and past and not torch.compiler.is_compiling():
            frame.no_prompt = bool((frame.segments.end <= past).all())
    elif labels is not None and labels.shape == (frame.batch, width):
        frame.segments = segments.with_labels(labels, past)
        if _some_prompt_is_empty(frame.segments):
            frame.unknown = (
                "labels without a prompt: in some row the first token has a label, so nothing of it is prompt. "
                f"Set the labels of the prompt to -100, pass {PROMPT_LENGTH}=, or use positions 'all'"
            )
    elif isinstance(past, int) and past == 0:
        frame.segments, frame.taken_whole = segments, True
        if outer.scored_columns:
            frame.unknown = (
                "logits of several columns are asked for without labels, so this scores a text whose prompt is "
                f"not known. Pass {PROMPT_LENGTH}= (tokens of each row's prompt) or labels with -100 on the prompt"
            )
    elif width == 1:
        # a decode step of the user's own loop: nothing in it is prompt, and all of it is response
        frame.segments = segments._replace(end=segments.stop - 1)
        frame.no_prompt = True
    else:
        frame.unknown = (
            f"{width} tokens follow a cache, and which of them are prompt is not known outside of generate(). "
            f"Pass {PROMPT_LENGTH}= (tokens of each row's whole prompt)"
        )


def check_lengths(segments: Segments, lengths: Tensor, columns: int | Tensor, *, may_go_on: bool = True) -> None:
    """Refuse lengths that cannot be.  A row without padding behind it may go on in a later chunk of the prefill.

    Compiled code does not look: it would break the graph.
    """
    if torch.compiler.is_compiling() or lengths.numel() != segments.start.numel():
        return
    lengths = lengths.reshape(-1).to(segments.start.device)
    tokens = segments.stop - segments.start
    ended = (segments.stop < columns) | (not (segments.one_per_row and may_go_on))
    wrong = (lengths < 0) | (ended & (lengths > tokens))
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0, 0])
        raise PositionError(
            f"{PROMPT_LENGTH}[{i}]={int(lengths[i])} is not valid: this sequence has {int(tokens[i])} tokens"
        )


def _warn_of_guess(spec: PositionSpec) -> None:
    """An error it cannot be: models whose whole input is the prompt are trained so too, by a head or a reward."""
    if not torch.compiler.is_compiling():
        warnings.warn(
            f"positions {str(spec)!r}: a language model is trained with neither labels nor {PROMPT_LENGTH}, so the "
            "whole text is taken for the prompt, its response included. If there is a response, its edits are in the "
            "wrong place. label_smoothing_factor and compute_loss_func take labels away: use the data_collator "
            f"reftune.data.ReftCollator, which adds {PROMPT_LENGTH}",
            stacklevel=2,
        )


def _some_prompt_is_empty(segments: Segments) -> bool:
    """Whether a segment that has tokens has no prompt.  Compiled code does not look: it would break the graph."""
    if torch.compiler.is_compiling():
        return False
    return bool(((segments.end <= segments.start) & (segments.stop > segments.start)).any())


def _segments_of_arguments(
    given: Mapping[str, Any], batch: int, width: int, past: int | Tensor, device: torch.device
) -> Segments:
    """Where the tokens of each row lie: the mask says which are padding, restarting position ids which are packed."""
    mask = given.get("attention_mask")
    mask = mask.to(device) if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[0] == batch else None
    position_ids = given.get("position_ids")
    # compiled code does not look for packed rows beside a mask: it would break the graph
    may_be_packed = mask is None or not torch.compiler.is_compiling()
    if isinstance(position_ids, Tensor) and isinstance(past, int) and past == 0 and may_be_packed:
        packed = segments_from_position_ids(position_ids.to(device), batch, mask)
        if packed is not None:
            return packed
    return segments_of_full_rows(batch, past + width, device) if mask is None else segments_from_mask(mask)
