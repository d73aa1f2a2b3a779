"""Steering vectors without training: a direction between two kinds of prompts, as a `steer` adapter.

Of each layer the states of the last token of every prompt are taken.  Directions of unit length, from the negative
prompts to the positive ones: the difference of means; the first principal direction of the pairs' differences, turned
that way (RepE, arXiv 2310.01405); the weights of a logistic regression.

What is chosen is chosen on held-back pairs.  The directions of the layers that tell them best apart are tried in the
model: each is added to the negative prompts, in lengths of some parts of the distance between the two means along it,
and what is kept is the direction and length by which the next token is most as behind the positive ones (`Trial`).

Must not know: what the vectors are for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import get_peft_model
from torch import Tensor

from ..data import PromptStyle, encode_prompt
from ..errors import MissingExtraError, ReftuneError
from ..models import load_base
from ..tuner import ReftLayer
from ..tuner.parts import Group, Part, config_of, fill
from .parts import check_output, write
from .states import blocks_of, states_of

__all__ = ["DIRECTIONS", "Direction", "Steered", "Trial", "directions_of", "steer", "tried"]

# Of the prompts, every fourth pair is held back.
HELD_BACK = 4
# What is tried in the model: so many layers, and of each all directions, on at most so many held-back pairs; and
# lengths, in distances between the means.
LAYERS_TRIED = 4
MOST_HELD = 16
LENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0)


class Direction(NamedTuple):
    """A unit vector v [d] at a layer, the distance between the means along it, and how many held-back prompts it
    tells apart (halfway between the means of the others), as a share."""

    kind: str
    layer: int
    v: Tensor
    distance: float
    apart: float


class Trial(NamedTuple):
    """A direction in the model, added in a length that is `part` of its distance; `divergence` is the mean over the
    held-back pairs of KL(P ‖ Q) in nats, P of the next token behind the positive prompt, Q of that behind the negative
    one with the direction added."""

    direction: Direction
    part: float
    divergence: float


class Steered(NamedTuple):
    """What was made: all directions, those first that tell more apart; what was tried of them; the divergence without
    any; and what was chosen."""

    folder: Path
    found: list[Direction]
    trials: list[Trial]
    without: float
    best: Trial


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
    on_trial: Callable[[int, int], None] | None = None,
) -> Steered:
    """A `steer` adapter of the base model from pairs of prompts, of the direction and the length that are best.

    `on_trial(done, total)` is told how many directions have been tried in the model, 0 when all prompts are read.

    Raises:
        MissingExtraError: scikit-learn is not installed, which the probe needs.
        ReftuneError: the two are not pairs, or too few, or the same.
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
    if list(positive) == list(negative):
        raise ReftuneError("the positive and the negative prompts are the same, so nothing tells them apart")
    model, tokenizer = load_base(base, dtype=torch.float32)
    layers = range(len(blocks_of(model)))
    sides = [[encode_prompt(prompt, tokenizer) for prompt in prompts] for prompts in (positive, negative)]
    states = [states_of(model, side, layers, last=True) for side in sides]
    rows = [[torch.cat(side[layer]) for side in states] for layer in layers]
    found = [one for layer, (high, low) in enumerate(rows) for one in directions_of(high, low, layer, kinds)]
    # of equals the one in the middle of the model, where edits are known to act best
    middle = len(layers) / 2
    order = sorted(found, key=lambda one: (-one.apart, abs(one.layer + 0.5 - middle)))
    best_layers = list(dict.fromkeys(one.layer for one in order))[:LAYERS_TRIED]
    held = [side[HELD_BACK - 1 :: HELD_BACK][:MOST_HELD] for side in sides]
    chosen = [one for one in order if one.layer in best_layers]
    without, trials = tried(model, chosen, held[0], held[1], positions, on_trial or (lambda *_: None))
    best = min(trials, key=lambda trial: trial.divergence)
    if best.divergence >= without:
        # none brings the negative prompts nearer, so that nothing is known of lengths
        best = next(trial for trial in trials if trial.direction is order[0] and trial.part == 1)
    style = PromptStyle.of_records([one for one in (*positive, *negative) if not isinstance(one, str)])
    folder = write([_group(best.direction, best.part, positions)], base=base, output=output, style=style)
    return Steered(folder, order, trials, without, best)


def _group(one: Direction, part: float, positions: str) -> Group:
    tensors = {"a": torch.tensor([part * one.distance]), "v": one.v.float()}
    return Group("block_output", positions, "all", ("steer", 1, None), {one.layer: [Part("steer", tensors)]}, {})


@torch.no_grad()
def tried(
    model: Any,
    chosen: Sequence[Direction],
    positive: Sequence[list[int]],
    negative: Sequence[list[int]],
    positions: str,
    on_trial: Callable[[int, int], None],
) -> tuple[float, list[Trial]]:
    """The divergence (`Trial`) of pairs of prompts without any direction, and with each in each length."""
    wanted = [_next_token(model, ids) for ids in positive]

    def divergence(steered: Any, **how: Any) -> float:
        found = [_next_token(steered, ids, **how) for ids in negative]
        each = [(p.exp() * (p - q)).sum() for p, q in zip(wanted, found, strict=True)]
        return float(torch.stack(each).mean())

    on_trial(0, len(chosen))
    without, trials = divergence(model), []
    for done, one in enumerate(chosen, 1):
        group = _group(one, 1.0, positions)
        config = config_of([group], task_type="CAUSAL_LM", inference_mode=True)
        steered: Any = get_peft_model(model, config)
        try:
            fill([layer for layer in steered.modules() if isinstance(layer, ReftLayer)], "default", config, [group])
            trials += [Trial(one, part, divergence(steered, strength=part)) for part in LENGTHS]
        finally:
            steered.unload()
        on_trial(done, len(chosen))
    return without, trials


def _next_token(model: Any, ids: list[int], **how: Any) -> Tensor:
    """Log-probabilities [V] in float64 of the token behind a prompt, the whole of which is the prompt."""
    if how:
        how["prompt_length"] = torch.tensor([len(ids)])
    return model(torch.tensor([ids]), **how).logits[0, -1].double().log_softmax(-1)
