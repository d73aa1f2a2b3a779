"""Single Φ with the group that they belong to, as an adapter is made of them or taken apart.

Must not know: files, how calls are watched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ..config import ReftConfig, ReftGroup
from ..interventions import Intervention
from .layer import ReftLayer

__all__ = ["Group", "Part", "config_of", "fill", "part_of", "taken_apart"]

Kind = tuple[str, int, str | None]


@dataclass(frozen=True)
class Part:
    """One Φ: its parameters and buffers, under the names and in the shapes of our class of that name."""

    intervention: str
    tensors: Mapping[str, Tensor]
    act_fn: str | None = None

    @property
    def rank(self) -> int:
        """Rows of the edit; 1 where there is no rank."""
        return next((tensor.shape[0] for tensor in self.tensors.values() if tensor.ndim == 2), 1)

    @property
    def kind(self) -> Kind:
        """What Φ of one group have in common."""
        return self.intervention, self.rank, self.act_fn


@dataclass
class Group:
    """What becomes one group of a `ReftConfig`, and its Φ: layer → those of its units, in their order."""

    component: str
    positions: str
    tie: str
    kind: Kind
    phis: dict[int, list[Part]] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=lambda: {"form": "direct"})
    """Further fields of the group."""

    def fields(self) -> dict[str, Any]:
        """The fields of the configuration."""
        intervention, rank, act_fn = self.kind
        own = {"intervention": intervention, "r": rank, "act_fn": act_fn}
        where = {"component": self.component, "positions": self.positions, "tie": self.tie}
        return {**own, **self.more, **where, "layers": sorted(self.phis)}


def part_of(phi: Intervention, group: ReftGroup) -> Part:
    """A Φ of a model, its tensors copied."""
    return Part(group.intervention, {name: t.detach().clone() for name, t in phi.state_dict().items()}, group.act_fn)


def taken_apart(layers: Iterable[ReftLayer], adapter: str) -> list[Group]:
    """The groups of an adapter as it is on a model, one for each of its configuration's that differs.

    Raises:
        ValueError: it was put on modules by name, so that its layers are not known.
    """
    found: dict[tuple[Any, ...], Group] = {}
    for layer in layers:
        for unit in layer.units(adapter):
            group = unit.group
            if group.layers is None:
                raise ValueError(f"the adapter {adapter!r} names modules, not layers")
            own = {f.name: getattr(group, f.name) for f in fields(group)}
            values = {name: value for name, value in own.items() if name != "layers"}
            kind = (values.pop("intervention"), values.pop("r"), values.pop("act_fn"))
            where = (values.pop("component"), values.pop("positions"), values.pop("tie"))
            key = (where, kind, repr(values))
            made = found.setdefault(key, Group(*where, kind, more=values))
            made.phis.setdefault(layer.layer, []).append(part_of(layer.phi(adapter, unit), group))
    return list(found.values())


def config_of(groups: Sequence[Group], **more: Any) -> ReftConfig:
    """The configuration of an adapter of these groups."""
    written = [group.fields() for group in groups]
    chosen = written[0] if len(written) == 1 else {"groups": written}
    return ReftConfig(**chosen, **more)


def fill(layers: Iterable[ReftLayer], adapter: str, config: ReftConfig, groups: Sequence[Group]) -> None:
    """Give the Φ of an adapter, made by the configuration of these groups, their tensors.

    Raises:
        ValueError: they are of another base model, or one is missing; the message names the layer.
    """
    resolved = config.resolved_groups()
    for layer in layers:
        done: dict[int, int] = {}
        for unit in layer.units(adapter):
            number = resolved.index(unit.group)
            at = done[number] = done.get(number, -1) + 1
            phi, part = layer.phi(adapter, unit), groups[number].phis[layer.layer][at]
            _fill_one(phi, part, f"layer {layer.layer}")


def _fill_one(phi: Intervention, part: Part, where: str) -> None:
    for name, tensor in phi.state_dict(keep_vars=True).items():
        given = part.tensors.get(name)
        if given is None:
            raise ValueError(f"{where}: the adapter has no {name}, which {part.intervention} needs")
        if given.shape != tensor.shape:
            width = "" if given.shape[-1] == phi.d else f": the adapter is of a model of width {given.shape[-1]}"
            raise ValueError(
                f"{where}: {name} has the shape {list(given.shape)} where this model needs {list(tensor.shape)}{width}"
            )
        with torch.no_grad():
            tensor.copy_(given)
