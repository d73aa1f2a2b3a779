"""An adapter as affine maps, which is all that a server needs of it: h + Bᵀ(A h) + g ⊙ h + v.

Every linear Φ is one; it is read off the Φ itself, in float64, and compared with it, so that there is no second copy
of any formula.

Must not know: models, backends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..config import ReftGroup, resolve_layers
from ..interventions import INTERVENTIONS, Intervention
from ..interventions.base import LowRankIntervention
from ..interventions.orthonormal import autocast_off
from ..positions import unit_slices
from .adapters import AdapterError, AdapterFiles, UnitTensors, check_disjoint, check_layers, check_width
from .pieces import breathe
from .plans import Part, Site, Sites, sets_by_length, sites_from_wire

__all__ = ["Affine", "FoldedAdapter", "check_linear", "fold", "fold_adapter", "joined", "phi_of"]


class Affine(NamedTuple):
    """δ(h) = Bᵀ(A h) + g ⊙ h + v, with A, B [r, d] and g, v [d]; None stands for zeros."""

    A: Tensor | None
    B: Tensor | None
    g: Tensor | None
    v: Tensor | None

    @property
    def rank(self) -> int:
        return 0 if self.A is None else len(self.A)

    def times(self, strength: float) -> Affine:
        """strength · δ(h)."""
        return Affine(self.A, *(None if t is None else strength * t for t in (self.B, self.g, self.v)))

    def __call__(self, h: Tensor) -> Tensor:
        """h [..., d] → δ(h), in the dtype of h."""
        delta = torch.zeros_like(h) if self.v is None else self.v.expand_as(h)
        if self.A is not None and self.B is not None:
            delta = delta + (h @ self.A.T) @ self.B
        return delta if self.g is None else delta + self.g * h


@dataclass(frozen=True, eq=False)
class FoldedAdapter:
    """The affine maps of an adapter by layer, and what edits where."""

    digest: str
    sites: Sites
    layers: Mapping[int, int]
    """Layer → number of its site."""
    maps: Mapping[tuple[int, int, int], Affine]
    """(layer, group, unit) → the map of a Φ."""

    @property
    def rank(self) -> int:
        """The highest rank by which a token is edited at a layer."""
        sets = frozenset().union(*sets_by_length(self.sites))
        return max((self._rank_at(layer, parts) for layer in self.layers for parts in sets), default=0)

    def _rank_at(self, layer: int, parts: tuple[Part, ...]) -> int:
        here = (self.maps.get((layer, p.group, p.unit)) for p in parts if p.site == self.layers[layer])
        return sum(one.rank for one in here if one is not None)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for one in self.maps.values() for t in one if t is not None)

    def at(self, layer: int, parts: tuple[Part, ...]) -> Affine:
        """The sum of some parts' maps at a layer."""
        site = self.layers.get(layer)
        wanted = {(part.group, part.unit) for part in parts if part.site == site}
        chosen = [one for (at, group, unit), one in self.maps.items() if at == layer and (group, unit) in wanted]
        return joined(chosen)

    def to_bytes(self) -> bytes:
        """As safetensors, with the rest in the metadata."""
        named = {
            f"{layer}.{group}.{unit}.{name}": value.contiguous()
            for (layer, group, unit), one in self.maps.items()
            for name, value in one._asdict().items()
            if value is not None
        }
        rest = {"digest": self.digest, "sites": self.sites, "layers": list(self.layers.items())}
        return save(named, {"reftune": json.dumps({**rest, "maps": [list(key) for key in self.maps]})})

    @classmethod
    def from_bytes(cls, content: bytes) -> FoldedAdapter:
        """What `to_bytes` has made."""
        length = int.from_bytes(content[:8], "little")
        rest = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["reftune"])
        tensors = load(content)
        maps = {
            (layer, group, unit): Affine(*(tensors.get(f"{layer}.{group}.{unit}.{name}") for name in Affine._fields))
            for layer, group, unit in rest["maps"]
        }
        return cls(rest["digest"], sites_from_wire(rest["sites"]), {int(k): int(v) for k, v in rest["layers"]}, maps)


def joined(maps: list[Affine]) -> Affine:
    """The sum of affine maps as one."""
    if len(maps) == 1:
        return maps[0]
    ranked = [one for one in maps if one.A is not None]
    A = torch.cat([one.A for one in ranked if one.A is not None]) if ranked else None
    B = torch.cat([one.B for one in ranked if one.B is not None]) if ranked else None
    return Affine(A, B, _sum([one.g for one in maps]), _sum([one.v for one in maps]))


def _sum(values: list[Tensor | None]) -> Tensor | None:
    found = [value for value in values if value is not None]
    return torch.stack(found).sum(0) if found else None


def fold_adapter(files: AdapterFiles, *, layers: int, width: int, prefix: str) -> FoldedAdapter:
    """The maps of an adapter for a model of `layers` blocks `<prefix>.<i>` of `width`.

    Raises:
        AdapterError: it edits something else than the outputs of blocks, is of another model, or is not linear.
    """
    check_width(files, width)
    check_layers(files, layers)
    groups = files.groups
    where = f"the adapter {str(files.path)!r}"
    check_linear(groups, where)
    layers_of = [_layers_of(group, layers) for group in groups]
    sites: dict[Site, int] = {}
    of_layers: dict[int, int] = {}
    maps: dict[tuple[int, int, int], Affine] = {}
    for path, units in files.blocks.items():
        layer = _layer_of(path, prefix, layers, where)
        here = [(i, group) for i, group in enumerate(groups) if layer in layers_of[i]]
        site = tuple((i, group.positions, group.tie) for i, group in here)
        if site not in sites:
            check_disjoint(files, [[group for _, group in here]])
        of_layers[layer] = sites.setdefault(site, len(sites))
        wanted = [(i, unit, group) for i, group in here for unit, _ in enumerate(unit_slices(group.spec, group.tie))]
        if len(wanted) != len(units):
            raise AdapterError(f"{where} has {len(units)} interventions at {path!r}, but {len(wanted)} are named there")
        for (i, unit, group), tensors in zip(wanted, units, strict=True):
            breathe()
            try:
                maps[layer, i, unit] = fold(phi_of(group, width, tensors), group)
            except ValueError as error:
                raise AdapterError(f"{where}: {path!r}: {error}") from error
    return FoldedAdapter(files.digest, tuple(sites), of_layers, maps)


def check_linear(groups: Sequence[ReftGroup], where: str) -> None:
    """Refuse groups that are no affine maps of blocks' outputs.

    Raises:
        AdapterError: there is one; the message begins with `where`.
    """
    for group in groups:
        if group.component != "block_output":
            raise AdapterError(f"{where} edits {group.component[:40]}; this server edits outputs of blocks only")
        if group.act_fn not in (None, "linear"):
            raise AdapterError(f"{where} has act_fn={group.act_fn!r}; this server takes linear interventions only")
        if group.rms:
            raise AdapterError(
                f"{where} has rms=True, by which an edit is no linear map of h; this server takes linear ones only"
            )


def _layers_of(group: ReftGroup, count: int) -> frozenset[int]:
    return frozenset(resolve_layers("all" if group.layers is None else group.layers, count))


def _layer_of(path: str, prefix: str, count: int, where: str) -> int:
    head, _, number = path.rpartition(".")
    if head != prefix or not number.isdecimal() or int(number) >= count:
        raise AdapterError(f"{where} edits {path!r}; the blocks of this model are {prefix}.0 to {prefix}.{count - 1}")
    return int(number)


def phi_of(group: ReftGroup, width: int, tensors: UnitTensors) -> Intervention:
    """The Φ of a group with these tensors.

    Raises:
        ValueError: there is none, as where its rank is above the width.
    """
    phi = INTERVENTIONS[group.intervention](width, group.options, device="meta")
    for name in phi._parameters:
        phi._parameters[name] = torch.nn.Parameter(tensors[name], requires_grad=False)
    for name in phi._buffers:
        phi._buffers[name] = tensors[name]
    return phi.eval()


@torch.no_grad()
def fold(phi: Intervention, group: ReftGroup) -> Affine:
    """The map of a Φ in float32, with the rows of the rank that the group has switched on.

    Raises:
        ValueError: it is not affine.
    """
    zero = torch.zeros(phi.d, dtype=torch.float64)
    with autocast_off("cpu"):
        if isinstance(phi, LowRankIntervention):
            basis = phi.basis().to(zero.dtype)
            with torch.enable_grad():
                jacobian: Any = torch.autograd.functional.jacobian(lambda h: phi.coefficients(h, basis), zero)
            on = torch.tensor([float(row in group.active_rows) for row in range(len(basis))], dtype=zero.dtype)
            A = phi.scale * jacobian * on[:, None]
            found = Affine(A, basis, None, phi.scale * (phi.coefficients(zero, basis) * on) @ basis)
            if not bool(A.any()):
                found = found._replace(A=None, B=None)
            mask = on
        else:
            v = phi.edit(zero, None)
            found, mask = Affine(None, None, phi.edit(zero + 1, None) - v, v), None
        h = 10 * torch.randn(4, phi.d, dtype=zero.dtype, generator=torch.Generator().manual_seed(0))
        wanted = phi(h, mask)
        if not torch.allclose(found(h), wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max().clamp(min=1e-30))):
            raise ValueError(f"the intervention {group.intervention!r} is not an affine map; such are not served here")
    return Affine(*(None if value is None or not bool(value.any()) else value.float() for value in found))
