"""Keys of vLLM's prefix cache, in the process of the engine's core: which edits a block depends on.

A block without edits has no key of ours, so that requests for different adapters, and for the base model, share it up
to the first edit.

Must not know: weights, workers.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import inspect
from typing import Any

from ..plans import block_key
from .requests import wire_of

__all__ = ["install"]

ARGUMENTS = ["request", "start_token_idx", "end_token_idx"]


def install() -> None:
    """Add our keys to those that vLLM hashes with a block's tokens.

    Raises:
        RuntimeError: this vLLM makes its keys in another way, so that nothing may be served.
    """
    from vllm.v1.core import kv_cache_utils  # noqa: PLC0415 — in processes of vLLM only

    # what makes all keys is imported by name in several modules; this one of its parts is looked up at each call, and
    # is told of the block's tokens
    own: Any = getattr(kv_cache_utils, "_gen_prompt_embeds_extra_hash_keys", None)
    if own is None or list(inspect.signature(own).parameters) != ARGUMENTS:
        raise RuntimeError(
            "this version of vLLM makes the keys of its prefix cache in a way that reftune does not know; adapters "
            "would be given each other's results"
        )

    def keys(request: Any, start_token_idx: int, end_token_idx: int) -> list[Any]:
        found = list(own(request, start_token_idx, end_token_idx))
        wire = wire_of(request.sampling_params)
        if wire is not None:
            at = start_token_idx, end_token_idx
            edits = wire.edits(request.num_prompt_tokens, *at, lambda: request.all_token_ids[slice(*at)])
            key = block_key(wire.digest, edits, *at, strength=wire.strength)
            found += [] if key is None else [("reftune", key)]
        return found

    kv_cache_utils._gen_prompt_embeds_extra_hash_keys = keys
