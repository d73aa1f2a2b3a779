"""What a search tries: the choices, those that are tried first, and a choice as fields of `ReftConfig` and of training.

Must not know: models, how trials are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..config import ReftConfig, resolve_layers
from ..errors import ReftuneError
from ..training.run import number

__all__ = ["LAYER_SETS", "Space", "layers_of", "reft_of", "training_of"]

LAYER_SETS = ("all", "every 2nd", "every 3rd", "upper half", "upper third", "lower half")
"""Sets of layers by name; beside them a space may name whatever `ReftConfig.layers` takes as a text."""

# The recipe of `docs/own-tasks.md` and the best of those measured beside each other come first, then the published one,
# then small and quick ones.  All but the published rate have the start that leaves the stream alone.
STARTS: tuple[dict[str, Any], ...] = (
    {"intervention": "loreft", "r": 8, "positions": "prompt", "layers": "all", "learning_rate": 1e-3},
    {"intervention": "loreft", "r": 8, "positions": "l7", "layers": "all", "learning_rate": 2e-3},
    {"intervention": "direft", "r": 8, "positions": "all", "layers": "all", "learning_rate": 1e-3},
    {"intervention": "loreft", "r": 8, "positions": "f7+l7", "layers": "all", "learning_rate": 9e-4, "warmup": 0.1},
    {"intervention": "loreft", "r": 4, "positions": "l7", "layers": "upper half", "learning_rate": 4e-3},
)
UNSAID: dict[str, Any] = {"tie": "all", "warmup": 0.0, "dropout": 0.0}


@dataclass(frozen=True)
class Space:
    """Choices of each kind; `learning_rate` are the ends of a logarithmic range."""

    intervention: tuple[str, ...] = ("loreft", "direft")
    r: tuple[int, ...] = (1, 2, 4, 8, 16)
    layers: tuple[str, ...] = LAYER_SETS
    positions: tuple[str, ...] = ("l1", "l3", "l7", "f3+l3", "f7+l7", "prompt", "all")
    tie: tuple[str, ...] = ("all", "group")
    """Of positions with a prefix and a suffix only: where there is one of them, ties are the same."""
    learning_rate: tuple[float, float] = (2e-4, 1e-2)
    warmup: tuple[float, ...] = (0.0, 0.1)
    dropout: tuple[float, ...] = (0.0, 0.05)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Space:
        """The usual choices, with those that are given in their place.

        Raises:
            ReftuneError: there is no such choice, or it has a value that no adapter could have.
        """
        valid = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(valid))
        if unknown:
            names = ", ".join(map(repr, unknown))
            raise ReftuneError(f"space has unknown keys {names}; valid are {', '.join(valid)}")
        found = cls(**{name: _choices(name, value) for name, value in values.items()})
        found._check()
        return found

    def _check(self) -> None:
        low, high = self.learning_rate
        if not 0 < low <= high < math.inf:
            raise ReftuneError(
                f"space: learning_rate={list(self.learning_rate)} is not valid; use the ends of a range, such as "
                "[1e-4, 1e-2]"
            )
        for value in self.warmup:
            if not 0 <= value < 1:
                raise ReftuneError(f"space: warmup={value!r} is not valid; use a share of the steps below 1")
        for name in ("intervention", "r", "positions", "tie", "dropout"):
            for value in getattr(self, name):
                try:
                    # ties are of positions with a prefix and a suffix
                    ReftConfig(**{"positions": "f1+l1", name: value})
                except (ValueError, TypeError) as error:
                    raise ReftuneError(f"space: {error}") from error

    def check_layers(self, count: int) -> None:
        """Make sure that a model of so many blocks has the layers.

        Raises:
            ReftuneError: it has not.
        """
        for name in self.layers:
            try:
                layers_of(name, count)
            except ValueError as error:
                raise ReftuneError(f"space: {error}; or one of {', '.join(map(repr, LAYER_SETS))}") from error

    @property
    def places(self) -> list[tuple[str, str]]:
        """Positions and layers that an adapter may have."""
        return [(positions, layers) for positions in self.positions for layers in self.layers]

    def suggest(self, trial: Any) -> dict[str, Any]:
        """A trial's choices, asked of Optuna."""
        chosen = {
            name: trial.suggest_categorical(name, list(getattr(self, name)))
            for name in ("intervention", "r", "layers", "positions", "warmup", "dropout")
        }
        if "+" in chosen["positions"]:
            chosen["tie"] = trial.suggest_categorical("tie", list(self.tie))
        chosen["learning_rate"] = trial.suggest_float("learning_rate", *self.learning_rate, log=True)
        return chosen

    def starts(self) -> list[dict[str, Any]]:
        """The first trials, as far as the space has them; what it lacks is its first choice or the nearest rate."""
        found: list[dict[str, Any]] = []
        for start in STARTS:
            given = {**UNSAID, **start}
            low, high = self.learning_rate
            fitted = {
                name: value if value in getattr(self, name) else getattr(self, name)[0]
                for name, value in given.items()
                if name != "learning_rate"
            }
            fitted["learning_rate"] = min(max(given["learning_rate"], low), high)
            if "+" not in fitted["positions"]:
                del fitted["tie"]
            if fitted not in found:
                found.append(fitted)
        return found

    def untried(self, tried: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Choices that none of these trials had."""
        found: dict[str, list[Any]] = {}
        for name in ("intervention", "r", "layers", "positions", "warmup", "dropout"):
            left = [value for value in getattr(self, name) if value not in {trial.get(name) for trial in tried}]
            if left:
                found[name] = left
        return found


def reft_of(chosen: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The fields of `ReftConfig` for a model of so many blocks."""
    layers = layers_of(chosen["layers"], count)
    found = {name: chosen[name] for name in ("intervention", "r", "positions", "dropout") if name in chosen}
    if "tie" in chosen:
        found["tie"] = chosen["tie"]
    return {**found, "layers": "all" if layers == list(range(count)) else layers}


def training_of(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `TrainingArguments`."""
    return {"learning_rate": chosen["learning_rate"], "warmup_steps": chosen["warmup"]}


def layers_of(name: str, count: int) -> list[int]:
    """Layers of a set, or of what `ReftConfig.layers` takes as a text, for a model of so many blocks.

    Raises:
        ValueError: an index that the model does not have, or no layers.
    """
    sets = {
        "all": range(count),
        "every 2nd": range(count - 1, -1, -2),
        "every 3rd": range(count - 1, -1, -3),
        "upper half": range(count // 2, count),
        "upper third": range(count - max(1, count // 3), count),
        "lower half": range(max(1, count // 2)),
    }
    return sorted(sets[name]) if name in sets else resolve_layers(name, count)


def _choices(name: str, value: Any) -> tuple[Any, ...]:
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    given = [number(item) for item in given]
    if not given:
        raise ReftuneError(f"space: {name} is empty; give at least one choice")
    if name == "learning_rate":
        given = given * 2 if len(given) == 1 else given
        if len(given) != 2 or not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in given):
            raise ReftuneError(f"space: learning_rate={value!r} is not valid; use one rate, or the ends of a range")
        return tuple(float(x) for x in given)
    if name == "layers":
        # as a text: Optuna's choices are plain values
        return tuple(";".join(map(str, item)) if isinstance(item, (list, tuple)) else str(item) for item in given)
    kind: Any = {"r": int, "warmup": (int, float), "dropout": (int, float)}.get(name, str)
    for item in given:
        if isinstance(item, bool) or not isinstance(item, kind):
            raise ReftuneError(f"space: {name}={item!r} is not valid; see `reftune.search.space` for the usual choices")
    if len(set(given)) < len(given):
        raise ReftuneError(f"space: {name}={value!r} holds a choice twice")
    return tuple(float(item) if name in ("warmup", "dropout") else item for item in given)
