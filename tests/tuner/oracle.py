"""What positions mean, said again in plain Python: every row alone, without padding, cache or batch.

The edit is DiReFT with weights drawn here, applied by a forward hook of this file, so that nothing of reftune that is
tested takes part in what it is tested against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import peft
import torch
from hypothesis import strategies as st
from torch import Tensor

import reftune  # noqa: F401 — registers the method
from reftune import ReftConfig
from tests.models import HIDDEN, tiny_model

IGNORED = -100
LAYERS = 2
RANK = 2


@dataclass(frozen=True)
class Spec:
    """Positions of one adapter: a scope, or the first p and the last s prompt tokens."""

    scope: str
    p: int = 0
    s: int = 0
    tie: str = "all"

    @property
    def text(self) -> str:
        if self.scope != "span":
            return self.scope
        return "+".join([f"f{self.p}"] * bool(self.p) + [f"l{self.s}"] * bool(self.s))

    def units(self, n: int, total: int) -> dict[int, int]:
        """Token → number of the Φ that edits it, in a row of n prompt tokens and `total` tokens in all."""
        if self.scope == "prompt":
            return dict.fromkeys(range(n), 0)
        if self.scope == "all":
            return dict.fromkeys(range(total), 0)
        if self.scope == "response":
            return dict.fromkeys(range(n, total), 0)
        p, s = self.p, self.s
        if n < p + s:
            p, s = min(p, n // 2), min(s, (n + 1) // 2)
        edited = {}
        for i in range(p):
            edited[i] = {"all": 0, "group": 0, "none": i}[self.tie]
        for k in range(1, s + 1):
            # the k-th token from the end is the (s_asked - k)-th slot of the suffix
            edited[n - k] = {"all": 0, "group": int(self.p > 0), "none": self.p + self.s - k}[self.tie]
        return edited


def weights(layer: int, unit: int) -> dict[str, Tensor]:
    """The parameters of the Φ number `unit` of a layer: an edit about as large as the hidden state."""
    generator = torch.Generator().manual_seed(100 * layer + unit)
    shapes = {"W1": (RANK, HIDDEN), "W2": (RANK, HIDDEN), "b": (RANK,)}
    return {k: torch.randn(v, generator=generator, dtype=torch.float64) / 3 for k, v in shapes.items()}


@cache
def base_model(kind: str) -> Any:
    """The model that no adapter ever touches."""
    return tiny_model(kind, layers=LAYERS, dtype=torch.float64)


@cache
def adapted_model(kind: str, spec: Spec) -> Any:
    """The same model with a reftune adapter that has the weights above."""
    config = ReftConfig(
        r=RANK,
        positions=spec.text,
        tie=spec.tie,  # type: ignore[arg-type]
        intervention="direft",
        init="random",
        task_type="CAUSAL_LM" if kind != "bert" else None,
    )
    model = peft.get_peft_model(
        tiny_model(kind, layers=LAYERS, dtype=torch.float64), config, autocast_adapter_dtype=False
    )
    for name, parameter in model.named_parameters():
        if "intervention_" in name:
            layer = next(int(part) for part in name.split(".") if part.isdigit())
            unit = int(name.split("intervention_")[1].split(".")[0])
            parameter.data.copy_(weights(layer, unit)[name.rsplit(".", 1)[1]])
    return model.eval()


def adapted(*, blocks_of: int = 2, **fields: Any) -> Any:
    """A tiny model of `blocks_of` blocks in float64 with a DiReFT adapter."""
    fields = {"r": 2, "positions": "f1+l2", "init": "random", "intervention": "direft", **fields}
    torch.manual_seed(0)
    model = tiny_model("llama", layers=blocks_of, dtype=torch.float64)
    model = peft.get_peft_model(model, ReftConfig(task_type="CAUSAL_LM", **fields), autocast_adapter_dtype=False)
    return model.eval()


def blocks(model: Any) -> Any:
    """The list of blocks of a tiny model."""
    for path in ("model.layers", "transformer.h", "gpt_neox.layers", "model.decoder.layers", "bert.encoder.layer"):
        try:
            return model.get_submodule(path)
        except AttributeError:
            continue
    raise AssertionError(type(model))


def oracle_logits(kind: str, tokens: Sequence[int], units: dict[int, int]) -> Tensor:
    """Logits of one row, `units` of whose tokens are edited."""
    model = base_model(kind)
    handles = [block.register_forward_hook(partial(_edit, layer, units)) for layer, block in enumerate(blocks(model))]
    try:
        with torch.no_grad():
            extra = {} if kind == "bert" else {"use_cache": False}
            return model(input_ids=torch.tensor([list(tokens)]), **extra).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def _edit(layer: int, units: dict[int, int], block: Any, args: Any, output: Any) -> Any:
    h = output[0] if isinstance(output, tuple) else output
    edited = h.clone()
    for column, unit in units.items():
        w = weights_once(layer, unit)
        old = h[0, column]
        edited[0, column] = old + w["W2"].T @ (w["W1"] @ old + w["b"])
    return (edited, *output[1:]) if isinstance(output, tuple) else edited


weights_once = cache(weights)


# --- batches of rows --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Tokens of one row: the prompt and what follows it."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.prompt + self.response


spans = st.builds(
    Spec, st.just("span"), st.integers(0, 4), st.integers(0, 4), st.sampled_from(("all", "group", "none"))
).filter(lambda spec: spec.p + spec.s > 0)
specs = st.one_of(spans, spans, st.builds(Spec, st.sampled_from(("prompt", "all", "response"))))


@st.composite
def rows_of(draw: Any, *, max_rows: int = 3, min_response: int = 0, equal: bool = False) -> list[Row]:
    """Some rows; with `equal`, all responses have one length."""
    count = draw(st.integers(1, max_rows))
    lengths = [draw(st.integers(1, 9)) for _ in range(count)]
    first = draw(st.integers(min_response, 4))
    after = [first if equal else draw(st.integers(min_response, 4)) for _ in range(count)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    text = [torch.randint(3, 97, (n + m,), generator=generator).tolist() for n, m in zip(lengths, after, strict=True)]
    return [Row(tuple(t[:n]), tuple(t[n:])) for t, n in zip(text, lengths, strict=True)]


def pad(rows: list[tuple[int, ...]], side: str, filler: int = 0) -> Tensor:
    """[B, T] with the filler at one side."""
    total = max(len(row) for row in rows)
    fillers = [(filler,) * (total - len(row)) for row in rows]
    return torch.tensor([f + row if side == "left" else row + f for row, f in zip(rows, fillers, strict=True)])


def mask_of(rows: list[tuple[int, ...]], side: str) -> Tensor:
    return pad([(1,) * len(row) for row in rows], side)


def arguments(ids: Tensor, mask: Tensor, past: int = 0) -> dict[str, Tensor]:
    """What a careful caller passes: a mask of all columns, and position ids that do not count padding."""
    width = ids.shape[1]
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)[:, past : past + width]
    return {"input_ids": ids, "attention_mask": mask[:, : past + width], "position_ids": position_ids}
