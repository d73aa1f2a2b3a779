"""The files of an adapter, in a folder or on the Hub, looked at before PEFT reads them and a model is changed.

Whoever wrote them may have meant harm: nothing is read beyond a limit, and nothing that they ask for is built before
it is known that the weights are there for it.

Must not know: base models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from .config import ReftConfig, refuse_patterns
from .data.style import STYLE_FILE, PromptStyle
from .errors import ReftuneError
from .hub import HUB_NAME, hub_arguments
from .specs import unit_count
from .tuner.targets import added_heads
from .values import shown

__all__ = [
    "UNREADABLE",
    "adapter_config",
    "adapter_style",
    "brief",
    "check_config_file",
    "check_loaded",
    "check_weights",
    "common_style",
    "is_adapter",
]

CONFIG_LIMIT = 2**20
# of a message that is not ours
LONGEST = 600
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# What PEFT, torch and safetensors raise on files that are not as they should be.
UNREADABLE = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError),
    *(SafetensorError, UserWarning, ValueError),
)


def is_adapter(name: str | Path) -> bool:
    """Whether a folder or a Hub repository holds an adapter; False if there is neither."""
    if Path(name).is_dir():
        return (Path(name) / "adapter_config.json").is_file()
    # adapters on the Hub have an owner; what has none is a folder that is not there, or one of the first models
    return (
        bool(HUB_NAME.fullmatch(str(name))) and find_adapter_config_file(str(name), **hub_arguments(name)) is not None
    )


def adapter_config(folder: str | Path) -> PeftConfig:
    """The configuration of an adapter in a folder or on the Hub.

    Raises:
        ReftuneError: there is none, or it cannot be read.
    """
    if not is_adapter(folder):
        what = "holds no adapter_config.json" if Path(folder).is_dir() else "is neither a folder nor on the Hub"
        raise ReftuneError(f"there is no adapter in {str(folder)!r}: it {what}")
    where = f"the adapter_config.json of {str(folder)!r}"
    try:
        hub = hub_arguments(folder)
        check_config_file(str(find_adapter_config_file(str(folder), **hub)))
        return PeftConfig.from_pretrained(str(folder), **hub)
    except UNREADABLE as error:
        raise ReftuneError(f"{where} cannot be read: {brief(error)}") from error


def adapter_style(folder: str | Path) -> PromptStyle | None:
    """How the prompts of an adapter in a folder or on the Hub were written, None if nothing says.

    Raises:
        DataError: its `reftune.json` cannot be used.
    """
    if Path(folder).is_dir():
        return PromptStyle.read(folder)
    try:
        return PromptStyle.read(Path(hf_hub_download(str(folder), STYLE_FILE, **hub_arguments(folder))).parent)
    except (EntryNotFoundError, OfflineModeIsEnabled):
        return None


def common_style(folders: Iterable[str | Path]) -> PromptStyle | None:
    """How the prompts of all these adapters were written, None where they differ or one does not say."""
    found = {adapter_style(folder) for folder in folders}
    return found.pop() if len(found) == 1 else None


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


def check_loaded(folder: str | Path, model: PeftModel, **hub: Any) -> None:
    """What `tuner.surplus` warns of before the weights are loaded; PEFT 0.20 does not let it, so it is looked at after.

    Raises:
        ValueError: the file has tensors that are not the adapter's.
    """
    if hasattr(BaseTuner, "_remap_adapter_state_dict_for_load"):
        return
    file = _weights_of(folder, **hub)
    if file.suffix != ".safetensors":
        return
    with safe_open(file, framework="pt") as opened:
        surplus = sorted(set(opened.keys()) - set(get_peft_model_state_dict(model)))
    if surplus:
        raise ValueError(f"its weights have {len(surplus)} tensors that are not the adapter's: {shown(surplus)}")


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


def brief(error: Exception) -> str:
    """What a library says of a problem, in a line."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if isinstance(error, KeyError):
        return f"{shown(error.args[0]) if error.args else 'a name'} is missing"
    # torch's first line only says that something follows
    text = " ".join(lines[:2]) if lines else type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
