"""Keeps interventions in float32 on a quantised base.

TRL's trainers cast all that is trained to bfloat16 if bitsandbytes has quantised the base, after the adapter is made:
right for LoRA's factors, but steps of an orthonormal basis are smaller than bfloat16 can hold.  Nothing of PEFT is
told of it, so each intervention remembers what it was, and takes it back when a mode is set, which every trainer does
before its first step, and before weights are loaded.

Must not know: sites, positions, calls.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

__all__ = ["is_quantised", "keep_float32", "put_back"]

WIDE = "_reft_wide"
NARROW = (torch.bfloat16, torch.float16)


def is_quantised(model: nn.Module) -> bool:
    """Whether transformers loaded the model with quantised weights."""
    return getattr(model, "hf_quantizer", None) is not None


def keep_float32(phi: nn.Module) -> None:
    """From now on, `put_back` undoes casts of the parameters of this intervention."""
    if any(p.is_meta or p.dtype in NARROW for p in phi.parameters()):
        return
    if WIDE not in phi.__dict__:
        phi.register_load_state_dict_pre_hook(_put_back_before_load)
    phi.__dict__[WIDE] = {name: p.detach().clone() for name, p in phi.named_parameters()}


def put_back(phi: nn.Module) -> None:
    """Undo a cast to 16 bits: exactly if that is all that happened since `keep_float32`, else up to its rounding."""
    wide: dict[str, torch.Tensor] | None = phi.__dict__.get(WIDE)
    if wide is None or not any(p.dtype in NARROW for p in phi.parameters()):
        return
    if _several_processes():
        # The buckets that gather gradients have been made for 16 bits already.
        warnings.warn("interventions were cast to 16 bits and stay so, as several processes train them", stacklevel=2)
        return
    for name, parameter in phi.named_parameters():
        if parameter.dtype in NARROW:
            before = wide[name].to(parameter.device)
            unchanged = torch.equal(before.to(parameter.dtype), parameter.data)
            parameter.grad = None
            parameter.data = before.clone() if unchanged else parameter.data.to(before.dtype)


def _several_processes() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _put_back_before_load(phi: nn.Module, *args: Any) -> None:
    put_back(phi)
