"""What an adapter on the model edits: the groups of each site, for `reftune.serving.plans`, and the layers of it.

Must not know: requests, how positions are counted.
"""

from __future__ import annotations

from typing import Any

from peft import PeftModel

from ...tuner.layer import ReftLayer
from ..cards import AdapterCard, group_facts
from ..plans import Site

__all__ = ["card_of"]


def card_of(model: PeftModel, slot: str, digest: str) -> AdapterCard:
    """Of the adapter that PEFT knows as `slot`."""
    config: Any = model.peft_config[slot]
    groups = config.resolved_groups()
    found: dict[Site, set[int]] = {}
    for layer in model.modules():
        if isinstance(layer, ReftLayer) and slot in layer.groups:
            site = tuple((groups.index(group), group.positions, group.tie) for group in layer.groups[slot])
            found.setdefault(site, set()).add(layer.layer)
    layers = tuple(tuple(sorted(numbers)) for numbers in found.values())
    return AdapterCard(digest, tuple(found), layers, group_facts(groups))
