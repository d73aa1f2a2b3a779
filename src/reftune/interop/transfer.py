"""An adapter of one model as one of another: by two least-squares maps between their activations at matched layers.

After Command-V (arXiv 2506.19140).  With h of the new model, x = Mh + c its state as the old one would have it, and N
the map back, the edit is N·Δ(x).  Of Δ(x) = W2ᵀ act(W1x + b) that is a DiReFT again, in closed form:
W1' = W1 M, b' = b + W1 c, W2'ᵀ = N W2ᵀ.  The maps are fitted to what both models compute for the same prompts without
any adapter; nothing is trained.  How well they fit is told on prompts that they did not see.

Must not know: what an adapter is for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adapter_files import adapter_style
from ..data import encode_prompt
from ..errors import ReftuneError
from ..models import load_base
from ..tuner.parts import Group, Part
from ..tuner.together import combined, rows_of
from .parts import base_of, check_output, groups_in, write
from .states import blocks_of, states_of

__all__ = ["Fit", "Matched", "matched_layer", "transfer"]

# Of prompts, every fifth is held back; of the diagonal's mean, so much is added to it.
HELD_BACK = 5
RIDGE = 1e-3


class Matched(NamedTuple):
    """A pair of layers, and the share of variance that the maps there and back explain on held-back prompts."""

    source: int
    target: int
    there: float
    back: float


class Fit(NamedTuple):
    """y ≈ M x + c: M [d_y, d_x], c [d_y]; and R² on what it was not fitted to."""

    M: Tensor
    c: Tensor
    r2: float

    @classmethod
    def of(cls, x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor) -> Fit:
        """Ridge regression, in float64."""
        x, y, held_x, held_y = (states.double() for states in (x, y, held_x, held_y))
        mean_x, mean_y = x.mean(0), y.mean(0)
        centred = x - mean_x
        gram = centred.mT @ centred
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())
        M = torch.linalg.solve(gram, centred.mT @ (y - mean_y)).mT
        c = mean_y - M @ mean_x
        left = (held_y - (held_x @ M.mT + c)).square().sum()
        return cls(M, c, float(1 - left / (held_y - mean_y).square().sum()))


def matched_layer(layer: int, source: int, target: int) -> int:
    """The layer of `target` layers that lies as deep as this one of `source`."""
    return math.ceil((layer + 1) * target / source) - 1


def transfer(
    adapter: str, output: str | Path, *, target: str, prompts: Sequence[Any], source: str | None = None
) -> tuple[Path, list[Matched], str | None]:
    """The adapter on another base model, as an adapter; the pairs of layers, and a note where tokenizers differ.

    `prompts` are records or texts, put as the adapter's are; some hundreds of the kind that it is for.  Where both
    models make the same tokens of them, all of these are compared, else the last token of each prompt.

    Raises:
        ReftuneError: it edits something else than outputs of blocks, by what is no affine low-rank edit; or there are
            too few prompts.
    """
    check_output(output)
    if len(prompts) < 2 * HELD_BACK:
        raise ReftuneError(f"{len(prompts)} prompts are too few to fit maps; at least {2 * HELD_BACK}, better hundreds")
    name = source or base_of([adapter])
    groups = groups_in(adapter, base=name)
    odd = next((group.component for group in groups if group.component != "block_output"), None)
    if odd is not None:
        raise ReftuneError(f"{adapter!r} edits {odd}; only edits of block outputs can be carried over")
    loaded = [load_base(one, dtype=torch.float32) for one in (name, target)]
    tokens = [[encode_prompt(prompt, tokenizer) for prompt in prompts] for _, tokenizer in loaded]
    same = tokens[0] == tokens[1]
    depths = [len(blocks_of(model)) for model, _ in loaded]
    wanted = {layer: matched_layer(layer, *depths) for group in groups for layer in group.phis}
    sides = (sorted(wanted), sorted(set(wanted.values())))
    seen = [
        states_of(model, ids, layers, last=not same)
        for (model, _), ids, layers in zip(loaded, tokens, sides, strict=True)
    ]
    fits, matched = {}, []
    for layer, other in sorted(wanted.items()):
        x, held_x = _parted(seen[1][other])
        y, held_y = _parted(seen[0][layer])
        fits[layer] = Fit.of(x, y, held_x, held_y), Fit.of(y, x, held_y, held_x)
        matched.append(Matched(layer, other, fits[layer][0].r2, fits[layer][1].r2))
    folder = write(_carried(groups, wanted, fits, adapter), base=target, output=output, style=adapter_style(adapter))
    note = (
        None
        if same
        else (
            f"{name!r} and {target!r} make other tokens of these prompts, so only the last token of each was compared; "
            "edits of other tokens may land on others than they were trained on"
        )
    )
    return folder, matched, note


def _parted(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[n, d] of the prompts that maps are fitted to, and of the held-back ones."""
    held = [i % HELD_BACK == HELD_BACK - 1 for i in range(len(states))]
    return (
        torch.cat([h for h, is_held in zip(states, held, strict=True) if not is_held]),
        torch.cat([h for h, is_held in zip(states, held, strict=True) if is_held]),
    )


def _carried(
    groups: Sequence[Group], wanted: dict[int, int], fits: dict[int, tuple[Fit, Fit]], adapter: str
) -> list[Group]:
    """The groups on the other model; layers that meet there are added."""
    apart: dict[str, list[Group]] = {}
    for i, group in enumerate(groups):
        for layer, parts in group.phis.items():
            there, back = fits[layer]
            made = []
            for part in parts:
                try:
                    rows = rows_of(part, group)
                except ValueError as error:
                    raise ReftuneError(f"{adapter!r} cannot be carried over: {error}") from error
                tensors = {"W1": rows.W1 @ there.M, "b": rows.b + rows.W1 @ there.c, "W2": rows.W2 @ back.M.mT}
                made.append(Part("direft", {name: t.float() for name, t in tensors.items()}, rows.act_fn))
            new = Group(group.component, group.positions, group.tie, made[0].kind, {wanted[layer]: made})
            apart.setdefault(f"layer {layer}, group {i}", []).append(new)
    try:
        return combined(apart, dict.fromkeys(apart, 1.0), "sum")
    except ValueError as error:
        raise ReftuneError(f"{adapter!r} cannot be carried over: {error}") from error
