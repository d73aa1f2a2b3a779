"""ReFT adapters on vLLM, one per request, without a fork: a plug-in that vLLM loads in each of its processes.

`reftune serve MODEL --reft-modules name=folder` is vLLM's own server with it; offline, `llm.generate(prompts,
lora_request=ReftRequest(name, number, folder))`.

Must not know: training, evaluation.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .requests import ReftRequest

__all__ = ["ReftRequest", "register"]

OFF = "REFTUNE_VLLM"
_done = False


def register() -> None:
    """Entry point of `vllm.general_plugins`: called in every process of vLLM.  `REFTUNE_VLLM=0` switches it off."""
    global _done
    if _done or os.environ.get(OFF) == "0":
        return
    from . import core, frontend, keys, worker  # noqa: PLC0415 — they need vLLM

    keys.install()
    core.install()
    worker.install()
    frontend.install()
    _done = True


def __getattr__(name: str) -> Any:
    if name == "ReftRequest":
        from .requests import ReftRequest as found  # noqa: PLC0415 — it needs vLLM

        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
