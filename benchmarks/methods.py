"""The methods that are compared: which program, in which environment, with which arguments.

Must not know: what is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .environments import OURS


@dataclass(frozen=True)
class Method:
    """One row of a table."""

    name: str
    module: str
    environment: str = OURS
    arguments: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    """Further fields of the request `load`; only ours takes any."""

    @property
    def is_peer(self) -> bool:
        """Whether its environment is another than ours."""
        return self.environment != OURS


METHODS = {
    method.name: method
    for method in (
        Method("ours", "ours"),
        Method("ours, reuse off", "ours", options={"trainer": {"reuse": "off"}}),
        Method("ours, packing", "ours", options={"trainer": {"packing": True}}),
        Method("floor, response logits", "floor", arguments=("--response-only",)),
        Method("floor, all logits", "floor"),
        Method("LoRA all linear", "lora", arguments=("all-linear",)),
        Method("LoRA o_proj", "lora", arguments=("o_proj",)),
        Method("pyreft", "pyreft", environment="pyreft"),
        Method("AdapterHub", "adapterhub", environment="adapterhub"),
    )
}
