"""Two adapters of one base model on the same texts: what they write into, what they change, what they answer.

The edit of an adapter behind a block is the difference that it makes to the base's residual stream there, whatever
its method: edits of earlier layers, and what blocks made of them, are in it.

Must not know: the command line, pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from ...errors import ReftuneError
from ...interop.merge import principal_angles
from ...training.loss import head_as
from ...tuner import call_state, find_root, find_stacks
from .effect import kl
from .spaces import written_spaces
from .switches import Text, first_of, wide
from .texts import check_causal

__all__ = ["Trace", "cka", "compared", "layer_cells", "next_facts", "same_answers", "traced"]


@dataclass
class Trace:
    """What an adapter does to some texts, beside its base."""

    texts: Sequence[Text]
    method: str
    """REFT, LORA …"""
    edits: list[Tensor]
    """By layer [N, d]: behind the block, the stream with the adapter less that without, at all tokens of the texts."""
    streams: list[Tensor]
    """By layer [N]: the norm of the stream without it."""
    logits: list[Tensor]
    """By text [A, V]: what precedes each token of its answer, with the adapter."""
    base_logits: list[Tensor]
    spaces: dict[int, Tensor]
    """Layer → [d, k]: an orthonormal basis of what the adapter itself writes into the stream in this block."""
    notes: list[str] = field(default_factory=list)
    """What could not be told, and why."""


@torch.no_grad()
def traced(model: PeftModel, texts: Sequence[Text], *, progress: Callable[[int], None] | None = None) -> Trace:
    """Call a model with its active adapter and without it on each text.

    Raises:
        ReftuneError: it is no causal language model, or the adapter puts tokens of its own before the text.
    """
    check_causal(model)
    config: Any = model.active_peft_config
    method = str(getattr(config.peft_type, "value", config.peft_type))
    if config.is_prompt_learning:
        raise ReftuneError(
            f"the adapter is of the method {method}, which puts tokens of its own before a text instead of editing "
            "what is there, so it has no edits to compare"
        )
    model.eval()
    found = Trace(texts, method, [], [], [], [], {})
    if config.modules_to_save:
        found.notes.append(f"also trains the modules {', '.join(config.modules_to_save)}, which is in all its edits")
    states: list[tuple[list[Tensor], list[Tensor]]] = []
    for done, text in enumerate(texts, start=1):
        with_it, logits = _called(model, text)
        with model.disable_adapter():
            without, base_logits = _called(model, text)
        states.append(([a - b for a, b in zip(with_it, without, strict=True)], [b.norm(dim=-1) for b in without]))
        found.logits.append(logits)
        found.base_logits.append(base_logits)
        if progress is not None:
            progress(done)
    found.edits = [torch.cat(layers) for layers in zip(*(edits for edits, _ in states), strict=True)]
    found.streams = [torch.cat(layers) for layers in zip(*(norms for _, norms in states), strict=True)]
    found.spaces, notes = written_spaces(model, texts[0])
    found.notes += notes
    return found


def _called(model: PeftModel, text: Text) -> tuple[list[Tensor], Tensor]:
    """[T, d] behind each block, and logits [A, V] before the tokens of the answer; in float32 at least, on the CPU."""
    root: Any = find_root(model)
    blocks = [root.get_submodule(path) for path in find_stacks(root)[0].blocks]
    states: list[Tensor] = []
    # behind the hooks that edit
    handles = [
        block.register_forward_hook(lambda _, args, out: states.append(wide(first_of(out)[0]).cpu()))
        for block in blocks
    ]
    ids = torch.tensor([text.ids], device=model.device)
    more: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    if call_state(root) is not None:
        more["prompt_length"] = torch.tensor([text.prompt_length], device=model.device)
        if text.spans is not None:
            more["spans"] = torch.tensor([text.spans], device=model.device)
    kept = len(text.answer) + 1
    called: Any = model
    try:
        with head_as(root.get_output_embeddings(), lambda of, hidden: of(hidden[:, -kept:])):
            logits = called(**more).logits
    finally:
        for handle in handles:
            handle.remove()
    return states, wide(logits[0, -kept:-1]).cpu()


# --- beside each other ------------------------------------------------------------------------------------------------


def cka(one: Tensor, other: Tensor) -> float | None:
    """Linear CKA (Kornblith et al. 2019) of two sets of N vectors [N, d]: 1 if they differ by a rotation and a factor.

    None where one of them does not vary.
    """
    X, Y = (x.double() - x.double().mean(0) for x in (one, other))
    K, L = X @ X.mT, Y @ Y.mT
    norms = float(K.norm() * L.norm())
    return float((K * L).sum()) / norms if norms > 0 else None


def compared(one: Trace, other: Trace) -> dict[str, Any]:
    """Rows `layers`, and `next`: how far the two agree on the tokens of the answers.

    Of a layer: `size` and `other_size`, the mean of ‖edit‖ / ‖stream‖ over the tokens that either changes; `cosine`,
    the mean over those that both change; `cka` over those that either changes; `angles`, degrees between what they
    write into, the largest first.  None where there is nothing of the kind.

    Raises:
        ReftuneError: they are not of the same texts, or of models of other shapes.
    """
    if [text.ids for text in one.texts] != [text.ids for text in other.texts]:
        raise ReftuneError("the adapters were traced on different texts; trace both on the same")
    shapes = [(len(trace.edits), trace.edits[0].shape[-1]) for trace in (one, other)]
    if shapes[0] != shapes[1]:
        raise ReftuneError(f"the adapters are of models of other shapes: (layers, width) {shapes[0]} and {shapes[1]}")
    return {"layers": [_of_layer(one, other, layer) for layer in range(len(one.edits))], "next": _next(one, other)}


def _of_layer(one: Trace, other: Trace, layer: int) -> dict[str, Any]:
    X, Y, norms = one.edits[layer], other.edits[layer], one.streams[layer]
    sizes = X.norm(dim=-1), Y.norm(dim=-1)
    either, both = (sizes[0] > 0) | (sizes[1] > 0), (sizes[0] > 0) & (sizes[1] > 0)
    row: dict[str, Any] = {"site": f"resid_post.{layer}", "layer": layer, "tokens": int(either.sum())}
    for name, size in zip(("size", "other_size"), sizes, strict=True):
        row[name] = float((size / norms)[either].mean()) if either.any() else None
    row["cosine"] = float(torch.cosine_similarity(X[both], Y[both]).mean()) if both.any() else None
    row["cka"] = cka(X[either], Y[either]) if int(both.sum()) > 1 else None
    spaces = one.spaces.get(layer), other.spaces.get(layer)
    row["angles"] = None if spaces[0] is None or spaces[1] is None else principal_angles(*spaces)  # type: ignore[arg-type]
    return row


def _next(one: Trace, other: Trace) -> dict[str, Any]:
    """Over the tokens of the answers: log-likelihoods, mean KL in nats, the share where the likeliest is the same."""
    if not any(text.answer for text in one.texts):
        return {"tokens": 0}
    found: dict[str, Any] = {"tokens": sum(len(text.answer) for text in one.texts)}
    sets = {"base": one.base_logits, "adapter": one.logits, "other": other.logits}
    for name, logits in sets.items():
        found[name] = sum(
            float(of_text.log_softmax(-1).gather(-1, torch.tensor(text.answer)[:, None]).sum())
            for of_text, text in zip(logits, one.texts, strict=True)
            if text.answer
        )
    flat = {name: torch.cat(logits) for name, logits in sets.items()}
    for name, p, q in (("kl", "adapter", "other"), ("kl_base", "adapter", "base"), ("kl_other_base", "other", "base")):
        pairs = zip(flat[p], flat[q], strict=True)
        found[name] = sum(kl(a, b) for a, b in pairs) / found["tokens"]
    for name, q in (("same_top", "other"), ("same_top_base", "base")):
        found[name] = float((flat["adapter"].argmax(-1) == flat[q].argmax(-1)).double().mean())
    return found


def same_answers(one: Sequence[Text], other: Sequence[Text]) -> dict[str, Any]:
    """Of the answers to the same prompts how many are the same, token by token, and where the others part."""
    rows = []
    for mine, yours in zip(one, other, strict=True):
        a, b = mine.answer, yours.answer
        common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        rows.append(
            {
                "prompt": "".join(mine.pieces[: mine.prompt_length]),
                "answer": mine.answer_text,
                "other": yours.answer_text,
                "same": a == b,
                "common": common,
            }
        )
    return {"prompts": len(rows), "same": sum(row["same"] for row in rows), "rows": rows}


# --- in words ---------------------------------------------------------------------------------------------------------


def next_facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How far the two agree on the tokens of the first one's answers, in words."""
    of = found["next"]
    if not of["tokens"]:
        return [("tokens", "the answers have none")]
    return [
        ("tokens", f"{of['tokens']}, of the answers of {found['adapter']}"),
        (
            "log-likelihood",
            f"base {of['base']:.2f}, {found['adapter']} {of['adapter']:.2f}, {found['against']} {of['other']:.2f} nats",
        ),
        ("same likeliest token", f"{100 * of['same_top']:.1f} %; base and first {100 * of['same_top_base']:.1f} %"),
        (
            "mean KL, nats",
            f"first ‖ second {of['kl']:.3f}, first ‖ base {of['kl_base']:.3f}, second ‖ base {of['kl_other_base']:.3f}",
        ),
    ]


def layer_cells(row: Mapping[str, Any], none: str) -> list[str]:
    """Sizes in %, cosine, CKA, and the smallest and largest angle of a layer."""
    percent = [none if row[key] is None else f"{100 * row[key]:.1f}" for key in ("size", "other_size")]
    alike = [none if row[key] is None else f"{row[key]:.3f}" for key in ("cosine", "cka")]
    angles = row["angles"]
    return [*percent, *alike, f"{angles[-1]:.1f} – {angles[0]:.1f}" if angles else none]
