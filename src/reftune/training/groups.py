"""Learning rates of their own for parts of an adapter, as the parameter groups that torch's optimizers take.

Must not know: Trainer, batches, losses, the command line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..errors import ReftuneError
from ..tuner import ReftLayer

__all__ = ["check_factors", "parameter_groups", "with_factors"]


def parameter_groups(
    model: nn.Module, learning_rate: float, lr_groups: Mapping[str, float], *, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """The trained parameters of a model as groups for an optimizer, some with a learning rate of their own.

    A name in `lr_groups` is that of a tensor of the interventions (`"R"`, `"dW"`, `"b"`, … as they are saved) or of a
    module that is trained beside them (`"score"`); its learning rate is `learning_rate` times the number.  For trainers
    that take an optimizer, as TRL's do: `optimizers=(torch.optim.AdamW(parameter_groups(…)), None)`.  `ReftTrainer`
    has the argument `lr_groups`.

    Raises:
        ReftuneError: a name that no trained parameter has, or a number that is not above 0.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return with_factors([{"params": trained, "lr": learning_rate, "weight_decay": weight_decay}], model, lr_groups)


def with_factors(
    groups: Iterable[Mapping[str, Any]], model: nn.Module, lr_groups: Mapping[str, float]
) -> list[dict[str, Any]]:
    """An optimizer's groups, each divided by the factors of its parameters; raises as `parameter_groups`."""
    check_factors(lr_groups)
    parts = dict(_parts(model))
    unknown = sorted(set(lr_groups) - {part for names in parts.values() for part in names})
    if unknown:
        tensors = sorted({names[-1] for names in parts.values() if names[0] == ""})
        raise ReftuneError(
            f"lr_groups names {unknown[0]!r}, which nothing that is trained is called; the interventions have "
            f"{', '.join(map(repr, tensors)) or 'nothing'}, and modules trained beside them go by their names"
        )
    found = []
    for group in groups:
        by_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            factors = [lr_groups[part] for part in parts.get(parameter, ()) if part in lr_groups]
            by_factor.setdefault(factors[-1] if factors else 1.0, []).append(parameter)
        found += [{**group, "params": params, "lr": group["lr"] * factor} for factor, params in by_factor.items()]
    return found


def check_factors(lr_groups: Any) -> None:
    """Raises `ReftuneError` where it is no mapping of names to numbers above 0."""
    if not isinstance(lr_groups, Mapping):
        raise ReftuneError(f"lr_groups={lr_groups!r} is not valid; use names and factors such as {{'b': 10}}")
    for name, factor in lr_groups.items():
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
            raise ReftuneError(
                f"lr_groups: {name}={factor!r} is not valid; use a number above 0, which multiplies learning_rate"
            )


def _parts(model: nn.Module) -> Iterable[tuple[nn.Parameter, list[str]]]:
    """Each trained parameter with the names that `lr_groups` may call it by; those of interventions begin with ''."""
    layers = [path for path, module in model.named_modules() if isinstance(module, ReftLayer)]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            inside = name.startswith(tuple(f"{path}." for path in layers))
            yield parameter, ["", name.rpartition(".")[2]] if inside else name.split(".")
