"""In the core of vLLM's engine: which adapters its workers have.

It sees every request there is, so it alone knows when none needs an adapter any more.

Must not know: names of adapters, the server.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import functools
import logging
import time
from typing import Any

from .options import options_of
from .requests import wire_of

__all__ = ["install"]

logger = logging.getLogger("vllm.reftune")

# Seconds for which an adapter that was let go is kept: a request for it may be on its way from another server process.
GRACE = 60.0


def install() -> None:
    """Give the core the calls by which adapters come and go."""
    from vllm.v1.engine.core import EngineCore  # noqa: PLC0415 — in processes of vLLM only

    EngineCore.reft_load = reft_load
    EngineCore.reft_unload = reft_unload
    EngineCore.reft_info = reft_info
    EngineCore.add_request = _checked(EngineCore.add_request)


def _checked(own: Any) -> Any:
    @functools.wraps(own)
    def add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        wire = wire_of(request.sampling_params)
        if wire is not None and wire.digest not in _tables(self)[0]:
            # without its edits it would be answered by the base model, and nobody would know
            problem = f"the ReFT adapter {wire.digest[:12]}… is not loaded any more; ask again"
            send = getattr(self, "_send_error_outputs_to_client", None)
            if send is None:
                raise ValueError(problem)
            logger.error("request %s: %s", request.request_id, problem)
            send([request.request_id], request.client_index)
            return None
        return own(self, request, *args, **kwargs)

    return add_request


def _tables(core: Any) -> tuple[set[str], dict[str, float]]:
    """Digests of what the workers have; of these, when each was let go."""
    found = core.__dict__.get("_reftune")
    if found is None:
        found = core.__dict__["_reftune"] = (set(), {})
    return found


def reft_load(core: Any, digest: str, content: bytes, spare: list[str]) -> dict[str, Any]:
    """Have the workers keep an adapter; `problem` says why not, `dropped` which of the `spare` ones went for it.

    One that they have is not sent again.
    """
    loaded, retired = _tables(core)
    retired.pop(digest, None)
    if digest in loaded:
        return {"problem": None, "dropped": []}
    options = options_of(core.vllm_config.additional_config)
    most = None if options is None else options.max_adapters
    _purge(core, GRACE)
    if most is not None and len(loaded) >= most:
        _purge(core, 0)
    dropped: list[str] = []
    if most is not None and len(loaded) >= most:
        needed = _needed(core)
        for other in [one for one in spare if one in loaded and one not in needed][: len(loaded) - most + 1]:
            _drop(core, other)
            dropped.append(other)
        if len(loaded) >= most:
            problem = (
                f"{len(loaded)} adapters are in use, as many as max_adapters allows; unload one, wait for requests to "
                "end, or start with a higher --reft-max-adapters"
            )
            return {"problem": problem, "dropped": dropped}
    began = time.perf_counter()
    problems = [problem for problem in core.collective_rpc("reft_load", args=(content,)) if problem]
    # nothing else is computed meanwhile
    logger.info("a ReFT adapter of %.1f MiB: %.0f ms", len(content) / 2**20, 1e3 * (time.perf_counter() - began))
    if problems:
        core.collective_rpc("reft_unload", args=(digest,))
        return {"problem": problems[0], "dropped": dropped}
    loaded.add(digest)
    return {"problem": None, "dropped": dropped}


def reft_unload(core: Any, digest: str, grace: float = GRACE) -> None:
    """Let an adapter go when the requests for it are done, in `grace` seconds at the earliest."""
    loaded, retired = _tables(core)
    if digest in loaded:
        retired.setdefault(digest, time.monotonic() - GRACE + grace)
    _purge(core, GRACE)


def reft_info(core: Any) -> list[dict[str, Any]]:
    """Of each worker what it has."""
    return core.collective_rpc("reft_info")


def _purge(core: Any, grace: float) -> None:
    _, retired = _tables(core)
    old = {digest for digest, since in retired.items() if time.monotonic() - since >= grace}
    if not old:
        return
    for digest in old - _needed(core):
        _drop(core, digest)


def _needed(core: Any) -> set[str]:
    """Digests that requests are for."""
    wires = [wire_of(request.sampling_params) for request in core.scheduler.requests.values()]
    return {wire.digest for wire in wires if wire is not None}


def _drop(core: Any, digest: str) -> None:
    loaded, retired = _tables(core)
    core.collective_rpc("reft_unload", args=(digest,))
    loaded.discard(digest)
    retired.pop(digest, None)
