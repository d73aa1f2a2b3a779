"""What all layers need at a call, made at once before its blocks run: their orthonormal rows in one batched QR, and
without gradients their edits folded.

Must not know: positions beyond whether a call has a prompt, how edits are applied.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..interventions import OrthonormalIntervention, orthonormal_rows
from .context import Frame, Outer
from .fold import Map, fold, known_groups, known_map
from .layer import BASE, ReftLayer
from .watch import WATCHED

__all__ = ["prepare_bases", "share_bases", "share_no_bases"]

LAYERS = "_reft_layers"
ONLY_PROMPTS = "_reft_only_prompts"
HANDLE = "_reft_bases_hook"


def share_bases(stack: nn.Module) -> None:
    """Let calls of `stack` compute the bases of all `ReftLayer`s below it before its blocks run.

    Called anew whenever layers were added.
    """
    layers = [module for module in stack.modules() if isinstance(module, ReftLayer)]
    stack.__dict__[LAYERS] = layers
    stack.__dict__[ONLY_PROMPTS] = all(layer.only_prompts for layer in layers)
    if HANDLE not in stack.__dict__:
        stack.__dict__[HANDLE] = stack.register_forward_pre_hook(prepare_bases)


def share_no_bases(module: nn.Module) -> None:
    """Undo `share_bases`."""
    module.__dict__.pop(LAYERS, None)
    module.__dict__.pop(ONLY_PROMPTS, None)
    handle = module.__dict__.pop(HANDLE, None)
    if handle is not None:
        handle.remove()


def prepare_bases(stack: nn.Module, args: Any) -> None:
    """Forward pre-hook of a stack, behind the one that opens its frame."""
    state = stack.__dict__[WATCHED].state
    frame: Frame | None = state.frame
    if frame is None or (frame.no_prompt and stack.__dict__[ONLY_PROMPTS]):
        return
    if stack.training and getattr(stack, "gradient_checkpointing", False):
        # a block that is computed anew in the backward pass needs its basis within its own graph
        return
    if state.outer.bases is not None:
        frame.bases = state.outer.bases
    missing: dict[tuple[Any, ...], list[OrthonormalIntervention]] = {}
    maps: dict[nn.Module, Map] = {}
    looks = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    layers = stack.__dict__[LAYERS]
    for phi in () if known_groups(layers, frame, state.outer) is not None else _needed(layers, frame, state.outer):
        # parameters of another class are in pieces over several processes until their block runs
        if phi in frame.bases or type(phi.R) is not nn.Parameter:
            continue
        if looks and (known := known_map(phi)) is not None:
            maps[phi], frame.bases[phi] = known, known.basis
        else:
            missing.setdefault((tuple(phi.R.shape), phi.R.dtype, phi.R.device), []).append(phi)
    for phis in missing.values():
        for phi, basis in zip(phis, _rows([phi.R for phi in phis]), strict=True):
            frame.bases[phi] = basis
    frame.folds.update(fold(layers, frame, state.outer, maps))


def _rows(raw: list[nn.Parameter]) -> tuple[Tensor, ...] | list[Tensor]:
    if len(raw) == 1:
        return [orthonormal_rows(raw[0])]
    return orthonormal_rows(torch.stack(list(raw))).unbind()


def _needed(layers: list[ReftLayer], frame: Frame, outer: Outer) -> Iterator[OrthonormalIntervention]:
    """Every Φ with orthonormal rows that the call applies."""
    for layer in layers:
        if layer.disable_adapters:
            continue
        names = layer.active_adapters if outer.adapter_names is None else sorted(set(outer.adapter_names) - {BASE})
        for name in names:
            for unit in layer.units(name):
                phi = layer.phi(name, unit)
                beside = frame.is_past(unit.group.spec)
                if isinstance(phi, OrthonormalIntervention) and not beside:
                    yield phi
