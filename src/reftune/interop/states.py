"""What the blocks of a model return for prompts, without any adapter.

Must not know: what is made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ReftuneError
from ..tuner import find_stacks

__all__ = ["blocks_of", "states_of"]

# Tokens of all prompts together whose states are kept; of longer prompts evenly, from the first to the last.
MOST_TOKENS = 8192


def blocks_of(model: nn.Module) -> tuple[str, ...]:
    """Paths of the blocks.

    Raises:
        ReftuneError: the model has several stacks of them, or none.
    """
    stacks = find_stacks(model)
    if len(stacks) != 1:
        raise ReftuneError(f"{type(model).__name__} has {len(stacks)} stacks of blocks; one is needed")
    return stacks[0].blocks


@torch.inference_mode()
def states_of(
    model: Any, prompts: Sequence[list[int]], layers: Sequence[int], *, last: bool
) -> dict[int, list[Tensor]]:
    """Layer → what its block returns for each prompt, [tokens, d] on the CPU; with `last` of its last token alone."""
    paths = blocks_of(model)
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    most = max(2, MOST_TOKENS // len(prompts))

    def keep(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            h = output[0] if isinstance(output, (tuple, list)) else output
            count = h.shape[1]
            chosen = [count - 1] if last else torch.linspace(0, count - 1, min(most, count)).round().long()
            found[layer].append(h[0, chosen].float().cpu())

        return hook

    hooks = [model.get_submodule(paths[layer]).register_forward_hook(keep(layer)) for layer in layers]
    try:
        for ids in prompts:
            model(torch.tensor([ids], device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return found
