"""What an adapter on the model edits: the groups of each site, for `reftune.serving.plans`, and the layers of it.

Must not know: requests, how positions are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import PeftModel

from ...tuner.layer import ReftLayer
from ..plans import Site, Sites

__all__ = ["Edits", "edits_of"]

GROUP_FIELDS = ("positions", "layers", "component", "intervention", "r")


@dataclass(frozen=True)
class Edits:
    sites: Sites = ()
    layers: tuple[tuple[int, ...], ...] = ()
    """Of each site, in order."""
    groups: tuple[dict[str, Any], ...] = ()
    """As the adapter's configuration has them."""


def edits_of(model: PeftModel, slot: str) -> Edits:
    """Of the adapter that PEFT knows as `slot`."""
    config: Any = model.peft_config[slot]
    groups = config.resolved_groups()
    found: dict[Site, set[int]] = {}
    for layer in model.modules():
        if isinstance(layer, ReftLayer) and slot in layer.groups:
            site = tuple((groups.index(group), group.positions, group.tie) for group in layer.groups[slot])
            found.setdefault(site, set()).add(layer.layer)
    return Edits(
        tuple(found),
        tuple(tuple(sorted(layers)) for layers in found.values()),
        tuple({name: getattr(group, name) for name in GROUP_FIELDS} for group in groups),
    )
