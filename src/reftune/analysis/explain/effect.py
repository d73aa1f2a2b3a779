"""To what effect an adapter edits: the next token with the edits and without, at the end of the model and along it.

Must not know: what is switched off, pictures.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .directions import Lens, top_tokens
from .probe import Probe
from .switches import EVERY, NONE, Text, wide

__all__ = ["along_layers", "kl", "next_tokens"]


def kl(adapter: Tensor, base: Tensor) -> float:
    """KL(adapter ‖ base) of the softmax of logits [V], in nats: what the edits add to the base's surprise."""
    p, q = (x.to(torch.float64).log_softmax(-1) for x in (adapter, base))
    return max(0.0, float((p.exp() * (p - q)).sum()))


def next_tokens(probe: Probe, text: Text, *, count: int = 5) -> list[dict[str, Any]]:
    """For each token of the answer: what came before, the likeliest tokens of base and adapter, KL(adapter ‖ base)."""
    base, adapter = probe.logits(text, [NONE, EVERY])
    found = []
    for i, token in enumerate(text.answer):
        column = text.prompt_length - 1 + i
        found.append(
            {
                "column": column,
                "after": text.pieces[column],
                "answer": text.pieces[column + 1],
                **_both(probe, base[i], adapter[i], token, count),
            }
        )
    return found


def along_layers(
    probe: Probe, text: Text, lens: Lens, *, column: int | None = None, count: int = 3
) -> list[dict[str, Any]]:
    """The lens behind every block at one token, base beside adapter; by default at the last token of the prompt.

    `resid_post.<i>` with the edit of block i, as all that follows gets it.
    """
    at = text.prompt_length - 1 if column is None else column
    seen = (probe.seen(text, switch).blocks for switch in (NONE, EVERY))
    base, adapter = (lens(torch.stack([states[at] for states in blocks])) for blocks in seen)
    wanted = text.ids[at + 1] if at + 1 < len(text.ids) else None
    return [
        {
            "site": f"resid_post.{i}",
            "layer": i,
            **_both(probe, without, with_edits, wanted, count),
        }
        for i, (without, with_edits) in enumerate(zip(base, adapter, strict=True))
    ]


def _both(probe: Probe, base: Tensor, adapter: Tensor, wanted: int | None, count: int) -> dict[str, Any]:
    p_base, p_adapter = (wide(x).softmax(-1) for x in (base, adapter))
    return {
        "kl": kl(adapter, base),
        "p_base": None if wanted is None else float(p_base[wanted]),
        "p_adapter": None if wanted is None else float(p_adapter[wanted]),
        "base": top_tokens(probe, p_base, count, name="p"),
        "adapter": top_tokens(probe, p_adapter, count, name="p"),
    }
