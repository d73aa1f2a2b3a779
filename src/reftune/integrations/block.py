"""The block `reft:` of another program's configuration, as a `ReftConfig`.

Must not know: whose configuration it is.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from peft.config import PeftConfig

from ..config import ReftConfig
from ..errors import ReftuneError
from ..training.run import keys_and_values, refuse_unknown

__all__ = ["FIELDS", "read_block", "reft_config"]

# what PEFT and the program itself fill in
FIELDS = {f.name for f in fields(ReftConfig)} - {f.name for f in fields(PeftConfig)}


def reft_config(block: Any, *, task: str | None = "CAUSAL_LM") -> ReftConfig:
    """The configuration of a fresh adapter, from a mapping or a JSON text; nothing at all is `ReftConfig`'s defaults.

    Raises:
        ReftuneError: it is something else, has unknown fields, or a value that is not valid.
    """
    values = read_block(block)
    refuse_unknown("reft", values, FIELDS)
    try:
        return ReftConfig(task_type=task, **values)
    except ValueError as error:
        raise ReftuneError(f"reft: {error}") from error


def read_block(block: Any) -> dict[str, Any]:
    """The values that are given, from a mapping or a JSON text.

    Raises:
        ReftuneError: it is something else.
    """
    if isinstance(block, str):
        try:
            block = json.loads(block)
        except ValueError as error:
            example = '{"r": 4, "positions": "f7+l7"}'
            raise ReftuneError(f"reft={block!r} cannot be read ({error}); it is JSON such as '{example}'") from error
    # programs that make objects of their configuration fill in None for what was not given
    found = keys_and_values("reft", {} if block is None else block)
    return {name: value for name, value in found.items() if value is not None}
