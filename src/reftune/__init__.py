"""reftune: representation finetuning (ReFT) as a method of Hugging Face PEFT.  Importing it registers the method."""

from .config import ReftConfig
from .errors import DataError, MissingExtraError, PositionError, ReftuneError
from .interventions import INTERVENTIONS, Intervention, InterventionOptions
from .positions import PositionSpec, parse_positions
from .tuner import ReftLayer, ReftModel, register

__all__ = [
    "INTERVENTIONS",
    "DataError",
    "Intervention",
    "InterventionOptions",
    "MissingExtraError",
    "PositionError",
    "PositionSpec",
    "ReftConfig",
    "ReftLayer",
    "ReftModel",
    "ReftuneError",
    "parse_positions",
    "register",
]
__version__ = "0.1.0"

register()
