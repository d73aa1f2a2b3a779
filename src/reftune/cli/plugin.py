"""`reftune plugin`: where a tool finds reftune's plug-in."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from .output import JsonFlag, emit

__all__ = ["plugin"]

EXAMPLE = """Print what a tool's configuration names as its plug-in.

Examples:

    swift sft --tuner_type reft --external_plugins "$(reftune plugin ms-swift)"

    reftune plugin axolotl
"""
AXOLOTL = "reftune.integrations.axolotl.ReftPlugin"


def plugin(
    tool: Annotated[Literal["ms-swift", "axolotl"], typer.Argument(help="The tool.")], as_json: JsonFlag = False
) -> None:
    found = AXOLOTL if tool == "axolotl" else str(module_file("swift"))
    if as_json:
        emit({"tool": tool, "plugin": found})
    else:
        typer.echo(found)


plugin.__doc__ = EXAMPLE


def module_file(name: str) -> Path:
    """Of `reftune.integrations`, which is not loaded for it."""
    spec = find_spec("reftune.integrations")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / f"{name}.py"
