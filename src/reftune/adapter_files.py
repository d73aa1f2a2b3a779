"""The files of an adapter, looked at before PEFT reads them and before a model is changed.

Whoever wrote them may have meant harm: nothing is read beyond a limit, and nothing that they ask for is built before
it is known that the weights are there for it.

Must not know: base models, where adapters are kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file

from .config import ReftConfig, refuse_patterns
from .positions import unit_count
from .tuner.targets import added_heads
from .values import shown

__all__ = ["UNREADABLE", "check_config_file", "check_weights"]

CONFIG_LIMIT = 2**20
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# What PEFT, torch and safetensors raise on files that are not as they should be.
UNREADABLE = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError),
    *(SafetensorError, UserWarning, ValueError),
)


def check_config_file(path: str) -> None:
    """What PEFT takes for granted: a JSON object of moderate size that names a method, a base and a task by texts.

    Raises:
        ValueError: it is something else.
    """
    with open(path, "rb") as file:
        content = file.read(CONFIG_LIMIT + 1)
    if len(content) > CONFIG_LIMIT:
        raise ValueError(f"it has more than {CONFIG_LIMIT} bytes")
    try:
        values = json.loads(content)
    except RecursionError:
        raise ValueError("its values are nested too deep") from None
    if not isinstance(values, dict):
        raise ValueError(f"it is not a JSON object but {shown(values)}")
    if values.get("peft_type") not in list(PEFT_TYPE_TO_CONFIG_MAPPING):
        raise ValueError(f"peft_type={shown(values.get('peft_type'))} is no method of PEFT's; reftune's is 'REFT'")
    for name in ("base_model_name_or_path", "task_type", "revision", "peft_version"):
        if not isinstance(values.get(name), (str, type(None))):
            raise ValueError(f"{name}={shown(values[name])} is not a text")


def check_weights(folder: str | Path, config: PeftConfig, **hub: Any) -> None:
    """Before a model gets what the configuration asks for: that the weights are there, and are as many.

    `hub` says how the Hub is asked for an adapter that is not in a folder.

    Raises:
        ValueError: they are not; or the configuration has a regex that reftune did not write.
        SafetensorError: they cannot be read.
    """
    file = _weights_of(folder, **hub)
    if not isinstance(config, ReftConfig):
        return
    refuse_patterns(config)
    if file.suffix != ".safetensors":
        return
    with safe_open(file, framework="pt") as opened:
        keys = list(opened.keys())
    units = sum(max(1, unit_count(group.spec, group.tie)) for group in config.resolved_groups())
    wanted = max(units, len(set(config.modules_to_save or ()).difference(added_heads(config))))
    if wanted > len(keys):
        raise ValueError(f"its weights are {len(keys)} tensors, but its configuration asks for {wanted} or more")


def _weights_of(folder: str | Path, **hub: Any) -> Path:
    """The file of the weights, in a folder or brought from the Hub.

    Raises:
        ValueError: there is none.
    """
    for name in WEIGHTS:
        if Path(folder).is_dir():
            found = Path(folder) / name
            if found.is_file():
                return found
            if found.exists():
                raise ValueError(f"{name} is not a regular file")
        else:
            found = cached_file(str(folder), name, _raise_exceptions_for_missing_entries=False, **hub)
            if found is not None:
                return Path(found)
    raise ValueError(f"it has no weights; {WEIGHTS[0]} is missing")
