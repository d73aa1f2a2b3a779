"""Steering vectors without training: a direction between two kinds of prompts, as a `steer` adapter.

Of each layer the states of the last token of every prompt are taken.  Directions of unit length, from the negative
prompts to the positive ones: the difference of means; the first principal direction of the pairs' differences, turned
that way (RepE, arXiv 2310.01405); the weights of a logistic regression.  Layer and kind are those that tell held-back
prompts best apart; the strength is the distance of the two means along the direction, so that 1 on the dial moves a
state from one mean to the other.

Must not know: what the vectors are for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data import encode_prompt
from ..errors import MissingExtraError, ReftuneError
from ..models import load_base
from ..tuner.parts import Group, Part
from .parts import check_output, write
from .states import blocks_of, states_of

__all__ = ["DIRECTIONS", "Direction", "directions_of", "steer"]

# Of the prompts, every fourth pair is held back.
HELD_BACK = 4


class Direction(NamedTuple):
    """A unit vector v [d] at a layer, the distance between the means along it, and how many held-back prompts it
    tells apart (halfway between the means of the others), as a share."""

    kind: str
    layer: int
    v: Tensor
    distance: float
    apart: float


def difference(positive: Tensor, negative: Tensor) -> Tensor:
    """[n, d] each → [d], from one mean to the other."""
    return positive.mean(0) - negative.mean(0)


def principal(positive: Tensor, negative: Tensor) -> Tensor:
    """The direction of the largest second moment of the pairs' differences, from the negative to the positive."""
    v = torch.linalg.svd(positive - negative, full_matrices=False).Vh[0]
    return v if v @ difference(positive, negative) >= 0 else -v


def probe(positive: Tensor, negative: Tensor) -> Tensor:
    """The weights of a logistic regression on standardised states, in terms of the states."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 — in an extra

    both = torch.cat([positive, negative])
    scale = both.std(0).clamp(min=1e-6)
    labels = [1] * len(positive) + [0] * len(negative)
    fitted = LogisticRegression(C=0.1, max_iter=1000).fit(((both - both.mean(0)) / scale).numpy(), labels)
    return torch.from_numpy(fitted.coef_[0]) / scale


DIRECTIONS = {"difference": difference, "pca": principal, "probe": probe}


def directions_of(positive: Tensor, negative: Tensor, layer: int, kinds: Sequence[str]) -> list[Direction]:
    """What each kind finds in the states [n, d] of pairs, n the same in both, held-back pairs left out of the fit."""
    held = torch.arange(len(positive)) % HELD_BACK == HELD_BACK - 1
    sides = [side.double() for side in (positive, negative)]
    fitted, rest = [side[~held] for side in sides], [side[held] for side in sides]
    found = []
    for kind in kinds:
        v = DIRECTIONS[kind](*fitted)
        v = v / v.norm().clamp(min=1e-12)
        high, low = (float((side @ v).mean()) for side in fitted)
        middle = (high + low) / 2
        right = (rest[0] @ v > middle).sum() + (rest[1] @ v < middle).sum()
        found.append(Direction(kind, layer, v, high - low, float(right) / (2 * len(rest[0]))))
    return found


def steer(
    base: str,
    output: str | Path,
    *,
    positive: Sequence[Any],
    negative: Sequence[Any],
    kinds: Sequence[str] = tuple(DIRECTIONS),
    positions: str = "all",
) -> tuple[Path, list[Direction], Direction]:
    """A `steer` adapter of the base model from pairs of prompts; all directions, and the one that it is.

    Raises:
        MissingExtraError: scikit-learn is not installed, which the probe needs.
        ReftuneError: the two are not pairs, or too few.
    """
    check_output(output)
    unknown = [kind for kind in kinds if kind not in DIRECTIONS]
    if unknown or not kinds:
        raise ReftuneError(f"{unknown or kinds!r} is no kind of direction; valid are {', '.join(DIRECTIONS)}")
    if "probe" in kinds and importlib.util.find_spec("sklearn") is None:
        raise MissingExtraError("scikit-learn", extra="scores")
    if len(positive) != len(negative) or len(positive) < 2 * HELD_BACK:
        raise ReftuneError(
            f"{len(positive)} positive and {len(negative)} negative prompts are no pairs; as many of each are needed, "
            f"at least {2 * HELD_BACK}, the n-th of one beside the n-th of the other"
        )
    model, tokenizer = load_base(base, dtype=torch.float32)
    layers = range(len(blocks_of(model)))
    sides = [
        states_of(model, [encode_prompt(prompt, tokenizer) for prompt in prompts], layers, last=True)
        for prompts in (positive, negative)
    ]
    rows = [[torch.cat(side[layer]) for side in sides] for layer in layers]
    found = [one for layer, (high, low) in enumerate(rows) for one in directions_of(high, low, layer, kinds)]
    # of equals the one in the middle of the model, where edits are known to act best
    middle = len(layers) / 2
    best = max(found, key=lambda one: (one.apart, -abs(one.layer + 0.5 - middle)))
    tensors = {"a": torch.tensor([best.distance]), "v": best.v.float()}
    group = Group("block_output", positions, "all", ("steer", 1, None), {best.layer: [Part("steer", tensors)]}, {})
    return write([group], base=base, output=output), found, best
