"""Several adapters of one model made into one: the edits of all, as one configuration and its Φ.

Where two edit the same tokens of a place, their edits are added: every affine low-rank edit is a DiReFT,
h + W2ᵀ(W1h + b), and a sum of those is one whose rows are those of all.  That is exact.  What is no such edit, and what
collides, is refused by name.

Must not know: files, how calls are watched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..interventions import INTERVENTIONS, Intervention, InterventionOptions, LowRankIntervention, Steer
from ..positions import overlap, parse_positions
from .parts import Group, Part

__all__ = ["MODES", "Rows", "combined", "row_space", "rows_of"]

# PEFT's names for the sum, "linear" and "cat", are taken too
MODES = {"sum": "sum", "linear": "sum", "cat": "sum", "orthogonalize": "orthogonalize", "disjoint": "disjoint"}


class Rows(NamedTuple):
    """The edit W2ᵀ act(W1h + b): W1, W2 [r, d] and b [r] in float64."""

    W1: Tensor
    b: Tensor
    W2: Tensor
    act_fn: str | None = None


def rows_of(part: Part, group: Group) -> Rows:
    """What a Φ does, as rows; those that its group has switched off are left out.

    Raises:
        ValueError: it is no edit of this form; the message says why.
    """
    options = {"r": part.rank, "act_fn": part.act_fn, "init": "random"}
    options |= {name: group.more[name] for name in ("form", "alpha", "vector") if group.more.get(name) is not None}
    if group.more.get("rms"):
        raise ValueError("rms=True feeds Φ another state than others get")
    phi = _phi(part, InterventionOptions(**options))
    if isinstance(phi, Steer):
        zeros = torch.zeros(1, phi.d, dtype=torch.float64)
        return Rows(zeros, phi.a.double().reshape(1), phi.v.double().reshape(1, -1))
    if not isinstance(phi, LowRankIntervention):
        raise ValueError(f"{part.intervention} has no rank, so it cannot be added to another")
    act = None if part.act_fn == "linear" else part.act_fn
    basis = phi.basis().double()
    if act is not None and not hasattr(phi, "W") and not hasattr(phi, "W1"):
        act = None
    if act is not None and part.intervention not in ("direft", "direft_orthonormal"):
        raise ValueError(f"{part.intervention} with act_fn={act!r} is no sum of activations of rows")
    if act is not None:
        found = Rows(
            part.tensors["W1" if part.intervention == "direft" else "W"], part.tensors["b"], phi.scale * basis, act
        )
    else:
        zero = torch.zeros(phi.d, dtype=torch.float64)
        with torch.enable_grad():
            W1: Any = torch.autograd.functional.jacobian(lambda h: phi.coefficients(h, basis), zero)
        found = Rows(phi.scale * W1, phi.scale * phi.coefficients(zero, basis), basis)
    kept = _active(group)
    if kept is None:
        return Rows(found.W1.double(), found.b.detach().double(), found.W2.detach(), found.act_fn)
    return Rows(found.W1.double()[kept], found.b.detach().double()[kept], found.W2.detach()[kept], found.act_fn)


def _phi(part: Part, options: InterventionOptions) -> Intervention:
    width = max(tensor.shape[-1] for tensor in part.tensors.values())
    phi = INTERVENTIONS[part.intervention](width, replace(options, r=part.rank)).double()
    phi.load_state_dict(dict(part.tensors))
    return phi.requires_grad_(False).eval()


def _active(group: Group) -> list[int] | None:
    parts, chosen = group.more.get("subspaces"), group.more.get("active_subspaces")
    return None if parts is None or chosen is None else sorted(row for i in chosen for row in parts[i])


def row_space(W2: Tensor) -> Tensor:
    """[r, d] → [d, k]: an orthonormal basis of what an edit with these rows writes into."""
    U, S, _ = torch.linalg.svd(W2.mT, full_matrices=False)
    return U[:, 1e-6 * S.max().clamp(min=1e-30) < S]


def combined(adapters: Mapping[str, Sequence[Group]], weights: Mapping[str, float], mode: str) -> list[Group]:
    """Groups of one adapter that edits as all of these do together, each times its weight.

    Modes: "sum", the edits are added; "orthogonalize", each later one is first projected onto what the earlier ones
    of the same tokens do not write into; "disjoint", no two may edit the same tokens.

    Raises:
        ValueError: they collide in positions or in ranks, or a Φ is no affine low-rank edit.
    """
    if mode not in MODES:
        raise ValueError(f"{mode!r} is no way to combine ReFT adapters; valid are {', '.join(map(repr, MODES))}")
    mode = MODES[mode]
    sites: dict[tuple[str, int], list[tuple[str, Group]]] = {}
    for name, groups in adapters.items():
        for group in groups:
            for layer in group.phis:
                sites.setdefault((group.component, layer), []).append((name, group))
    found: dict[tuple[Any, ...], Group] = {}
    for (component, layer), here in sorted(sites.items()):
        where = f"{component} of layer {layer}"
        for cluster in _clusters(here, mode, where):
            made = _made(cluster, layer, weights, mode, where)
            more = repr(made.more)
            key = (component, made.positions, made.tie, made.kind, more)
            found.setdefault(key, Group(component, made.positions, made.tie, made.kind, more=made.more))
            found[key].phis[layer] = made.phis[layer]
    return list(found.values())


def _clusters(here: list[tuple[str, Group]], mode: str, where: str) -> list[list[tuple[str, Group]]]:
    """What edits the same tokens of a place together; what edits some of them refused."""
    clusters: dict[tuple[str, str], list[tuple[str, Group]]] = {}
    for name, group in here:
        clusters.setdefault((group.positions, group.tie), []).append((name, group))
    kept = list(clusters.items())
    for i, ((one, tie), members) in enumerate(kept):
        for (other, other_tie), others in kept[:i]:
            if overlap(parse_positions(one), parse_positions(other)):
                names = sorted({name for name, _ in (*others, *members)})
                raise ValueError(
                    f"{where}: {' and '.join(map(repr, names))} edit overlapping positions ({other!r} with "
                    f"tie={other_tie!r}, {one!r} with tie={tie!r}); only the same or disjoint ones can be combined: "
                    "train both with the same positions"
                )
        if mode == "disjoint" and len({name for name, _ in members}) > 1:
            names = " and ".join(repr(name) for name, _ in members)
            raise ValueError(f"{where}: {names} both edit {one!r}; use sum or orthogonalize, or other positions")
    return list(clusters.values())


def _made(cluster: list[tuple[str, Group]], layer: int, weights: Mapping[str, float], mode: str, where: str) -> Group:
    """One group for all of a cluster at one layer."""
    name, first = cluster[0]
    if len(cluster) == 1 and weights[name] == 1:
        return Group(first.component, first.positions, first.tie, first.kind, {layer: first.phis[layer]}, first.more)
    units = []
    for unit in range(len(first.phis[layer])):
        stack: list[Rows] = []
        for name, group in cluster:
            try:
                rows = rows_of(group.phis[layer][unit], group)
            except ValueError as error:
                raise ValueError(f"{where}: {name!r} cannot be combined there: {error}") from error
            if stack and mode == "orthogonalize":
                taken = row_space(torch.cat([one.W2 for one in stack]))
                rows = rows._replace(W2=rows.W2 - (rows.W2 @ taken) @ taken.mT)
            stack.append(rows._replace(W2=weights[name] * rows.W2))
        units.append(_stacked(stack, where))
    return Group(first.component, first.positions, first.tie, units[0].kind, {layer: units})


def _stacked(stack: Sequence[Rows], where: str) -> Part:
    acts = {rows.act_fn for rows in stack}
    if len(acts) > 1:
        raise ValueError(f"{where}: the activations {', '.join(map(str, acts))} cannot be those of one Φ")
    rank, width = sum(len(rows.W2) for rows in stack), stack[0].W2.shape[1]
    if rank > width:
        raise ValueError(f"{where}: the ranks are {rank} together, more than the width {width}")
    tensors = {name: torch.cat([getattr(rows, name) for rows in stack]).float() for name in ("W1", "b", "W2")}
    return Part("direft", tensors, acts.pop())
