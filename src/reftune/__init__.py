"""reftune: representation finetuning (ReFT) as a method of Hugging Face PEFT.  Importing it registers the method."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .config import ReftConfig
from .errors import DataError, MissingExtraError, PositionError, ReftuneError
from .interventions import INTERVENTIONS, Intervention, InterventionOptions
from .positions import PositionSpec, parse_positions
from .tuner import ReftLayer, ReftModel, register

if TYPE_CHECKING:
    from .data import PromptStyle, ReftCollator, build_dataset, encode_prompt, load_records, tokenize_record
    from .generation import generate_texts
    from .training import Gates, ReftTrainer, parameter_groups

__all__ = [
    "INTERVENTIONS",
    "DataError",
    "Gates",
    "Intervention",
    "InterventionOptions",
    "MissingExtraError",
    "PositionError",
    "PositionSpec",
    "PromptStyle",
    "ReftCollator",
    "ReftConfig",
    "ReftLayer",
    "ReftModel",
    "ReftTrainer",
    "ReftuneError",
    "build_dataset",
    "encode_prompt",
    "generate_texts",
    "load_records",
    "parameter_groups",
    "parse_positions",
    "register",
    "tokenize_record",
]
__version__ = "0.1.0"

# Loaded when first asked for: `import reftune` must not cost what Trainer costs.
_LATER = {
    "Gates": ".training",
    "PromptStyle": ".data",
    "ReftCollator": ".data",
    "ReftTrainer": ".training",
    "build_dataset": ".data",
    "encode_prompt": ".data",
    "generate_texts": ".generation",
    "load_records": ".data",
    "parameter_groups": ".training",
    "tokenize_record": ".data",
}

register()


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
