"""What surrounds the forward calls of a model: `generate`, which fixes the prompts, and gradient checkpointing.

Both are reached by attributes of the instance, since a model to which transformers itself added the adapter is not
wrapped in anything of PEFT.

Must not know: interventions, sites.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PositionError
from ..positions import Segments, segments_from_mask, segments_of_full_rows
from .caches import Filled, filled_columns, find_cache, note_of, put_note
from .context import PROMPT_LENGTH, SPANS, STRENGTH, SUBSPACES, CallState, Progress, strengths_of
from .prompts import check_lengths

__all__ = ["checkpoint_as_before", "checkpoint_with_frame", "install_generate", "uninstall_generate"]

CHECKPOINT = "_gradient_checkpointing_func"
CHECKPOINT_HOOKS = "_reft_checkpoint_hooks"
REFUSED = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


def install_generate(root: nn.Module, state: CallState) -> None:
    """Put `generate` with fixed prompts, and refusals of what cannot be right, on the instance."""
    if not hasattr(root, "generate"):
        return
    root.__dict__["generate"] = partial(generate_with_prompts, root, state)
    for name in REFUSED:
        if hasattr(root, name):
            root.__dict__[name] = partial(refuse_continuous_batching, name)


def uninstall_generate(root: nn.Module) -> None:
    """Undo `install_generate`."""
    for name in ("generate", *REFUSED):
        root.__dict__.pop(name, None)


def refuse_continuous_batching(name: str, *args: Any, **kwargs: Any) -> Any:
    """`generate_batch` and its relatives lay the tokens of all requests in one row and pass no prompts on."""
    raise NotImplementedError(
        f"{name} (continuous batching of transformers) cannot tell which tokens are the prompt, so ReFT adapters would "
        "edit wrong tokens; use generate()"
    )


def generate_with_prompts(root: nn.Module, state: CallState, *args: Any, **kwargs: Any) -> Any:
    """`generate` of the model's class; every forward call within knows the prompts as they are at this moment."""
    lengths, subspaces, strength, spans = (
        kwargs.pop(name, None) for name in (PROMPT_LENGTH, SUBSPACES, STRENGTH, SPANS)
    )
    if state.announced[-1].prompts is not None:
        # drafts of a model that is its own assistant: the prompts are those of the generation around it
        return type(root).generate(root, *args, **kwargs)  # type: ignore[attr-defined]
    state.calls.clear()
    known: dict[str, Any] = {"generating": True, "bases": {}, "steps": {}, "progress": Progress()}
    if subspaces is not None:
        known["subspaces"] = subspaces
    if strength is not None:
        known["strength"] = strengths_of(strength)
    if spans is not None:
        known["spans"] = torch.as_tensor(spans)
    config: Any = root.config
    if config.is_encoder_decoder:
        known["decoder_columns"] = _decoder_columns(root, kwargs)
    else:
        _refuse_guidance(root, kwargs)
        prompts, columns = _prompts(root, args, kwargs)
        if lengths is not None:
            check_lengths(prompts, lengths := torch.as_tensor(lengths), columns, may_go_on=False)
            prompts = prompts.with_lengths(lengths)
        # what is generated lies behind the padding of prompts that were padded on the right
        prompts = prompts._replace(gap=(prompts.stop, torch.full_like(prompts.stop, columns)))
        known.update(prompts=prompts, prompt_columns=columns, prompt_ids=_whole_ids(args, kwargs, columns))
        if spans is not None and known["spans"].shape[-1] != columns:
            raise PositionError(
                f"spans has the shape {list(known['spans'].shape)}, but the prompts have {columns} columns"
            )
        if root.training:
            state.sampled_behind = _texts(prompts, args, kwargs)
        _go_on_from_cache(known, kwargs)
    with state.announcing(**known):
        output = type(root).generate(root, *args, **kwargs)  # type: ignore[attr-defined]
    if "prompts" in known:
        for cache in (find_cache(kwargs), find_cache(output) if isinstance(output, Mapping) else None):
            if cache is not None and "unknown" not in known:
                columns = filled_columns(cache)
                columns = known["progress"].columns if columns is None else int(columns)
                put_note(cache, Filled(columns, known["prompts"], told=True))
    return output


def _go_on_from_cache(known: dict[str, Any], kwargs: dict[str, Any]) -> None:
    """What a cache holds that was filled before: its tokens are edited already, for these prompts or for others."""
    cache = find_cache(kwargs)
    columns, note = filled_columns(cache), note_of(cache)
    if columns is None or (int(columns) > 0 and note is None):
        known["unknown"] = (
            f"generate() is to go on from a cache ({type(cache).__name__}) of which it is not known for which prompts "
            "it was filled. Fill an empty cache of transformers by a call of this model, with the length of the whole "
            f"prompt: model(ids, past_key_values=cache, {PROMPT_LENGTH}=[…]); or leave the cache out"
        )
    elif note is not None and int(columns) > 0:
        known["filled"] = note.for_call(int(columns), known["prompts"])
        known["progress"].columns = int(columns)


def _decoder_columns(root: Any, kwargs: dict[str, Any]) -> int:
    """Tokens that the decoder of an encoder-decoder starts with."""
    tokens = kwargs.get("decoder_input_ids")
    if tokens is None:
        return 1
    # transformers puts the start token before those that lack it
    start = root.generation_config.decoder_start_token_id
    return tokens.shape[1] + int(start is not None and bool((tokens[:, 0] != start).all()))


def _refuse_guidance(root: Any, kwargs: dict[str, Any]) -> None:
    """Classifier-free guidance calls the model with other prompts in the midst of a generation."""
    config = kwargs.get("generation_config") or root.generation_config
    scale = kwargs.get("guidance_scale", config.guidance_scale)
    if scale not in (None, 1):
        raise NotImplementedError(
            f"guidance_scale={scale!r}: ReFT adapters cannot tell the prompts of the guidance from those of the text; "
            "valid are None and 1"
        )


def _prompts(root: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Segments, int]:
    """The prompt of each row and the number of columns that prompts and padding take."""
    mask = kwargs.get("attention_mask")
    ids = _ids(args, kwargs)
    tokens = kwargs.get("inputs_embeds")
    tokens = ids if tokens is None else tokens
    if tokens is None:
        # generate starts from the beginning-of-sequence token
        return segments_of_full_rows(1, 1, root.device), 1
    if mask is None and tokens is ids and ids is not None and ids.ndim == 2:
        mask = _mask_of_padding(root, ids, kwargs)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        mask = mask.to(tokens.device).expand(tokens.shape[0], -1)
        return segments_from_mask(mask), mask.shape[1]
    past = filled_columns(find_cache(kwargs)) or 0
    columns = max(tokens.shape[1], int(past) + (tokens.shape[1] if kwargs.get("inputs_embeds") is not None else 0))
    return segments_of_full_rows(tokens.shape[0], columns, tokens.device), columns


def _ids(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    given = (*args[:1], kwargs.get("inputs"), kwargs.get("input_ids"))
    return next((x for x in given if isinstance(x, Tensor)), None)


def _whole_ids(args: tuple[Any, ...], kwargs: dict[str, Any], columns: int) -> Tensor | None:
    """Ids of all columns that prompts and padding take; None where they are not all given."""
    ids = _ids(args, kwargs)
    is_whole = ids is not None and ids.ndim == 2 and ids.shape[1] == columns and not ids.is_floating_point()
    return ids if is_whole and kwargs.get("inputs_embeds") is None else None


def _texts(prompts: Segments, args: tuple[Any, ...], kwargs: dict[str, Any]) -> frozenset[tuple[int, ...]]:
    """The tokens of the prompts."""
    ids = _ids(args, kwargs)
    if ids is None or ids.ndim != 2 or ids.shape[0] != prompts.start.numel():
        return frozenset()
    bounds = zip(ids.tolist(), prompts.start.flatten().tolist(), prompts.end.flatten().tolist(), strict=True)
    return frozenset(tuple(row[start:end]) for row, start, end in bounds)


def _mask_of_padding(root: Any, ids: Tensor, kwargs: dict[str, Any]) -> Tensor | None:
    """The mask that transformers infers when none is given: padding tokens, unless they also end sequences."""
    config = kwargs.get("generation_config") or root.generation_config
    pad = kwargs.get("pad_token_id", config.pad_token_id)
    ends = kwargs.get("eos_token_id", config.eos_token_id)
    ends = ends if isinstance(ends, (list, tuple)) else [ends]
    if pad is None or isinstance(pad, Tensor) or pad in ends or not bool((ids == pad).any()):
        return None
    return (ids != pad).long()


def checkpoint_with_frame(stack: nn.Module, blocks: Sequence[nn.Module], state: CallState) -> None:
    """Let blocks that gradient checkpointing computes anew in the backward pass find the frame of their call.

    transformers puts its checkpoint function on the instance of each block when checkpointing is switched on, which
    may be later than this; so it is looked for whenever the stack is called in training mode.
    """
    handle = stack.register_forward_pre_hook(partial(_wrap_checkpoints, state, tuple(blocks)))
    stack.__dict__.setdefault(CHECKPOINT_HOOKS, []).append(handle)


def checkpoint_as_before(module: nn.Module) -> None:
    """Undo `checkpoint_with_frame` on a stack, or on a block."""
    for handle in module.__dict__.pop(CHECKPOINT_HOOKS, []):
        handle.remove()
    function = module.__dict__.get(CHECKPOINT)
    if isinstance(function, partial) and function.func is _checkpoint:
        module.__dict__[CHECKPOINT] = function.args[1]


def _wrap_checkpoints(state: CallState, blocks: Sequence[nn.Module], stack: nn.Module, args: Any) -> None:
    if not stack.training:
        return
    for block in blocks:
        function = block.__dict__.get(CHECKPOINT)
        if function is not None and not (isinstance(function, partial) and function.func is _checkpoint):
            block.__dict__[CHECKPOINT] = partial(_checkpoint, state, function)


def _checkpoint(state: CallState, checkpoint: Callable[..., Any], compute: Callable[..., Any], *args: Any) -> Any:
    return checkpoint(_Resumed(state, compute), *args)


class _Resumed:
    """`compute` of a block in the call that is open now.  `__self__` is the block: LLaMA-Factory looks for it there."""

    def __init__(self, state: CallState, compute: Callable[..., Any]) -> None:
        self.state, self.frame, self.outer, self.compute = state, state.frame, state.outer, compute
        self.__self__ = getattr(getattr(compute, "func", compute), "__self__", None)

    def __call__(self, *args: Any) -> Any:
        with self.state.resumed(self.frame, self.outer):
            return self.compute(*args)
