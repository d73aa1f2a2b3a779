"""Tells PEFT of ReFT.  Importing `reftune` does it; doing it twice is harmless.

Must not know: anything beyond the classes that it registers.
"""

from __future__ import annotations

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from ..config import ReftConfig
from ..peft_type import NAME, PREFIX, REFT
from .model import ReftModel

__all__ = ["register"]


def register() -> None:
    """Add the method `REFT` to PEFT's tables.

    Raises:
        RuntimeError: another package has registered a method of this name.
    """
    registered = PEFT_TYPE_TO_CONFIG_MAPPING.get(REFT)
    if registered is ReftConfig:
        return
    if registered is not None:
        raise RuntimeError(f"{registered.__module__} has registered a PEFT method {NAME} already; import only one")
    register_peft_method(name=NAME.lower(), config_cls=ReftConfig, model_cls=ReftModel, prefix=PREFIX)
