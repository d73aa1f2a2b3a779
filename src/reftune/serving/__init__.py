"""Serving: many adapters beside one base model, one chosen by the `model` of each request.

`modules` reads what the command line names, `adapters` and `tensors` read and check saved adapters within limits, in
`pieces` so that running answers go on, `prompts` puts requests as training did, `cards` is what is told of adapters;
they are shared by the backends, which are packages of their own: `embedded` runs on transformers alone, `vllm` is a
plug-in of vLLM.

Must not know: training, the command line.
"""

from __future__ import annotations

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
