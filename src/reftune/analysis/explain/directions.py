"""In which direction an adapter edits: coordinates in its basis before and after, and the logit lens.

The logit lens (nostalgebraist 2020) reads a state by what the model does with its last one: the final norm, and the
head.

Must not know: what is switched off, pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ReftuneError
from ...interventions import LowRankIntervention
from ...training.loss import ResponseLoss
from .probe import Probe
from .switches import Text, first_of, size

# Vectors that the lens is shown at once.
AT_ONCE = 64

__all__ = ["Lens", "basis_rows", "edit_rows", "top_tokens"]


class Lens:
    """h [..., d] → logits [..., V]: final norm, head, and what the model does behind it.

    What lies between the last block and the head is watched in a call, and held against the model's own logits.

    Raises:
        ReftuneError: the model does something else there, so that a lens would show what it does not compute.
    """

    def __init__(self, probe: Probe, text: Text) -> None:
        self.probe = probe
        loss = ResponseLoss(probe.root)
        self.chain: list[nn.Module] = []
        last: list[Tensor] = []
        ids = torch.tensor([text.ids], device=probe.model.device)
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "prompt_length": torch.tensor([text.prompt_length], device=ids.device),
        }
        within = {module for block in probe.blocks for module in block.modules()}
        outside = [m for m in probe.stack.modules() if m not in within and m is not probe.head and m is not probe.stack]

        def follow(module: nn.Module, args: Any, out: Any) -> None:
            if last and args and isinstance(out, Tensor) and args[0] is last[-1]:
                self.chain.append(module)
                last.append(out)

        handles = [module.register_forward_hook(follow) for module in outside]
        handles.append(probe.blocks[-1].register_forward_hook(lambda _, args, out: last.append(first_of(out))))
        try:
            with torch.no_grad():
                logits = loss.prepare(probe.model, inputs).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        self.post = loss.post
        name = type(probe.root).__name__
        if self.post is None or not last:
            raise ReftuneError(f"what {name} does behind its head is not known, so there is no logit lens for it")
        found = self(last[0][0])
        tolerance = 1e-3 if logits.dtype in (torch.float32, torch.float64) else 5e-2
        if not torch.allclose(found, logits, rtol=tolerance, atol=tolerance * float(logits.abs().max())):
            raise ReftuneError(
                f"what {name} does between its last block and its head is not known, so there is no logit lens for it"
            )

    @torch.no_grad()
    def __call__(self, h: Tensor) -> Tensor:
        h = h.to(self.probe.head.weight.dtype)  # type: ignore[arg-type]
        for module in self.chain:
            h = module(h)
        assert self.post is not None
        return self.post(self.probe.head(h))


def top_tokens(probe: Probe, values: Tensor, count: int, *, name: str = "logit") -> list[dict[str, Any]]:
    """The tokens of the largest values [V], each with its value under `name`."""
    found = values.topk(min(count, len(values)))
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [{"token": str(probe.tokenizer.decode([i])), "id": i, name: value} for i, value in pairs]


def _on_top(probe: Probe, lens: Lens, vectors: Sequence[Tensor], count: int) -> list[dict[str, Any]]:
    """For each vector [d] the tokens that its lens has on top, and those of its opposite."""
    found = []
    for at in range(0, len(vectors), AT_ONCE):
        rows = torch.stack(list(vectors[at : at + AT_ONCE]))
        for up, down in zip(lens(rows), lens(-rows), strict=True):
            pair = (top_tokens(probe, values, count) for values in (up, down))
            found.append(dict(zip(("promotes", "suppresses"), pair, strict=True)))
    return found


def basis_rows(probe: Probe, lens: Lens, *, count: int = 5) -> list[dict[str, Any]]:
    """For every row of every basis: the tokens that the lens of the row has on top, and those of its opposite."""
    found, vectors = [], []
    for site in probe.sites:
        for number, phi in enumerate(probe.phis(site)):
            if not site.in_stream or not isinstance(phi, LowRankIntervention):
                continue
            with torch.no_grad():
                for row, vector in enumerate(phi.basis()):
                    found.append({"site": site.name, "phi": number, "row": row})
                    vectors.append(vector)
    return [{**line, **tokens} for line, tokens in zip(found, _on_top(probe, lens, vectors, count), strict=True)]


def edit_rows(probe: Probe, text: Text, lens: Lens | None, *, count: int = 5) -> list[dict[str, Any]]:
    """Every edit of a text: its norms, coordinates before and after, and what the lens of it has on top and below.

    Coordinates are basis · h; of Φ without a basis there are none.  Without a lens, or where an edit is not one of the
    residual stream, there are no tokens.
    """
    seen = probe.seen(text)
    labels, found = probe.labels(text), []
    shown: list[tuple[dict[str, Any], Tensor]] = []
    for site in probe.sites:
        before, delta = seen.before[site.name], seen.delta(site.name)
        for column, number in probe.edits(site, text):
            phi = probe.phis(site)[number]
            edit, state = size(delta[column]), size(before[column])
            line: dict[str, Any] = {
                "site": site.name,
                "layer": site.layer,
                "column": column,
                "position": labels[column],
                "token": text.pieces[column],
                "phi": number,
                "edit_norm": edit,
                "state_norm": state,
                "ratio": edit / state if state else float("nan"),
            }
            if isinstance(phi, LowRankIntervention):
                line["before"], line["after"] = _coordinates(phi, before[column], delta[column])
            # of nothing the lens shows what the norm's bias does
            if lens is not None and site.in_stream and edit:
                shown.append((line, delta[column]))
            found.append(line)
    if lens is not None:
        for (line, _), tokens in zip(shown, _on_top(probe, lens, [edit for _, edit in shown], count), strict=True):
            line.update(tokens)
    return found


def _coordinates(phi: LowRankIntervention, h: Tensor, delta: Tensor) -> tuple[list[float], list[float]]:
    with torch.no_grad():
        basis = phi.basis().to(h.device)
        wide = torch.promote_types(basis.dtype, h.dtype)
        rows = basis.to(wide)
        return (rows @ h.to(wide)).tolist(), (rows @ (h + delta).to(wide)).tolist()
