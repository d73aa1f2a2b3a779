"""The edits of a call without gradients, as one affine map a site: a few products, and no call of a module.

Made anew for each call of a stack, so that nothing can be stale; only the steps of one generation share their maps, by
what may be switched between two of them.  What does not fit is left to `ReftLayer`, which says
what an edit is: Φ that are not linear or that have hooks, subspaces, compiled code, GPUs (to look which slots are valid
would be to wait for one), and positions other than spans where all rows have the same adapters, which it edits without
gathering tokens.

Must not know: how prompts are found.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.rnn import pad_sequence

from ..errors import PositionError
from ..interventions import Intervention, LowRankIntervention
from ..positions import PositionSpec
from .context import Frame, Outer
from .layer import BASE, ReftLayer, Unit, Work

__all__ = ["fold", "known_groups", "known_map"]

# A chunk has at least so many tokens, as each has its maps read anew.
SHORT = 8
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FIRST_ROW = torch.zeros(1, 1, dtype=torch.long)
NO_TOKENS = torch.zeros(0, dtype=torch.long)


class Map(NamedTuple):
    """δ(h) = basisᵀ(weight h + bias), with weight and basis [r, d], bias [r]."""

    weight: Tensor
    bias: Tensor
    basis: Tensor


# With the parameters as they were.
MAPS: WeakKeyDictionary[Intervention, tuple[tuple[Tensor, ...], Map]] = WeakKeyDictionary()


class Piece(NamedTuple):
    """One Φ at one site."""

    adapter: str
    joint: PositionSpec
    unit: Unit
    name: str
    """Of its slots, as `Frame.pick` keeps them."""
    strength: float
    map: Map


@dataclass
class Group:
    """Sites where the same slots are edited: they have one plan, and their maps are stacked together."""

    layers: list[ReftLayer]
    pieces: list[list[Piece]]
    """Of each of the sites."""
    stacked: list[tuple[Tensor, ...]] | None = None


class Plan(NamedTuple):
    """Tokens of a call in G chunks of P, the tokens of a chunk being edited by one Φ."""

    tokens: Tensor
    """[G, P], counted through all rows; a chunk that is shorter repeats its first one."""
    slots: Tensor | None
    """[G] number of each chunk's Φ; None: each has its own, in order."""
    scale: Tensor | None
    """[G, P, 1] what multiplies an edit: its strength, 0 for what is repeated; None: by 1."""


Edit = Callable[[Tensor], Tensor | None]


def folded(shape: tuple[int, int, int], plan: Plan, weight: Tensor, bias: Tensor, basis: Tensor) -> Edit:
    """All edits of a call at one site: weight and basis [K, r, d], bias [K, 1, r] → h [B, T, d] ↦ h with the edits.

    It returns None where h, or the mode, is not what it was made for.
    """
    tokens, slots, scale = plan
    at, dtype, width = tokens.flatten(), weight.dtype, shape[-1]
    narrower = {t for t in FLOATS if torch.promote_types(t, dtype) == dtype}
    chunks = (*tokens.shape, width)
    weight = weight.mT

    def edit(h: Tensor) -> Tensor | None:
        if h.shape != shape or h.dtype not in narrower or not h.is_cpu or torch.is_grad_enabled():
            return None
        A, b, B = (weight, bias, basis) if slots is None else (t.index_select(0, slots) for t in (weight, bias, basis))
        h_TD = h.reshape(-1, width)
        h_GPD = h_TD.index_select(0, at).view(chunks)
        delta_GPR = torch.baddbmm(b, h_GPD if h.dtype is dtype else h_GPD.to(dtype), A)
        if scale is not None:
            delta_GPR = delta_GPR * scale
        delta_TD = torch.bmm(delta_GPR, B).view(-1, width)
        return h_TD.index_add(0, at, delta_TD if h.dtype is dtype else delta_TD.to(h.dtype)).view(shape)

    return edit


def unchanged(shape: tuple[int, int, int]) -> Edit:
    """Of a site where a call edits nothing: h [B, T, d] ↦ h."""

    def edit(h: Tensor) -> Tensor | None:
        return h if h.shape == shape and not torch.is_grad_enabled() else None

    return edit


def fold(layers: Sequence[ReftLayer], frame: Frame, outer: Outer, maps: dict[nn.Module, Map]) -> dict[nn.Module, Edit]:
    """The edits of a call at those of the sites where they can be folded; `maps` are known already."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return {}
    if not frame.of_tokens or outer.meter is not None or _has_any_global_hook():
        return {}
    rows = rows_of_adapters(frame, outer)
    if rows is None or (outer.strength is not None and frame.batch % len(outer.strength)):
        return {}
    folds: dict[nn.Module, Edit] = {}
    for group in _groups(layers, frame, outer, rows, maps):
        shape = (frame.batch, frame.width, group.layers[0].width)
        try:
            plan = _plan(group.pieces[0], frame, outer, rows)
        except PositionError:
            # it is raised again where the edit is made
            continue
        if plan is None:
            folds.update(dict.fromkeys(group.layers, unchanged(shape)))
            continue
        if group.stacked is None:
            group.stacked = list(zip(*_stacked([[one.map for one in here] for here in group.pieces]), strict=True))
        folds.update((layer, folded(shape, plan, *own)) for layer, own in zip(group.layers, group.stacked, strict=True))
    return folds


def known_groups(layers: Sequence[ReftLayer], frame: Frame, outer: Outer) -> list[Group] | None:
    """What an earlier step of the same generation worked out."""
    return None if outer.steps is None or not frame.no_prompt else outer.steps.get(_switches(layers, frame))


def _switches(layers: Sequence[ReftLayer], frame: Frame) -> Hashable:
    """What may be switched between two steps, by whoever is called in between (a logits processor, a streamer)."""
    states = ((one.disable_adapters, *one.active_adapters, *one.strengths.items()) for one in layers)
    return (*layers[:1], frame.batch, *states)


def _groups(
    layers: Sequence[ReftLayer], frame: Frame, outer: Outer, rows: dict[str, Tensor], maps: dict[nn.Module, Map]
) -> list[Group]:
    """The sites that can be folded; of the steps of a generation behind its prompts they are worked out once."""
    known = known_groups(layers, frame, outer)
    if known is not None:
        return known
    alike: dict[Hashable, Group] = {}
    for layer in layers:
        pieces = None if layer.disable_adapters else _pieces(layer, frame, outer, rows, maps)
        if pieces is None:
            continue
        key = (layer.width, *(one[:1] + one[3:5] + (one.map.weight.dtype,) for one in pieces))
        group = alike.setdefault(key, Group([], []))
        group.layers.append(layer)
        group.pieces.append(pieces)
    found = list(alike.values())
    if outer.steps is not None and frame.no_prompt:
        outer.steps[_switches(layers, frame)] = found
    return found


def rows_of_adapters(frame: Frame, outer: Outer) -> dict[str, Tensor] | None:
    """Rows of the batch that name each adapter, empty if none is named; None where they are not as many as the rows."""
    names = outer.adapter_names
    if names is None:
        return {}
    times = frame.batch // len(names) if outer.generating else 1
    if frame.batch != times * len(names):
        return None
    numbers = {name: [i for i, other in enumerate(names) if other == name] for name in sorted(set(names) - {BASE})}
    steps = torch.arange(times)
    return {name: (torch.tensor(found)[:, None] * times + steps).flatten() for name, found in numbers.items()}


def _pieces(
    layer: ReftLayer, frame: Frame, outer: Outer, rows: dict[str, Tensor], maps: dict[nn.Module, Map]
) -> list[Piece] | None:
    """Every Φ that edits here, and where; None if not all can be folded."""
    pieces = []
    for work in _works(layer, outer, rows):
        if work is None or (outer.adapter_names is None and (work.scopes or work.terms)):
            return None
        for adapter, unit, name in (*work.spans, *_named(work)):
            if frame.no_prompt and unit.group.spec.reach == 0:
                continue
            found = _map(layer.phi(adapter, unit), frame, maps)
            if found is None or layer._rank_mask(unit, FIRST_ROW, frame.batch) is not None:
                return None
            pieces.append(Piece(adapter, work.joint, unit, name, layer.strengths.get(adapter, 1.0), found))
    return pieces if len({one.map.weight.dtype for one in pieces}) < 2 else None


def _named(work: Work) -> Iterator[tuple[str, Unit, str]]:
    """Adapter and Φ of other positions than spans, with a name for its tokens."""
    for adapter, unit in (*work.scopes, *work.terms):
        yield adapter, unit, f"{unit.group.spec}[{unit.part.start}] by {unit.group.tie} of {work.joint}"


def _works(layer: ReftLayer, outer: Outer, rows: dict[str, Tensor]) -> Iterator[Work | None]:
    """What is done here, each adapter of a mixed batch for itself; None for what is refused."""
    if outer.adapter_names is not None:
        yield from (layer.work([name]) for name in rows if name in layer.groups)
        return
    active = [name for name in layer.active_adapters if name in layer.groups]
    yield None if len(active) > 1 and layer.overlap(active) is not None else layer.work(active)


def known_map(phi: Intervention) -> Map | None:
    """The map of a Φ whose parameters have the values that they had when it was made."""
    known = MAPS.get(phi)
    if known is None:
        return None
    now = phi.__dict__["_parameters"].values()
    # by value: a change of `.data` would not count their versions up
    pairs = zip(now, known[0], strict=True)
    same = all(is_plain(one) and one.dtype is own.dtype and torch.equal(one, own) for one, own in pairs)
    return known[1] if same else None


def is_plain(parameter: Tensor) -> bool:
    """Whether it is whole and on a CPU."""
    return type(parameter) is nn.Parameter and parameter.is_cpu


def _map(phi: Intervention, frame: Frame, maps: dict[nn.Module, Map]) -> Map | None:
    """The map of a Φ, if it is linear and nothing else is to be told of its calls."""
    own = phi.__dict__
    if own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own or (phi.training and phi.options.dropout):
        return None
    known = maps.get(phi) or known_map(phi)
    if known is not None or phi.options.rms or not isinstance(phi, LowRankIntervention):
        return known
    parameters = own["_parameters"].values()
    if not all(map(is_plain, parameters)):
        return None
    dtype = torch.float32
    for one in parameters:
        dtype = torch.promote_types(dtype, one.dtype)
    basis = frame.bases.get(phi)
    basis = (phi.basis() if basis is None else basis).to(dtype)
    found = phi.linear(basis)
    if found is None:
        return None
    # of their own: a cast that changes nothing returns the parameter itself
    weight, bias = (t.clone() if phi.options.alpha is None else t * phi.scale for t in found)
    MAPS[phi] = tuple(one.detach().clone() for one in parameters), Map(weight, bias, basis.clone())
    return MAPS[phi][1]


def _plan(pieces: Sequence[Piece], frame: Frame, outer: Outer, rows: dict[str, Tensor]) -> Plan | None:
    """Where these are in the call; None if nowhere."""
    found = [_tokens(one, frame, rows.get(one.adapter)) for one in pieces]
    if len(found) == 1 and outer.strength is None and pieces[0].strength == 1 and len(found[0]):
        return Plan(found[0][None], None, None)
    sizes = {len(tokens) for tokens in found} - {0}
    if not sizes:
        return None
    size = min(sizes) if len(sizes) == 1 else max(min(sizes), SHORT)
    chunks = [(slot, chunk) for slot, tokens in enumerate(found) if len(tokens) for chunk in tokens.split(size)]
    padded = pad_sequence([chunk for _, chunk in chunks], batch_first=True, padding_value=-1)
    tokens = torch.where(padded < 0, padded[:, :1], padded)
    numbers = [slot for slot, _ in chunks]
    slots = torch.tensor(numbers)
    own = torch.tensor([one.strength for one in pieces], dtype=torch.float64)
    scale = own[slots][:, None] * (padded >= 0)
    if outer.strength is not None:
        scale = scale * outer.strength.repeat_interleave(frame.batch // len(outer.strength))[tokens // frame.width]
    in_order = numbers == list(range(len(pieces)))
    return Plan(tokens, None if in_order else slots, None if bool((scale == 1).all()) else scale[..., None].float())


def _tokens(piece: Piece, frame: Frame, rows: Tensor | None) -> Tensor:
    """[M] of a Φ, counted through all rows of the call; `rows` are the adapter's, None: all."""
    group, cpu = piece.unit.group, torch.device("cpu")
    if group.spec.scope == "terms":
        hits = frame.hits(group.spec, group.tie, piece.joint, piece.unit.part.start, cpu)
        numbers = NO_TOKENS if hits is None or hits[1] is None else hits[1][:, 0]
        return numbers if rows is None else numbers[torch.isin(numbers // frame.width, rows)]
    if group.spec.scope != "span":
        every = torch.ones(frame.batch, frame.width, dtype=torch.bool)
        mask = every if group.spec.scope == "all" else frame.mask(group.spec, cpu)
        if mask is None:
            return NO_TOKENS
        own = mask if rows is None else mask & torch.isin(torch.arange(frame.batch), rows)[:, None]
        return own.flatten().nonzero()[:, 0]
    at = frame.pick(piece.joint, group.spec, piece.unit.part, piece.name, cpu)
    if at is None:
        return NO_TOKENS
    if rows is None and at.valid is None:
        return at.tokens.flatten()
    keep = torch.ones(at.tokens.shape, dtype=torch.bool) if at.valid is None else at.valid[..., 0]
    return at.tokens[keep if rows is None else keep & torch.isin(at.rows, rows)]


def _stacked(maps: Sequence[Sequence[Map]]) -> tuple[tuple[Tensor, ...], ...]:
    """Weights [K, r, d], biases [K, 1, r] and bases [K, r, d] of each of several sites, which have K Φ each."""
    flat = [one for of_site in maps for one in of_site]
    rank = max(len(one.bias) for one in flat)
    flat = [Map(*(_filled(t, rank) for t in one)) if len(one.bias) < rank else one for one in flat]
    stacked = (torch.stack(parts).unflatten(0, (len(maps), -1)) for parts in zip(*flat, strict=True))
    weight, bias, basis = stacked
    return weight.unbind(), bias[:, :, None].unbind(), basis.unbind()


def _filled(t: Tensor, rank: int) -> Tensor:
    """Rows of zeros behind those of t, up to the rank."""
    return torch.cat([t, t.new_zeros(rank - len(t), *t.shape[1:])])
