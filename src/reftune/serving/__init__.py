"""Serving: many adapters beside one base model, one chosen by the `model` of each request.

`modules` reads what the command line names, `adapters` and `tensors` read and check saved adapters within limits, in
`pieces` so that running answers go on, `prompts` puts requests as training did, `cards` is what is told of adapters;
they are shared by the backends, which are packages of their own: `embedded` runs on transformers alone, `vllm` is a
plug-in of vLLM.

Must not know: training, the command line.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters import AdapterError, AdapterFiles, check_layers, check_width, read_adapter
    from .modules import ReftModule, allowed_path, check_name, parse_modules

__all__ = [
    "AdapterError",
    "AdapterFiles",
    "ReftModule",
    "allowed_path",
    "check_layers",
    "check_name",
    "check_width",
    "parse_modules",
    "read_adapter",
]

# Loaded when first asked for: the flags of a server are told without torch.
_OF_MODULES = ("ReftModule", "allowed_path", "check_name", "parse_modules")


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(".modules" if name in _OF_MODULES else ".adapters", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
