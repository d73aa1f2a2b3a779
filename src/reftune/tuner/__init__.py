"""ReFT as a PEFT tuner.

Must not know: training and all above it.
"""

from .layer import ReftLayer
from .model import ReftModel
from .register import register

__all__ = ["ReftLayer", "ReftModel", "register"]
