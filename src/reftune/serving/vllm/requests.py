"""`ReftRequest`: which adapter a request is for, as vLLM's `LoRARequest`; and what of it travels with the request.

Must not know: weights, models.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vllm.lora.request import LoRARequest

from ..cards import AdapterCard
from ..plans import Edit, Marks, Ranges, Sites, marks_of, plan_of_tokens, sites_from_wire

__all__ = ["SPANS", "STRENGTH", "WIRE", "ReftRequest", "Wire", "wire_of"]

# A key of SamplingParams.extra_args that clients cannot set.
WIRE = "_reftune"
# A key of SamplingParams.extra_args that clients set, in the body of a request a field of its own.
STRENGTH = "reft_strength"
# Another: ranges [start, stop) of tokens of the prompt that are marked; the name also of what a rendered prompt has.
SPANS = "reft_spans"


class ReftRequest(LoRARequest):
    """`ReftRequest(name, number, path)` asks for the ReFT adapter in the folder `path`, as a `LoRARequest` for a LoRA.

    It is read and checked when a request first names it; if its files have changed since, it is read anew.
    """

    card: AdapterCard | None = None
    """Of the adapter, once its files are read and loaded."""

    def with_card(self, card: AdapterCard) -> ReftRequest:
        """The same request, for what was read."""
        return ReftRequest(self.lora_name, self.lora_int_id, self.lora_path, card=card)


class Wire(NamedTuple):
    """What a request says of its adapter to the engine and its workers."""

    digest: str
    sites: Sites
    strength: float = 1.0
    marks: Marks = ()
    """Of the prompt: `marks_of`."""

    @classmethod
    def of(cls, card: AdapterCard, ids: Sequence[int], *, spans: Ranges = (), strength: float = 1.0) -> Wire:
        """Of a request with the prompt `ids`, of which it marks `spans` itself."""
        return cls(card.digest, card.sites, strength, marks_of(card.sites, ids, spans))

    def edits(self, length: int, start: int, stop: int, tokens: Callable[[], Sequence[int]]) -> tuple[Edit, ...]:
        """Those of tokens [start, stop) at least, of a prompt of `length` tokens; `tokens` gives the ids of these."""
        return plan_of_tokens(self.sites, length, start, stop, tokens, self.marks)

    def to_wire(self) -> dict[str, Any]:
        sites = [[list(group) for group in site] for site in self.sites]
        marks = [[list(one) for one in ranges] for ranges in self.marks]
        return {"digest": self.digest, "sites": sites, "strength": self.strength, "marks": marks}


def wire_of(params: Any) -> Wire | None:
    """Of a request's `SamplingParams`, None if it is for the base model."""
    extra: Mapping[str, Any] = getattr(params, "extra_args", None) or {}
    found = extra.get(WIRE)
    if found is None:
        return None
    marks = tuple(tuple((int(a), int(b)) for a, b in ranges) for ranges in found["marks"])
    return Wire(str(found["digest"]), sites_from_wire(found["sites"]), float(found["strength"]), marks)
