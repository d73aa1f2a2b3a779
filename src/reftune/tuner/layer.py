"""`ReftLayer`: the interventions of all adapters at one site, and the hooks by which they edit it.

It is a child of the module that it edits.  The hook functions are module-level, so that a model can be copied and
pickled; they keep nothing.

Must not know: how sites are found, how a call's prompts are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..config import ReftGroup
from ..interventions import INTERVENTIONS, Intervention
from ..peft_type import PREFIX
from ..positions import PositionSpec, joint_span, overlap, own_slots, unit_slices
from .context import CallState, Frame, frame_of_full_rows, pick, required_frame, turned
from .quantised import put_back

__all__ = ["BASE", "ReftLayer", "edit_input", "edit_output"]

BASE = "__base__"
MERGE_REFUSED = (
    "ReFT edits hidden states at some positions of the prompt, which no change of weights can do, so an adapter cannot "
    "be merged; use unload() to get the base model back"
)


class Unit(NamedTuple):
    """One Φ of an adapter at this site: where it lies and which slots of the group's positions it edits."""

    bank: str
    group: ReftGroup
    part: slice


class Work(NamedTuple):
    """What a set of adapters does at this site, worked out once."""

    groups: list[list[ReftGroup]]
    joint: PositionSpec
    spans: list[tuple[str, Unit, str]]
    """Adapter, Φ and a name for its slots; empty if the spans are."""
    scopes: list[tuple[str, Unit]]
    terms: list[tuple[str, Unit]]


class ReftLayer(nn.Module, BaseTunerLayer):
    """Interventions of every adapter at one site.

    Parameters live in `intervention_<i>.<adapter>`, i counting the Φ that an adapter has here: one if its positions
    are tied, one for prefix and suffix or one a position if they are not, in the order of the config's groups.
    """

    adapter_layer_names: tuple[str, ...] = ()
    other_param_names: tuple[str, ...] = ("groups", "strengths")

    def __init__(self, width: int, state: CallState, *, layer: int, host: nn.Module, has_tokens: bool) -> None:
        super().__init__()
        self.width = width
        # what PEFT expects of every tuner layer
        self.in_features = self.out_features = width
        self.layer = layer
        self.state = state
        self.has_tokens = has_tokens
        self.pads_right = False
        self.groups: dict[str, list[ReftGroup]] = {}
        self.strengths: dict[str, float] = {}  # of those whose strength is not 1
        self._work: dict[tuple[str, ...], Work] = {}
        self.only_prompts = True
        self.fresh: set[str] = set()
        self.host_device, self.host_dtype = _device_and_dtype(host)
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []

    # --- adapters -------------------------------------------------------------------------------------------------

    def update_layer(self, adapter_name: str, groups: Sequence[ReftGroup], host: nn.Module) -> None:
        """Add the adapter: one Φ for each unit of each group."""
        self.host_device, self.host_dtype = _device_and_dtype(host)
        self.fresh.add(adapter_name)
        phis = []
        for group in groups:
            for _ in unit_slices(group.spec, group.tie):
                phi = INTERVENTIONS[group.intervention](self.width, group.options)
                if self.host_device.type != "meta" and not any(p.is_meta for p in phi.parameters()):
                    phi.to(self.host_device)
                phis.append(phi)
        self.adopt(adapter_name, groups, phis)

    def adopt(self, adapter_name: str, groups: Sequence[ReftGroup], phis: Sequence[Intervention]) -> None:
        """Add an adapter whose Φ are made already, in the order of its units, on the device of the host."""
        self.groups[adapter_name] = list(groups)
        self.only_prompts &= all(group.spec.reach == 0 for group in groups)
        for unit, phi in zip(self.units(adapter_name), phis, strict=True):
            if unit.bank not in self._modules:
                self.add_module(unit.bank, nn.ModuleDict())
                self.adapter_layer_names = (*self.adapter_layer_names, unit.bank)
            self.bank(unit)[adapter_name] = phi

    def forget(self, adapter_name: str) -> None:
        """Undo `update_layer`, even one that failed halfway."""
        self.groups.pop(adapter_name, None)
        self.strengths.pop(adapter_name, None)
        for name in self.adapter_layer_names:
            found = self._modules[name]
            if isinstance(found, nn.ModuleDict) and adapter_name in found:
                del found[adapter_name]
        empty = [name for name in self.adapter_layer_names if not self._modules[name]]
        for name in empty:
            del self._modules[name]
        self.adapter_layer_names = tuple(name for name in self.adapter_layer_names if name not in empty)

    def units(self, adapter_name: str) -> list[Unit]:
        """All Φ of the adapter at this site, empty if it has none here."""
        parts = [
            (group, part) for group in self.groups.get(adapter_name, []) for part in unit_slices(group.spec, group.tie)
        ]
        return [Unit(f"{PREFIX}{i}", group, part) for i, (group, part) in enumerate(parts)]

    def work(self, adapter_names: Sequence[str]) -> Work:
        """What these adapters, all of which are here, do together."""
        key = tuple(adapter_names)
        groups = [self.groups[name] for name in key]
        known = self._work.get(key)
        # PEFT takes adapters out of `groups` by itself
        if known is not None and all(one is other for one, other in zip(groups, known.groups, strict=True)):
            return known
        units = [(name, unit) for name in key for unit in self.units(name)]
        # Prefixes and suffixes of one site are cut together on short prompts, whichever adapter or group has them.
        joint = joint_span([unit.group.spec for _, unit in units])
        spans = [
            (name, unit, f"{unit.group.spec}[{unit.part.start}:{unit.part.stop}] of {joint}")
            for name, unit in units
            if unit.group.spec.scope == "span" and joint.count
        ]
        scopes = [(name, unit) for name, unit in units if unit.group.spec.scope not in ("span", "terms")]
        terms = [(name, unit) for name, unit in units if unit.group.spec.scope == "terms"]
        self._work[key] = Work(groups, joint, spans, scopes, terms)
        return self._work[key]

    def bank(self, unit: Unit) -> nn.ModuleDict:
        """All adapters' Φ of the same number."""
        found = self._modules[unit.bank]
        assert isinstance(found, nn.ModuleDict)
        return found

    def phi(self, adapter_name: str, unit: Unit) -> Intervention:
        """The module of a unit."""
        found = self.bank(unit)[adapter_name]
        assert isinstance(found, Intervention)
        return found

    def cast_adapter(self, adapter_name: str, dtype: torch.dtype | None = None) -> None:
        """Store an adapter in `dtype`, by default the host's; the first time, initialise it in that dtype."""
        for unit in self.units(adapter_name):
            phi = self.phi(adapter_name, unit)
            phi.to(dtype or self.host_dtype)
            # PEFT casts again after it has loaded weights
            if adapter_name in self.fresh:
                phi.reset_parameters()
        self.fresh.discard(adapter_name)

    def overlap(self, adapter_names: Sequence[str]) -> str | None:
        """What is wrong if two of the adapters edit the same rows of the rank at the same positions here."""
        for one, two in combinations(dict.fromkeys(adapter_names), 2):
            for a in self.groups.get(one, []):
                for b in self.groups.get(two, []):
                    if groups_overlap(a, b):
                        return (
                            f"the adapters {one!r} and {two!r} both edit layer {self.layer} at overlapping positions "
                            f"({a.positions!r}, {b.positions!r}), so they cannot be active together; use positions "
                            "that are disjoint, or disjoint active_subspaces of the same subspaces"
                        )
        return None

    def train(self, mode: bool = True) -> ReftLayer:
        for phi in self.modules():
            put_back(phi)
        return super().train(mode)

    # --- what PEFT asks of a tuner layer ---------------------------------------------------------------------------

    def get_base_layer(self) -> nn.Module:
        return self

    @property
    def weight(self) -> Tensor:
        return next(self.parameters())

    @property
    def bias(self) -> Tensor:
        raise AttributeError("a ReftLayer has no bias")

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise NotImplementedError(MERGE_REFUSED)

    def unmerge(self) -> None:
        raise NotImplementedError(MERGE_REFUSED)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        target = device or self.host_device
        if target.type == "meta":
            return
        for unit in self.units(adapter_name):
            self.phi(adapter_name, unit).to(target)

    @property
    def rests(self) -> bool:
        """Whether only prompts are edited here and the call has nothing of any, as when a response is generated."""
        frame = self.state.frame
        return self.only_prompts and frame is not None and frame.no_prompt

    # --- the edit -------------------------------------------------------------------------------------------------

    def edit(self, h: Tensor) -> Tensor:
        """h [B, T, d] → h with the edits of the active adapters added; h itself if there is nothing to do."""
        if self._disable_adapters:
            return h
        frame = self.state.frame
        folded = None if frame is None else frame.folds.get(self)
        if folded is not None and (edited := folded(h)) is not None:
            return edited
        frame = self._frame(h)
        if self.pads_right and h.ndim == 3 and frame is not None and h.shape[1] > frame.width:
            # columns that the model itself put behind those of the call
            return torch.cat([self._edit_rows(h[:, : frame.width], frame), h[:, frame.width :]], 1)
        if h.ndim != 2:
            return self._edit_rows(h, frame)
        if frame is not None and h.shape[0] == frame.batch * frame.width:
            # an MLP that sees [B·T, d]
            return self._edit_rows(h.reshape(frame.batch, frame.width, -1), frame).view(h.shape)
        if frame is not None and h.shape[0] == frame.batch:
            # a vector per row, such as a pooled state: a sequence of one
            frame = frame_of_full_rows(h.shape[0], 1, h.device)
        return self._edit_rows(h[:, None], frame).view(h.shape)

    def _frame(self, h: Tensor) -> Frame | None:
        frame = self.state.frame
        if (not self.has_tokens) if frame is None else (not frame.of_tokens):
            # not a language model: the rows of h are the prompts
            width = h.shape[1] if h.ndim == 3 else 1
            return frame_of_full_rows(h.shape[0], width, h.device)
        return frame

    def _edit_rows(self, h: Tensor, frame: Frame | None) -> Tensor:
        names = self.state.outer.adapter_names
        if names is None:
            active = [a for a in self.active_adapters if a in self.groups]
            if len(active) > 1 and (problem := self.overlap(active)) is not None:
                raise ValueError(problem)
            return self._edit_with(h, frame, active, None)
        # generate repeats the rows of the batch for beams and for several sequences
        times = h.shape[0] // len(names) if self.state.outer.generating else 1
        if h.shape[0] != times * len(names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(names)} and {h.shape[0]} respectively."
            )
        per_row = [name for name in names for _ in range(times)]
        for adapter in sorted(set(names) - {BASE}):
            if adapter in self.groups:
                rows = [i for i, name in enumerate(per_row) if name == adapter]
                h = self._edit_with(h, frame, [adapter], torch.tensor(rows, device=h.device))
        return h

    def _edit_with(self, h: Tensor, frame: Frame | None, adapters: list[str], rows: Tensor | None) -> Tensor:
        """Edits of `adapters` together, on the given rows of the batch or on all."""
        work = self.work(adapters)
        edited = self._apply_spans(h, frame, work, rows) if work.spans else h
        for adapter, unit in work.scopes:
            edited = self._apply_scope(h, edited, frame, adapter, unit, rows)
        for adapter, unit in work.terms:
            edited = self._apply_terms(h, edited, frame, adapter, unit, rows, work.joint)
        return edited

    def _apply_spans(self, h: Tensor, frame: Frame | None, work: Work, rows: Tensor | None) -> Tensor:
        joint = work.joint
        known = required_frame(frame, joint, h)
        slots = None
        if rows is not None:
            slots = known.slots(joint, h.device)
            if slots is None:
                return h
            one_per_row = known.segments is not None and known.segments.one_per_row
            # to look which rows have segments would be to wait for a GPU
            keep = rows if one_per_row else torch.isin(slots.rows[:, 0], rows).nonzero()[:, 0]
            slots = type(slots)(*(t[keep] for t in slots))
        # over rows and columns at once: an index of one number is several times quicker than one of two
        h_TD = h.flatten(0, 1)
        deltas, places = [], []
        for adapter, unit, name in work.spans:
            spec = unit.group.spec
            if slots is None:
                at = known.pick(joint, spec, unit.part, name, h.device)
                if at is None:
                    return h
            else:
                at = pick(slots, own_slots(spec, joint)[unit.part], known.width)
            mask = self._rank_mask(unit, at.rows, h.shape[0])
            h_NPD = h_TD.index_select(0, at.tokens.flatten()).view(*at.tokens.shape, -1)
            if at.valid is None:
                delta_NPD = self._delta(frame, adapter, unit, h_NPD, mask)
            else:
                # a slot that is not valid may point at padding, whose state may be NaN, and so its gradient
                delta_NPD = self._delta(frame, adapter, unit, torch.where(at.valid, h_NPD, 0), mask)
                delta_NPD = torch.where(at.valid, delta_NPD, 0)
            delta_NPD = turned(delta_NPD, self.strengths.get(adapter), self.state.outer, at.rows, h.shape[0])
            self._tell(h_NPD, delta_NPD, at.tokens, at.valid)
            deltas.append(delta_NPD.to(h.dtype).flatten(0, 1))
            places.append(at.tokens.flatten())
        if len(places) == 1:
            return h_TD.index_add(0, places[0], deltas[0]).view(h.shape)
        return h_TD.index_add(0, torch.cat(places), torch.cat(deltas)).view(h.shape)

    def _apply_scope(
        self, h: Tensor, edited: Tensor, frame: Frame | None, adapter: str, unit: Unit, rows: Tensor | None
    ) -> Tensor:
        keep = None
        if unit.group.spec.scope != "all":
            keep = required_frame(frame, unit.group.spec, h).mask(unit.group.spec, h.device)
            if keep is None:
                return edited
        # of a mixed batch the adapter's rows alone: each adapter takes what its rows take
        at = torch.arange(h.shape[0], device=h.device) if rows is None else rows
        h_NTD, keep = (h, keep) if rows is None else (h[rows], None if keep is None else keep[rows])
        delta = self._delta(frame, adapter, unit, h_NTD, self._rank_mask(unit, at[:, None], h.shape[0]))
        if keep is not None:
            delta = torch.where(keep[..., None], delta, 0)
        delta = turned(delta, self.strengths.get(adapter), self.state.outer, at[:, None], h.shape[0])
        tokens = None if rows is None else rows[:, None] * h.shape[1] + torch.arange(h.shape[1], device=h.device)
        self._tell(h_NTD, delta, tokens, None if keep is None else keep[..., None])
        delta = delta.to(h.dtype)
        return edited + delta if rows is None else edited.index_add(0, rows, delta)

    def _apply_terms(
        self,
        h: Tensor,
        edited: Tensor,
        frame: Frame | None,
        adapter: str,
        unit: Unit,
        rows: Tensor | None,
        joint: PositionSpec,
    ) -> Tensor:
        spec = unit.group.spec
        found = required_frame(frame, spec, h).hits(spec, unit.group.tie, joint, unit.part.start, h.device)
        if found is None:
            return edited
        mask_BT, at_M1 = found
        if at_M1 is None:
            # compiled: the number of tokens must not matter
            every_row = torch.arange(h.shape[0], device=h.device)
            keep = mask_BT if rows is None else mask_BT & torch.isin(every_row, rows)[:, None]
            on = self._rank_mask(unit, every_row[:, None], h.shape[0])
            delta = self._delta(frame, adapter, unit, torch.where(keep[..., None], h, 0), on)
            delta = turned(delta, self.strengths.get(adapter), self.state.outer, every_row[:, None], h.shape[0])
            return edited + torch.where(keep[..., None], delta, 0).to(h.dtype)
        if rows is not None:
            at_M1 = at_M1[torch.isin(at_M1[:, 0] // h.shape[1], rows)]
        if not len(at_M1) and not torch.is_grad_enabled():
            return edited
        at_M = at_M1[:, 0]
        h_M1D = h.flatten(0, 1).index_select(0, at_M)[:, None]
        rows_M1 = at_M1 // h.shape[1]
        delta_M1D = self._delta(frame, adapter, unit, h_M1D, self._rank_mask(unit, rows_M1, h.shape[0]))
        delta_M1D = turned(delta_M1D, self.strengths.get(adapter), self.state.outer, rows_M1, h.shape[0])
        self._tell(h_M1D, delta_M1D, at_M1, None)
        return edited.flatten(0, 1).index_add(0, at_M, delta_M1D[:, 0].to(h.dtype)).view(h.shape)

    def _tell(self, h: Tensor, delta: Tensor, tokens: Tensor | None, valid: Tensor | None) -> None:
        """valid [N, P, 1], None where all are."""
        meter = self.state.outer.meter
        if meter is not None:
            meter.see(self.layer, h, delta, tokens, None if valid is None else valid[..., 0])

    def _delta(self, frame: Frame | None, adapter: str, unit: Unit, h: Tensor, mask: Tensor | None) -> Tensor:
        phi = self.phi(adapter, unit)
        if frame is not None and phi in frame.bases:
            return phi(h, mask, frame.bases[phi])
        return phi(h, mask)

    def _rank_mask(self, unit: Unit, rows: Tensor, batch: int) -> Tensor | None:
        """[N, P, r] of 0 and 1, or None where every row of the rank is on; rows [N, P] are batch rows."""
        group = unit.group
        parts = group.subspaces
        if parts is None:
            return None
        choice = self.state.outer.subspaces
        default = list(range(len(parts))) if group.active_subspaces is None else group.active_subspaces
        if choice is None and group.active_subspaces is None:
            return None
        table = torch.zeros(batch, group.r)
        wanted = [default] if choice is None else [list(c) for c in choice]
        if batch % len(wanted):
            raise ValueError(f"subspaces has {len(wanted)} entries for a batch of {batch} rows")
        times = batch // len(wanted)
        for i, chosen in enumerate(wanted):
            if not set(chosen) <= set(range(len(parts))):
                raise ValueError(f"subspaces[{i}]={chosen!r} is not valid; choose among 0..{len(parts) - 1}")
            on = [row for part in set(chosen) & set(default) for row in parts[part]]
            for row in range(i * times, (i + 1) * times):
                table[row, on] = 1
        return table.to(rows.device)[rows]


def groups_overlap(a: ReftGroup, b: ReftGroup) -> bool:
    """Whether two groups at one site edit a token in common by rows of the rank in common."""
    if not overlap(a.spec, b.spec):
        return False
    shared_rank = a.subspaces is not None and a.subspaces == b.subspaces and a.r == b.r
    return not (shared_rank and not (a.active_rows & b.active_rows))


def _device_and_dtype(host: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Of the first floating-point parameter of the host that is not an intervention's."""
    for name, parameter in host.named_parameters():
        if PREFIX not in name and parameter.is_floating_point():
            return parameter.device, parameter.dtype
    first = next(host.parameters(), None)
    return (torch.device("cpu") if first is None else first.device), torch.float32


def edit_output(name: str, module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook: edits what a block, attention or MLP returns, or the first element of a tuple."""
    layer: Any = module._modules[name]
    if layer.rests:
        return None
    if not isinstance(output, (tuple, list)):
        return layer.edit(output)
    parts = (layer.edit(output[0]), *output[1:])
    # as its kind: some blocks return lists, some tuples with names
    return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)


def edit_input(name: str, part: slice, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook: edits a slice of the last axis of the first argument, the output of one attention head."""
    layer = module._modules[name]
    assert isinstance(layer, ReftLayer)
    h = args[0]
    edited = layer.edit(h[..., part])
    return (torch.cat([h[..., : part.start], edited, h[..., part.stop :]], -1), *args[1:])
