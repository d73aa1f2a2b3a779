"""What a run has trained, on disk and back: an adapter, or the tensors of the model itself that a method changed.

Must not know: how it was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file, save_file

from ..files import whole
from ..models import save_adapter
from .methods import trained_state

__all__ = ["ADAPTER", "TRAINED", "load_trained", "save_trained", "size_of"]

ADAPTER = "adapter"
TRAINED = "trained.safetensors"


def save_trained(model: Any, folder: Path) -> None:
    """Into `adapter/` or `trained.safetensors` of a run's folder."""
    if isinstance(model, PeftModel):
        save_adapter(model, folder / ADAPTER)
        return
    with whole(folder / TRAINED) as part:
        save_file(trained_state(model), part)


def load_trained(model: Any, folder: Path) -> None:
    """Put what `save_trained` wrote on a model that the same method was applied to."""
    if isinstance(model, PeftModel):
        model.load_adapter(str(folder / ADAPTER), "default", is_trainable=True)
        return
    _, unexpected = model.load_state_dict(load_file(folder / TRAINED), strict=False)
    assert not unexpected, unexpected


def size_of(model: Any, folder: Path) -> dict[str, Any]:
    """Parameters trained, in number and % of all, and the bytes of what was saved."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    files = [folder / TRAINED, folder / ADAPTER / "adapter_model.safetensors"]
    return {
        "trained_parameters": trained,
        "trained_percent": 100 * trained / total,
        "adapter_bytes": sum(file.stat().st_size for file in files if file.is_file()),
    }
