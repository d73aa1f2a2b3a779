"""LoRA beside ReFT on a CPU: tokens without a LoRA get none.

Their index is −1.  vLLM's kernels for GPUs stop there; its ops for CPUs take it for the last LoRA in memory, so that
requests for the base model and for ReFT adapters are given one (vllm-project/vllm#48421, not merged as of 0.32).

Must not know: ReFT.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

__all__ = ["repair"]

# all others call these
OPS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")


def repair() -> None:
    """Have the ops of this process add nothing where the index is negative."""
    from vllm.lora.ops.torch_ops import lora_ops  # noqa: PLC0415 — in processes of vLLM only
    from vllm.lora.punica_wrapper import punica_cpu  # noqa: PLC0415

    for name in OPS:
        op = _skipping(getattr(lora_ops, name))
        for module in (lora_ops, punica_cpu):
            setattr(module, name, op)


def _skipping(own: Any) -> Any:
    @functools.wraps(own)
    def op(inputs: Tensor, weights: Tensor, output: Tensor, indices: Tensor, *args: Any, **kwargs: Any) -> None:
        # all of them multiply, so that zeros give zeros
        own(inputs.masked_fill((indices < 0)[:, None], 0), weights, output, indices, *args, **kwargs)

    return op
