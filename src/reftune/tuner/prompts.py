"""Where the prompts of one forward call lie: from what `generate` fixed, given lengths, labels, the mask, the cache.

`open_frame` says it, or says why it cannot be known.  Nothing is guessed in training.

Must not know: interventions, hooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import PositionError
from ..positions import Segments, segments_from_mask, segments_from_position_ids, segments_of_full_rows
from .caches import Filled, filled_columns, find_cache, note_of
from .context import PROMPT_LENGTH, CallState, Frame, Outer, Role

__all__ = ["check_lengths", "note_for", "open_frame"]


def open_frame(role: Role, state: CallState, outer: Outer, given: Mapping[str, Any]) -> Frame:
    """The frame of one call of a stack, from the arguments of its forward and from what is known above it."""
    tokens = given.get("input_ids")
    tokens = tokens if tokens is not None else given.get("inputs_embeds")
    if tokens is None and role == "decoder":
        # one that gets its embeddings from a module before it
        tokens = given.get("hidden_states")
    if tokens is None or tokens.ndim < 2:
        return Frame(0, 0, of_tokens=False)
    batch, width = tokens.shape[:2]
    cache = find_cache(given) if role != "encoder" else None
    past = filled_columns(cache)
    if outer.progress is not None:
        past = outer.progress.columns if past is None else past
        if isinstance(past, int):
            # behind the prompts it need not be exact, and compiled code wants it constant
            outer.progress.columns = min(past + width, outer.prompt_columns)
    if isinstance(past, Tensor) and not torch.compiler.is_compiling():
        # a static cache counts on the device; as a number it lets decode steps go without any Φ
        past = int(past)
    if past is None:
        return Frame(batch, width, unknown=_uncounted(cache))
    frame = Frame(batch, width, past)
    frame.tokens = _ids_of_window(frame, role, outer, given)
    frame.spans = _spans_of_window(frame, role, outer)
    frame.prompt_ids = _ids_of_prompts(frame, role, outer)
    if role == "encoder":
        frame.segments, frame.unknown = _segments_of_arguments(frame, outer, given, tokens.device)
    elif role == "decoder":
        _fill_decoder(frame, outer, given, tokens.device)
    elif outer.prompts is not None:
        # the response of a generation has no end yet
        prompts = outer.prompts.repeated(batch)
        frame.segments = prompts._replace(stop=prompts.end.clamp(min=outer.prompt_columns) + width + past)
        frame.no_prompt = isinstance(past, int) and past >= outer.prompt_columns
        frame.answered = past - outer.prompt_columns if frame.no_prompt and isinstance(past, int) else 0
        frame.unknown, frame.filled = outer.unknown, outer.filled
    else:
        _fill_causal(frame, state, outer, given, tokens.device, None if not past else note_of(cache))
    return frame


def _ids_of_window(frame: Frame, role: Role, outer: Outer, given: Mapping[str, Any]) -> Tensor | None:
    """[batch, width] ids of what a stack computes; a decoder's are not those that the whole model is given."""
    for ids in (given.get("input_ids"), outer.tokens if role == "causal" else None):
        if isinstance(ids, Tensor) and tuple(ids.shape) == (frame.batch, frame.width):
            return ids
    return None


def _spans_of_window(frame: Frame, role: Role, outer: Outer) -> Tensor | None:
    """[batch, width] which tokens of the window are marked; behind the columns of which that is said, none is.

    Raises:
        PositionError: what is said is of other rows or columns.
    """
    spans, past = outer.spans, frame.past
    if spans is None or role == "decoder":
        return None
    if spans.ndim != 2 or frame.batch % len(spans):
        raise PositionError(f"spans has the shape {list(spans.shape)}, but the batch has {frame.batch} rows")
    spans = spans.repeat_interleave(frame.batch // len(spans), 0)
    if outer.prompts is None:
        if spans.shape[1] == frame.width:
            return spans
        if not isinstance(past, int) or spans.shape[1] != past + frame.width:
            raise PositionError(f"spans has {spans.shape[1]} columns, but the call has {frame.width}")
    columns = torch.arange(frame.width, device=spans.device) + (
        past.to(spans.device) if isinstance(past, Tensor) else past
    )
    found = spans[:, columns.clamp(max=spans.shape[1] - 1)]
    return torch.where(columns < spans.shape[1], found, 0)


def _ids_of_prompts(frame: Frame, role: Role, outer: Outer) -> Tensor | None:
    """[batch, columns] ids from column 0 on, as far as they are known; of a first call those of its window."""
    ids = outer.prompt_ids
    if ids is None or role == "decoder":
        return frame.tokens if outer.prompts is None and isinstance(frame.past, int) and not frame.past else None
    if ids.ndim != 2 or frame.batch % len(ids):
        raise PositionError(f"prompt_ids has the shape {list(ids.shape)}, but the batch has {frame.batch} rows")
    return ids.repeat_interleave(frame.batch // len(ids), 0)


def note_for(frame: Frame, before: Filled | None) -> Filled | None:
    """What is noted on the cache that a call outside of `generate` filled; None where that is not known."""
    if frame.segments is None or frame.unknown is not None or not isinstance(frame.past, int):
        return None
    columns = frame.past + frame.width
    if frame.past == 0 or frame.filled is not None:
        return Filled(columns, frame.segments, told=not frame.taken_whole)
    return None if before is None else replace(before, columns=columns)


def _uncounted(cache: Any) -> str:
    return (
        f"the model goes on from a cache ({type(cache).__name__}) that does not say how many tokens it holds, so which "
        f"tokens these are is not known. Use generate(), or let this model fill an empty cache of transformers, or use "
        "positions 'all'"
    )


def _fill_decoder(frame: Frame, outer: Outer, given: Mapping[str, Any], device: torch.device) -> None:
    """Of an encoder-decoder: the prompt of the decoder is what it starts with."""
    past, columns = frame.past, outer.decoder_columns
    frame.segments = segments_of_full_rows(frame.batch, columns, device)
    frame.segments = frame.segments._replace(stop=frame.segments.end + (frame.width + past))
    frame.no_prompt = isinstance(past, int) and past >= columns
    mask = given.get("attention_mask")
    if torch.compiler.is_compiling() or not isinstance(mask, Tensor) or mask.ndim != 2 or frame.no_prompt:
        return
    if bool((mask[:, 0] == 0).any()):
        frame.unknown = (
            "decoder_attention_mask leaves out the first token of some row, so what the decoder starts with is not "
            "known. Pad decoder_input_ids on the right"
        )


def _fill_causal(
    frame: Frame,
    state: CallState,
    outer: Outer,
    given: Mapping[str, Any],
    device: torch.device,
    filled: Filled | None,
) -> None:
    """Prompts of a call that `generate` did not announce: given lengths, else labels, else what is known of them."""
    past, width = frame.past, frame.width
    segments, frame.unknown = _segments_of_arguments(frame, outer, given, device)
    if segments is None:
        return
    labels = outer.labels
    if outer.prompt_length is not None:
        check_lengths(segments, outer.prompt_length, past + width)
        frame.segments = segments.with_lengths(outer.prompt_length)
        if filled is not None and isinstance(past, int):
            frame.filled = filled.for_call(past, frame.segments)
        if isinstance(past, int) and past and not torch.compiler.is_compiling():
            frame.no_prompt = bool((frame.segments.end <= past).all())
    elif labels is not None and labels.shape == (frame.batch, width):
        frame.segments = segments.with_labels(labels, past)
        if outer.tokens is not None and not torch.compiler.is_compiling():
            state.labelled = outer.tokens
            frame.sampled_in_turns = _sampled_in_turns(state.sampled_behind, frame.segments, outer.tokens)
        empty, frame.several_turns = _what_labels_leave_open(frame.segments, labels, past)
        if empty:
            frame.unknown = (
                "labels without a prompt: in some row the first token has a label, so nothing of it is prompt. "
                f"Set the labels of the prompt to -100, pass {PROMPT_LENGTH}=, or use positions 'all'. In TRL's "
                "SFTTrainer: rows of 'prompt' and 'completion', or 'messages' with assistant_only_loss=True and a chat "
                "template that marks the answers ({% generation %})"
            )
    elif isinstance(past, int) and past == 0:
        _fill_untold(frame, state, outer, segments)
    elif filled is not None and (filled.told or width == 1):
        # the cache knows the prompts; a step of the user's own loop behind a whole prompt edits nothing of it
        frame.segments = filled.segments.repeated(frame.batch)._replace(stop=segments.stop)
        frame.no_prompt = isinstance(past, int) and bool((frame.segments.end <= past).all())
    elif width == 1:
        # a decode step of the user's own loop: nothing in it is prompt, and all of it is response
        frame.segments = segments._replace(end=segments.stop - 1)
        frame.no_prompt = frame.uncounted = True
    else:
        frame.unknown = (
            f"{width} tokens follow a cache, and which of them are prompt is not known outside of generate(). "
            f"Pass {PROMPT_LENGTH}= (tokens of each row's whole prompt)"
        )


def _fill_untold(frame: Frame, state: CallState, outer: Outer, segments: Segments) -> None:
    """A call from the first token on of which nothing says where the prompts end."""
    labelled = state.labelled
    if labelled is not None and outer.tokens is not None and not torch.compiler.is_compiling():
        same = labelled.shape == outer.tokens.shape and labelled.device == outer.tokens.device
        frame.labelled_before = same and torch.equal(labelled, outer.tokens)
    frame.segments, frame.taken_whole = segments, True
    if outer.scored_columns:
        frame.unknown = (
            "logits of several columns are asked for without labels, so this scores a text whose prompt is "
            f"not known. Pass {PROMPT_LENGTH}= (tokens of each row's prompt) or labels with -100 on the prompt, or "
            "use positions 'all', as in trainers that give neither (TRL's Distillation, SDFT, SDPO)"
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


def _what_labels_leave_open(segments: Segments, labels: Tensor, past: int | Tensor) -> tuple[bool, bool]:
    """Whether a segment that has tokens has no prompt, and whether one has several labelled stretches.

    Compiled code does not look: it would break the graph.
    """
    if torch.compiler.is_compiling():
        return False, False
    empty = (segments.end <= segments.start) & (segments.stop > segments.start)
    several = segments.labelled_stretches(labels, past) > 1
    found = torch.stack([empty.any(), several.any()]).tolist()
    return found[0], found[1]


def _sampled_in_turns(prompts: frozenset[tuple[int, ...]], segments: Segments, tokens: Tensor) -> bool:
    """Whether some row begins with a prompt of the last `generate` that is longer than the row's own prompt."""
    if not prompts or not segments.one_per_row or tokens.shape[0] != segments.start.numel():
        return False
    sizes = {len(prompt) for prompt in prompts}
    bounds = (segments.start.flatten().tolist(), segments.end.flatten().tolist())
    return any(
        size > end - start and tuple(row[start : start + size]) in prompts
        for row, start, end in zip(tokens.tolist(), *bounds, strict=True)
        for size in sizes
    )


def _segments_of_arguments(
    frame: Frame, outer: Outer, given: Mapping[str, Any], device: torch.device
) -> tuple[Segments | None, str | None]:
    """Where the tokens of each row lie, or why that is not known.

    The mask says which are padding; position ids that begin anew say which are packed.
    """
    batch, width, past = frame.batch, frame.width, frame.past
    mask, problem = _readable_mask(frame, outer, given, device)
    if problem is not None:
        return None, problem
    position_ids = given.get("position_ids")
    if isinstance(position_ids, Tensor) and position_ids.ndim == 3 and position_ids.shape[0] == 4:
        # of text, time, height and width, as vision-language models of the Qwen family have them
        position_ids = position_ids[0]
    # compiled code does not look for packed rows beside a mask: it would break the graph
    may_be_packed = mask is None or not torch.compiler.is_compiling()
    if isinstance(position_ids, Tensor) and isinstance(past, int) and past == 0 and may_be_packed:
        packed = segments_from_position_ids(position_ids.to(device), batch, mask)
        if packed is not None:
            return packed, None
    packed_by_others = given.get("cu_seq_lens_q") is not None or given.get("seq_idx") is not None
    if position_ids is None and past == 0 and packed_by_others:
        return None, (
            "the rows are packed (cu_seq_lens_q or seq_idx), but there are no position_ids that begin anew at each "
            "text. Pass position_ids too"
        )
    if mask is None:
        return segments_of_full_rows(batch, past + width, device), None
    frame.text_mask = mask
    return segments_from_mask(mask), None


def _readable_mask(
    frame: Frame, outer: Outer, given: Mapping[str, Any], device: torch.device
) -> tuple[Tensor | None, str | None]:
    """[batch, columns] of 0 and 1, None if there is no padding; or why it cannot be read.

    What reaches the blocks may be made of what the caller gave: masks of four axes, one for each kind of layer.
    """
    own = given.get("attention_mask")
    for mask in (own, outer.mask):
        if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[0] not in (1, frame.batch):
            continue
        if mask is outer.mask and mask is not own and mask.shape[1] != frame.past + frame.width:
            continue
        if mask.is_floating_point() and not torch.compiler.is_compiling() and bool((mask < 0).any()):
            continue
        return mask.to(device).expand(frame.batch, -1), None
    if own is None and outer.mask is None:
        return None, None
    what = f"a mask of the shape {list(own.shape)}" if isinstance(own, Tensor) else f"a {type(own).__name__}"
    if own is None:
        what = "no mask"
    return None, (
        f"the blocks get {what}, from which it cannot be read which tokens are padding, and the model was not given "
        f"an attention_mask [batch, columns] of 0 and 1 for these {frame.batch} rows of {frame.width} tokens. Pass one "
        "(position_ids that begin anew say which texts of a row are packed)"
    )
