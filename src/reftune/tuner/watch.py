"""Hooks that open a call of a model, before its blocks run, and close it after.

They are put on the root, on each stack of blocks and on the models between, so that what a caller says at any of these
is known to the blocks.

Must not know: interventions, and how prompts are found.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..segments import IGNORED_LABEL
from .caches import find_cache, note_of, put_note
from .context import PROMPT_IDS, PROMPT_LENGTH, SPANS, STRENGTH, SUBSPACES, CallState, Frame, Outer, Role, strengths_of
from .prompts import note_for, open_frame

__all__ = ["WATCHED", "allow_whole_texts", "call_state", "unwatch", "watch"]

WATCHED = "_reft_watched"
HANDLES = "_reft_handles"


@dataclass(frozen=True)
class Watched:
    """What the hooks on a module need to know of it."""

    state: CallState
    role: Role
    is_root: bool
    is_lm: bool
    parameters: tuple[str, ...]
    whole_texts: bool = False
    """Whether a text of which nothing says where its prompt ends may be trained as one whole prompt."""


def watch(module: nn.Module, state: CallState, *, role: Role, is_root: bool, is_lm: bool) -> None:
    """Register the hooks that open and close a call of `module`.  `unwatch` removes them."""
    # hooks get positional values without names
    signature = inspect.signature(module.forward)
    module.__dict__[WATCHED] = Watched(state, role, is_root, is_lm, tuple(signature.parameters))
    module.__dict__[HANDLES] = (
        module.register_forward_pre_hook(enter_model, with_kwargs=True),
        module.register_forward_hook(leave_model, with_kwargs=True, always_call=True),
    )
    own = module.__dict__.get("forward")
    direct = partial(call_directly, module, module.forward, own)
    direct.__signature__ = signature  # type: ignore[attr-defined]
    module.__dict__["forward"] = direct


def unwatch(module: nn.Module) -> None:
    """Undo `watch`."""
    for handle in module.__dict__.pop(HANDLES, ()):
        handle.remove()
    direct = module.__dict__.get("forward")
    # another's wrapper around ours stays; ours then passes all calls on
    if isinstance(direct, partial) and direct.func is call_directly:
        own = direct.args[2]
        del module.__dict__["forward"]
        if own is not None:
            module.__dict__["forward"] = own
    module.__dict__.pop(WATCHED, None)


def call_state(root: nn.Module) -> CallState | None:
    """The state of calls of a model that has ReFT adapters; None if it has none."""
    watched: Watched | None = root.__dict__.get(WATCHED)
    return None if watched is None else watched.state


def allow_whole_texts(root: nn.Module) -> None:
    """Let every watched module of a model train texts as whole prompts where nothing says where these end."""
    for module in root.modules():
        if WATCHED in module.__dict__:
            module.__dict__[WATCHED] = replace(module.__dict__[WATCHED], whole_texts=True)


def call_directly(module: nn.Module, forward: Callable[..., Any], own: Any, *args: Any, **kwargs: Any) -> Any:
    """`forward` of a watched module; opens the call where nothing did.

    PEFT before 0.21 and sentence-transformers call `model.forward(…)`, past the hooks.
    """
    del own
    watched: Watched | None = module.__dict__.get(WATCHED)
    if watched is None:
        return forward(*args, **kwargs)
    calls = watched.state.calls
    top = calls[-1][0] if calls else None
    if top is module:
        return forward(*args, **kwargs)
    if top is not None and top.__dict__.get(WATCHED) is watched:
        # a replica that torch.nn.DataParallel made by copying the module's attributes, this function among them
        return getattr(forward, "__func__", type(top).forward)(top, *args, **kwargs)
    args, kwargs = enter_model(module, args, kwargs)
    output = None
    try:
        output = forward(*args, **kwargs)
        return output
    finally:
        leave_model(module, args, kwargs, output)


def enter_model(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Forward pre-hook of watched modules: opens what `leave_model` closes."""
    watched: Watched = module.__dict__[WATCHED]
    state = watched.state
    given = {**dict(zip(watched.parameters, args, strict=False)), **kwargs}
    if watched.is_root:
        # A model does not call itself: what is open here was left by an interrupt (Ctrl-C passes by leave_model).
        state.calls.clear()
        if kwargs.get("adapter_names") is not None and "adapter_names" not in watched.parameters:
            raise ValueError(
                "adapter_names came to the model past PEFT, which knows no mixed batches for some models (MPT), so it "
                "would be ignored; call the model once for each adapter, or generate(), which mixes them"
            )
    own = (PROMPT_LENGTH, PROMPT_IDS, SUBSPACES, STRENGTH, SPANS)
    if any(name in kwargs for name in own):
        kwargs = {k: v for k, v in kwargs.items() if k not in own}
    outer = _with_arguments(state.outer, given, is_lm=watched.is_lm)
    frame = None if watched.role == "above" else open_frame(watched.role, state, outer, given)
    if frame is not None:
        is_trained = watched.is_lm and module.training and torch.is_grad_enabled()
        frame.in_training = is_trained and not watched.whole_texts
    state.calls.append((module, outer, frame))
    return args, kwargs


def leave_model(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    """Forward hook of the same modules, called always: closes what `enter_model` opened, if it did open it."""
    watched: Watched = module.__dict__[WATCHED]
    calls = watched.state.calls
    if calls and calls[-1][0] is module:
        _, outer, frame = calls.pop()
        if frame is not None and watched.role == "causal" and not outer.generating and output is not None:
            _note_on_cache(frame, kwargs, output)


def _with_arguments(outer: Outer, given: Mapping[str, Any], *, is_lm: bool) -> Outer:
    """What is known above a call, with what its arguments say."""
    said: dict[str, Any] = {}
    if given.get(PROMPT_LENGTH) is not None:
        said["prompt_length"] = torch.as_tensor(given[PROMPT_LENGTH])
    if given.get(SUBSPACES) is not None:
        said["subspaces"] = given[SUBSPACES]
    if given.get(STRENGTH) is not None:
        said["strength"] = strengths_of(given[STRENGTH])
    if given.get(SPANS) is not None:
        said["spans"] = torch.as_tensor(given[SPANS])
    if given.get(PROMPT_IDS) is not None:
        said["prompt_ids"] = torch.as_tensor(given[PROMPT_IDS])
    if is_lm and given.get("labels") is not None:
        said["labels"] = _of_all_columns(given["labels"], given)
    for name, argument in (("mask", "attention_mask"), ("tokens", "input_ids")):
        value = given.get(argument)
        if isinstance(value, Tensor) and value.ndim == 2:
            said[name] = value
    if _scores_columns(given.get("logits_to_keep")):
        said["scored_columns"] = True
    return replace(outer, **said) if said else outer


def _of_all_columns(labels: Any, given: Mapping[str, Any]) -> Any:
    """Labels that were cut to the columns of `logits_to_keep`, as wide as the text again; others as they are.

    Cut labels are those of the tokens behind the columns that are kept: logits j is compared with label j + 1.
    """
    keep, tokens = given.get("logits_to_keep"), given.get("input_ids")
    tokens = given.get("inputs_embeds") if tokens is None else tokens
    if not isinstance(labels, Tensor) or not isinstance(tokens, Tensor) or labels.ndim != 2 or keep is None:
        return labels
    width = tokens.shape[1]
    if isinstance(keep, int):
        columns = torch.arange(width - keep, width, device=labels.device)
    elif torch.compiler.is_compiling():
        return labels
    else:
        columns = keep.flatten().nonzero().flatten() if keep.dtype == torch.bool else keep.flatten() % width
    if labels.shape[1] == width or labels.shape[1] != columns.numel():
        return labels
    whole = labels.new_full((labels.shape[0], width), IGNORED_LABEL)
    whole[:, columns[:-1].to(labels.device) + 1] = labels[:, 1:]
    return whole


def _scores_columns(logits_to_keep: Any) -> bool:
    """Whether logits of several columns are asked for: the mark of scoring, which a prefill does not have."""
    if isinstance(logits_to_keep, Tensor):
        return logits_to_keep.numel() > 1
    return bool(logits_to_keep) and logits_to_keep > 1


def _note_on_cache(frame: Frame, kwargs: Mapping[str, Any], output: Any) -> None:
    """Note on the cache that a call has filled which prompts it was edited for."""
    if torch.compiler.is_compiling():
        return
    cache = find_cache(kwargs)
    if cache is None and isinstance(output, Mapping):
        cache = find_cache(output)
    if cache is not None and (note := note_for(frame, note_of(cache))) is not None:
        put_note(cache, note)
