"""The elementwise functions that may follow the learned affine map of an intervention.

Must not know: which intervention uses them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ACTIVATIONS", "Activation", "activation"]


class Activation(NamedTuple):
    function: Callable[[Tensor], Tensor]
    starts_from_zero: bool
    """f(0) = 0 and f'(0) != 0: an affine map of zeros edits nothing and still gets a gradient.

    relu fails the second half: torch takes its slope at 0 as 0, so such a start would never be left.
    """


ACTIVATIONS: dict[str, Activation] = {
    "gelu": Activation(F.gelu, starts_from_zero=True),
    "relu": Activation(F.relu, starts_from_zero=False),
    "sigmoid": Activation(torch.sigmoid, starts_from_zero=False),
    "silu": Activation(F.silu, starts_from_zero=True),
    "tanh": Activation(torch.tanh, starts_from_zero=True),
}


def activation(act_fn: str | None) -> Activation | None:
    """Look up a name; None stands for no activation at all."""
    if act_fn is None or act_fn == "linear":
        return None
    if act_fn not in ACTIVATIONS:
        raise ValueError(f"act_fn={act_fn!r} is unknown: use None, 'linear' or one of {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[act_fn]
