"""Tensors of an adapter's file that are not the adapter's: PEFT drops them, or writes them into the base, silently.

Must not know: files, interventions.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..peft_type import PREFIX
from ..values import shown

__all__ = ["SurplusWarning", "warn_of_surplus"]

WRAPPED = "base_model.model."


class SurplusWarning(UserWarning):
    """An adapter's file has tensors that are not of the adapter; `reftune.models.put_adapter` refuses it."""


def warn_of_surplus(model: nn.Module, adapter_name: str, state_dict: Mapping[str, Tensor]) -> None:
    """Warn of tensors that have no place in the model, and of those that would change another's weights.

    `state_dict` has the names of `model`, which has the adapter; nothing of it is loaded yet.
    """
    here = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    if not any(name.startswith(WRAPPED) for name in here):
        # PEFT takes it off where the model is not wrapped
        state_dict = {name.removeprefix(WRAPPED): tensor for name, tensor in state_dict.items()}
    unknown = [name for name in state_dict if name not in here]
    if unknown:
        warnings.warn(
            f"the adapter's weights have {len(unknown)} tensors without a place in this model: {shown(unknown)}. The "
            "adapter was made for another base model or by another configuration (PEFT leaves such tensors out)",
            SurplusWarning,
            stacklevel=3,
        )
    others = [
        name
        for name, tensor in state_dict.items()
        if name in here and not _of_adapter(name, adapter_name) and not _same(tensor, here[name])
    ]
    if others:
        warnings.warn(
            f"the adapter's weights change {len(others)} tensors of the base model or of another adapter: "
            f"{shown(others)}. That is right only for embeddings that were resized; without the adapter, the model is "
            "not what it was",
            SurplusWarning,
            stacklevel=3,
        )


def _of_adapter(name: str, adapter_name: str) -> bool:
    before, found, _ = name.partition(f".{adapter_name}.")
    last = before.rpartition(".")[2]
    return bool(found) and (last.startswith(PREFIX) or last == "modules_to_save")


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether loading changes nothing; what cannot be compared is taken to change something."""
    if type(one) is not Tensor or not isinstance(other, (Tensor, nn.Parameter)) or one.shape != other.shape:
        return False
    if other.is_meta or type(other) not in (Tensor, nn.Parameter):
        return False
    return torch.equal(one.to(other.device, other.dtype), other.data)
