"""Serving: many adapters beside one base model, one chosen by the `model` of each request.

`modules` reads what the command line names, `adapters` reads and checks saved adapters; both are shared by the
backends, which are packages of their own: `embedded` runs on transformers alone.

Must not know: training, the command line.
"""

from __future__ import annotations

from .adapters import AdapterError, AdapterFiles, check_layers, check_rank, check_width, read_adapter
from .modules import ReftModule, allowed_path, check_name, parse_modules

__all__ = [
    "AdapterError",
    "AdapterFiles",
    "ReftModule",
    "allowed_path",
    "check_layers",
    "check_name",
    "check_rank",
    "check_width",
    "parse_modules",
    "read_adapter",
]
