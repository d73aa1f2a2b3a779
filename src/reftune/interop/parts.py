"""Single Φ that come from elsewhere, and an adapter made of them: the base model's configuration is enough for that.

Must not know: the files of any library.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from ..config import ReftConfig
from ..errors import ReftuneError
from ..files import check_writable
from ..interventions import INTERVENTIONS, Intervention, orthonormal_rows
from ..models import check_model, resolve_model, save_adapter
from ..tuner import ReftLayer
from ..values import ranges

__all__ = ["Group", "Part", "assemble", "identity_of", "write"]


@dataclass(frozen=True)
class Part:
    """One Φ: its parameters, under the names and in the shapes of our class of that name."""

    intervention: str
    tensors: Mapping[str, Tensor]
    act_fn: str | None = None

    @property
    def rank(self) -> int:
        """Rows of the edit; 1 where there is no rank."""
        return next((tensor.shape[0] for tensor in self.tensors.values() if tensor.ndim == 2), 1)

    @property
    def kind(self) -> tuple[str, int, str | None]:
        """What Φ of one group have in common."""
        return self.intervention, self.rank, self.act_fn


@dataclass
class Group:
    """What becomes one group of a `ReftConfig`, and its Φ: layer → those of its units, in their order."""

    component: str
    positions: str
    tie: str
    kind: tuple[str, int, str | None]
    phis: dict[int, list[Part]] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """The fields of the configuration."""
        intervention, rank, act_fn = self.kind
        own = {"intervention": intervention, "r": rank, "act_fn": act_fn, "form": "direct"}
        where = {"component": self.component, "positions": self.positions, "tie": self.tie}
        return {**own, **where, "layers": sorted(self.phis)}


def identity_of(part: Part) -> Part:
    """The Φ of the same kind that edits nothing.

    Raises:
        ReftuneError: there is none.
    """
    phi, act = INTERVENTIONS[part.intervention], part.act_fn
    if not (phi.supports_identity(act) or phi.supports_zero(act)):
        raise ReftuneError(
            f"{part.intervention} with act_fn={act!r} has no Φ that edits nothing, which these positions need"
        )
    changed = {name: torch.zeros_like(tensor) for name, tensor in part.tensors.items() if name != "R"}
    if part.intervention == "loreft":
        changed["W"] = orthonormal_rows(part.tensors["R"])
    return Part(part.intervention, {**part.tensors, **changed}, act)


def assemble(groups: Sequence[Group], *, base: str, of: str = "") -> PeftModel:
    """The adapter of these groups on a base model of which only the configuration is read: it has no weights.

    `of` is the `model_type` that they were trained on, where that is known.

    Raises:
        ReftuneError: the base is of another type, has other layers or another width, or two groups collide.
    """
    config: Any = check_model(base)
    if of and config.get_text_config().model_type != of and config.model_type != of:
        raise ReftuneError(f"the adapter was trained on a model of type {of}, but {base!r} is a {config.model_type}")
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    model.name_or_path = resolve_model(base)
    fields = [group.fields() for group in groups]
    _check_layers(groups, config, base)
    try:
        with warnings.catch_warnings():
            # starts that do not matter, as all is filled in
            warnings.simplefilter("ignore")
            chosen = fields[0] if len(fields) == 1 else {"groups": fields, "layers": None}
            reft = ReftConfig(**chosen, task_type="CAUSAL_LM", inference_mode=True)
            adapted = get_peft_model(model, reft)
    except ValueError as error:
        raise ReftuneError(f"no adapter of {base!r} can be made of this: {error}") from error
    assert isinstance(adapted, PeftModel)
    resolved = reft.resolved_groups()
    for layer in adapted.modules():
        if isinstance(layer, ReftLayer):
            _fill(layer, {id(group): groups[resolved.index(group)] for group in layer.groups["default"]}, base)
    return adapted


def _check_layers(groups: Sequence[Group], config: Any, base: str) -> None:
    count = config.get_text_config().num_hidden_layers
    beyond = {layer for group in groups for layer in group.phis if not 0 <= layer < count}
    if beyond:
        raise ReftuneError(
            f"the adapter edits layers {ranges(beyond)}, but {base!r} has 0 to {count - 1}: it is of another model"
        )


def _fill(layer: ReftLayer, groups: Mapping[int, Group], base: str) -> None:
    """Give the Φ of one site their parameters."""
    done: dict[int, int] = {}
    for unit in layer.units("default"):
        at = done.setdefault(id(unit.group), 0)
        done[id(unit.group)] += 1
        part, phi = groups[id(unit.group)].phis[layer.layer][at], layer.phi("default", unit)
        _check_shapes(part, phi, f"layer {layer.layer}", base)
        with torch.no_grad():
            for name, parameter in phi.named_parameters():
                parameter.copy_(part.tensors[name])


def _check_shapes(part: Part, phi: Intervention, where: str, base: str) -> None:
    for name, parameter in phi.named_parameters():
        given = part.tensors.get(name)
        if given is None:
            raise ReftuneError(f"{where}: the adapter has no {name}, which {part.intervention} needs")
        if given.shape != parameter.shape:
            width = "" if given.shape[-1] == phi.d else f": the adapter is of a model of width {given.shape[-1]}"
            raise ReftuneError(
                f"{where}: {name} has the shape {list(given.shape)} where {base!r} needs {list(parameter.shape)}{width}"
            )


def write(groups: Sequence[Group], *, base: str, output: str | Path, of: str = "") -> Path:
    """`assemble`, and save.  The folder may be there, but hold no adapter.

    Raises:
        ReftuneError: as `assemble`, or the folder cannot be written to; nothing is written then.
    """
    folder = Path(output)
    check_writable(folder)
    if (folder / "adapter_config.json").exists():
        raise ReftuneError(f"{str(folder)!r} holds an adapter already; name another folder, or delete it first")
    return save_adapter(assemble(groups, base=base, of=of), folder)
