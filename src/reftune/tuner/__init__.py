"""ReFT as a PEFT tuner.

Must not know: training and all above it.
"""

from .layer import BASE, ReftLayer
from .meter import Meter
from .model import ReftModel
from .register import register
from .sites import find_root, find_stacks
from .watch import call_state

__all__ = ["BASE", "Meter", "ReftLayer", "ReftModel", "call_state", "find_root", "find_stacks", "register"]
