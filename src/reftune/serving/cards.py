"""What a server tells of an adapter, at `/v1/reft_adapters` and to the chat page: which positions of which layers, and
how prompts are put.

Plain numbers and texts, as they travel between processes.

Must not know: weights, models, backends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..config import ReftGroup
from ..data.style import PromptStyle
from .plans import Sites, sites_from_wire

__all__ = ["AdapterCard", "group_facts"]

FIELDS = ("positions", "layers", "component", "intervention", "r")


@dataclass(frozen=True)
class AdapterCard:
    """An adapter, as clients may know it; the same of every backend."""

    digest: str
    """Of its files."""
    sites: Sites
    layers: tuple[tuple[int, ...], ...]
    """The blocks of each of the sites."""
    groups: tuple[dict[str, Any], ...]
    """As the adapter's configuration has them; a site names them by their numbers."""
    style: PromptStyle | None = None
    """How chats are put as prompts; None: by the chat template."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> AdapterCard:
        """What `as_dict` has made, tuples being lists by now."""
        layers = tuple(tuple(int(layer) for layer in site) for site in value["layers"])
        style = None if value["style"] is None else PromptStyle(**value["style"])
        return cls(str(value["digest"]), sites_from_wire(value["sites"]), layers, tuple(value["groups"]), style)


def group_facts(groups: Iterable[ReftGroup]) -> tuple[dict[str, Any], ...]:
    """Of each group what it edits and by what."""
    return tuple({name: getattr(group, name) for name in FIELDS} for group in groups)
