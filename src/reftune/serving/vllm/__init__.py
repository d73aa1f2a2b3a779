"""ReFT adapters on vLLM, one per request, without a fork: a plug-in that vLLM loads in each of its processes.

`reftune serve MODEL --reft-modules name=folder` is vLLM's own server with it; offline, `llm.generate(prompts,
lora_request=ReftRequest(name, number, folder))`.

Must not know: training, evaluation.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .requests import ReftRequest

__all__ = ["ReftRequest", "problem", "register"]

OFF = "REFTUNE_VLLM"
logger = logging.getLogger("vllm.reftune")
_state: dict[str, str | None] = {}


def register() -> None:
    """Entry point of `vllm.general_plugins`: called in every process of vLLM.  `REFTUNE_VLLM=0` switches it off."""
    if _state or os.environ.get(OFF) == "0":
        return
    try:
        from . import chats, core, frontend, keys, worker  # noqa: PLC0415 — they need vLLM

        # what takes requests comes last: there are none for adapters unless all the rest is in its place
        for module in (keys, core, worker, chats, frontend):
            module.install()
    except (ImportError, AttributeError, RuntimeError) as error:
        # whoever has both installed may want vLLM alone
        _state["problem"] = f"this version of vLLM is not known to reftune: {error}"
        logger.warning("ReFT adapters cannot be served: %s", _state["problem"])
        return
    _state["problem"] = None


def problem() -> str | None:
    """In words, why this process serves no adapters; None if it can."""
    return _state.get("problem", "the plug-in is switched off or was not loaded")


def __getattr__(name: str) -> Any:
    if name == "ReftRequest":
        from .requests import ReftRequest as found  # noqa: PLC0415 — it needs vLLM

        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
