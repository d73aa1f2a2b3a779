"""Where a saved adapter edits the model, and its Φ ready to be put there: made beside running answers.

Which modules are edited is what the names of the tensors say; the configuration's layers must say the same.

Must not know: requests, slots.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...config import ReftConfig, ReftGroup
from ...data.style import PromptStyle
from ...interventions import Intervention
from ...positions import unit_slices
from ...tuner.quantised import is_quantised, keep_float32
from ...tuner.sites import Site, find_sites, find_stacks, layer_number, module_width
from ..adapters import AdapterError, AdapterFiles, check_disjoint, check_layers, check_width, unit_width
from ..cards import AdapterCard, group_facts
from ..folded import phi_of
from ..pieces import breathe
from ..plans import Site as PlanSite

__all__ = ["ModelSites", "Prepared"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """An adapter that fits the model."""

    path: str
    config: ReftConfig
    card: AdapterCard
    places: tuple[tuple[Site, list[ReftGroup], list[Intervention]], ...]
    """Each site with the groups that edit it, and their Φ in the order of their units."""


class ModelSites:
    """The modules of a base model, which many adapters are compared with.  From several threads.

    `lock` is to be held by whoever changes the model's modules.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.lock = threading.Lock()
        self.stacks = find_stacks(model)
        self.modules: dict[str, nn.Module] = dict(model.named_modules())
        text = model.config.get_text_config()
        self.width, self.layers = int(text.hidden_size), int(text.num_hidden_layers)

    def prepare(self, files: AdapterFiles, style: PromptStyle | None) -> Prepared:
        """Compare an adapter with the model and make its Φ.

        Raises:
            AdapterError: it does not fit.
        """
        where = f"the adapter {str(files.path)!r}"
        check_width(files, self.width)
        check_layers(files, self.layers)
        try:
            with self.lock:
                wanted = self._wanted(files)
        except (ValueError, AttributeError, OverflowError) as error:
            raise AdapterError(f"{where} does not fit this model: {' '.join(str(error).split())[:500]}") from error
        check_disjoint(files, {tuple(map(id, groups)): groups for _, groups in wanted}.values())
        found = {(site.path, site.child): (site, groups) for site, groups in wanted}
        missing, unexpected = found.keys() - files.sites.keys(), files.sites.keys() - found.keys()
        if missing or unexpected:
            what = "lacks" if missing else "has, but the model has not,"
            path, child = min(missing or unexpected)
            raise AdapterError(
                f"{where} was made for another model: it {what} tensors of {len(missing or unexpected)} modules such "
                f"as {f'{path[:200]}.{child}'!r}"
            )
        places = tuple((*found[at], self._phis(files, at, *found[at])) for at in files.sites)
        return Prepared(str(files.path), files.config, _card(files, places, style), places)

    def _wanted(self, files: AdapterFiles) -> list[tuple[Site, list[ReftGroup]]]:
        """The sites that an adapter should have tensors for, and the groups of each."""
        groups = files.groups
        if all(group.layers is None for group in groups):
            # modules were named when it was made, and the tensors have their names
            unknown = next((path for path, _ in files.sites if path not in self.modules), None)
            if unknown is not None:
                raise ValueError(f"it edits {unknown[:200]!r}, which this model has not")
            return [(self._site(path), groups) for path in files.blocks]
        found: dict[Site, list[ReftGroup]] = {}
        for group in groups:
            breathe()
            for site in find_sites(self.model, self.stacks, group):
                found.setdefault(site, []).append(group)
        return list(found.items())

    def _site(self, path: str) -> Site:
        breathe()
        return Site(path, layer_number(path), module_width(self.model, path, self.stacks))

    def _phis(
        self, files: AdapterFiles, at: tuple[str, str], site: Site, groups: Sequence[ReftGroup]
    ) -> list[Intervention]:
        units = files.sites[at]
        where = f"the adapter {str(files.path)!r} was made for another model"
        wanted = [group for group in groups for _ in unit_slices(group.spec, group.tie)]
        if len(wanted) != len(units):
            raise AdapterError(f"{where}: it has {len(units)} interventions at {at[0]!r}, not {len(wanted)}")
        device = next(self.modules[site.path].parameters(), torch.empty(0)).device
        phis = []
        for group, tensors in zip(wanted, units, strict=True):
            breathe()
            if unit_width(tensors, group) != site.width:
                raise AdapterError(f"{where}: {at[0]!r} has width {site.width} here, which is not that of its tensors")
            # a copy: of views, one would keep the whole file
            own = {name: tensor.to(device, torch.float32, copy=True) for name, tensor in tensors.items()}
            try:
                phis.append(phi_of(group, site.width, own).requires_grad_(False))
            except ValueError as error:
                raise AdapterError(f"{where}: {at[0]!r}: {error}") from error
            if is_quantised(self.model):
                keep_float32(phis[-1])
        return phis


def _card(
    files: AdapterFiles, places: Sequence[tuple[Site, list[ReftGroup], Any]], style: PromptStyle | None
) -> AdapterCard:
    """What is told of the adapter: the groups of each site, and the layers of it."""
    numbers = {id(group): number for number, group in enumerate(files.groups)}
    found: dict[PlanSite, set[int]] = {}
    for site, groups, _ in places:
        key = tuple((numbers[id(group)], group.positions, group.tie) for group in groups)
        found.setdefault(key, set()).add(site.layer)
    layers = tuple(tuple(sorted(of_site)) for of_site in found.values())
    return AdapterCard(files.digest, tuple(found), layers, group_facts(files.groups), style)
