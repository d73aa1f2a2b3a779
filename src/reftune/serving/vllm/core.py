"""In the core of vLLM's engine: which adapters its workers have.

It sees every request there is, so it alone knows when none needs an adapter any more.

Must not know: names of adapters, the server.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import time
from typing import Any

from .options import options_of
from .requests import wire_of

__all__ = ["install"]

# Seconds for which an adapter that was let go is kept: a request for it may be on its way from another server process.
GRACE = 60.0


def install() -> None:
    """Give the core the calls by which adapters come and go."""
    from vllm.v1.engine.core import EngineCore  # noqa: PLC0415 — in processes of vLLM only

    EngineCore.reft_load = reft_load
    EngineCore.reft_unload = reft_unload
    EngineCore.reft_info = reft_info


def _tables(core: Any) -> tuple[set[str], dict[str, float]]:
    """Digests of what the workers have; of these, when each was let go."""
    found = core.__dict__.get("_reftune")
    if found is None:
        found = core.__dict__["_reftune"] = (set(), {})
    return found


def reft_load(core: Any, digest: str, content: bytes) -> str | None:
    """Have the workers keep an adapter; in words, why not.  One that they have is not sent again."""
    loaded, retired = _tables(core)
    retired.pop(digest, None)
    if digest in loaded:
        return None
    options = options_of(core.vllm_config.additional_config)
    _purge(core, GRACE)
    if options is not None and len(loaded) >= options.max_adapters:
        _purge(core, 0)
        if len(loaded) >= options.max_adapters:
            return f"{len(loaded)} adapters are loaded, as many as max_adapters allows; unload one first"
    problems = [problem for problem in core.collective_rpc("reft_load", args=(content,)) if problem]
    if problems:
        core.collective_rpc("reft_unload", args=(digest,))
        return problems[0]
    loaded.add(digest)
    return None


def reft_unload(core: Any, digest: str) -> None:
    """Let an adapter go when the requests for it are done."""
    loaded, retired = _tables(core)
    if digest in loaded:
        retired.setdefault(digest, time.monotonic())
    _purge(core, GRACE)


def reft_info(core: Any) -> list[dict[str, Any]]:
    """Of each worker what it has."""
    return core.collective_rpc("reft_info")


def _purge(core: Any, grace: float) -> None:
    loaded, retired = _tables(core)
    old = {digest for digest, since in retired.items() if time.monotonic() - since >= grace}
    if not old:
        return
    wires = [wire_of(request.sampling_params) for request in core.scheduler.requests.values()]
    for digest in old - {wire.digest for wire in wires if wire is not None}:
        core.collective_rpc("reft_unload", args=(digest,))
        loaded.discard(digest)
        del retired[digest]
