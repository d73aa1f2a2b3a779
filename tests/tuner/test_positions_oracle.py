"""Forward calls of every kind edit the tokens that the oracle edits: padding, labels, lengths, loops, chunks, packs."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

from .oracle import IGNORED, Row, Spec, adapted_model, arguments, mask_of, oracle_logits, pad, rows_of, specs

KINDS = ("llama", "gemma3", "gpt2", "qwen3", "opt")
# float64 throughout, but for norms and softmax that some models compute in float32: a few roundings of 1e-16 in
# their input move the result by less than 1e-9.
TOLERANCE = 1e-9


def check(kind: str, spec: Spec, rows: list[Row], logits: Tensor, mask: Tensor) -> None:
    """Logits of the tokens of every row against the oracle's."""
    for i, row in enumerate(rows):
        expected = oracle_logits(kind, row.tokens, spec.units(len(row.prompt), len(row.tokens)))
        found = logits[i][mask[i].bool()]
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < TOLERANCE


fast = settings(max_examples=220, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
kinds, sides = st.sampled_from(KINDS), st.sampled_from(("left", "right"))


@fast
@given(kind=kinds, spec=specs, rows=rows_of(), side=sides)
def test_labels(kind: str, spec: Spec, rows: list[Row], side: str) -> None:
    tokens = [row.tokens for row in rows]
    mask = mask_of(tokens, side)
    labels = pad([(IGNORED,) * len(row.prompt) + row.response for row in rows], side, IGNORED)
    with torch.no_grad():
        out = adapted_model(kind, spec)(**arguments(pad(tokens, side), mask), labels=labels, use_cache=False)
    check(kind, spec, rows, out.logits, mask)


@fast
@given(kind=kinds, spec=specs, rows=rows_of(), side=sides)
def test_prompt_length(kind: str, spec: Spec, rows: list[Row], side: str) -> None:
    tokens = [row.tokens for row in rows]
    mask = mask_of(tokens, side)
    lengths = torch.tensor([len(row.prompt) for row in rows])
    with torch.no_grad():
        out = adapted_model(kind, spec)(**arguments(pad(tokens, side), mask), prompt_length=lengths)
    check(kind, spec, rows, out.logits, mask)


@fast
@given(kind=kinds, spec=specs, rows=rows_of(), side=sides)
def test_prompts_only(kind: str, spec: Spec, rows: list[Row], side: str) -> None:
    rows = [Row(row.prompt, ()) for row in rows]
    tokens = [row.tokens for row in rows]
    mask = mask_of(tokens, side)
    with torch.no_grad():
        out = adapted_model(kind, spec)(**arguments(pad(tokens, side), mask))
    check(kind, spec, rows, out.logits, mask)


@fast
@given(kind=kinds, spec=specs, rows=rows_of(min_response=1, equal=True), side=sides, known=st.booleans())
def test_decode_loop_of_the_user(kind: str, spec: Spec, rows: list[Row], side: str, known: bool) -> None:
    """Prefill of the prompts, then the response token by token; `known`: with `prompt_length` in every call."""
    if kind == "gemma3":
        # its sliding window counts the padding in between, with or without an adapter
        side = "left"
    prompts = [row.prompt for row in rows]
    after = torch.tensor([row.response for row in rows])
    ids = torch.cat([pad(prompts, side), after], 1)
    mask = torch.cat([mask_of(prompts, side), torch.ones_like(after)], 1)
    width = ids.shape[1] - after.shape[1]
    more = {"prompt_length": torch.tensor([len(p) for p in prompts])} if known else {}
    _check_windows(kind, spec, rows, ids, mask, [width] + [1] * after.shape[1], more)


@fast
@given(kind=kinds, spec=specs, rows=rows_of(), side=sides, data=st.data())
def test_chunked_prefill(kind: str, spec: Spec, rows: list[Row], side: str, data: st.DataObject) -> None:
    """Windows of any sizes, the lengths of the prompts being told to each call."""
    tokens = [row.tokens for row in rows]
    ids, mask = pad(tokens, side), mask_of(tokens, side)
    widths: list[int] = []
    while sum(widths) < ids.shape[1]:
        widths.append(data.draw(st.integers(1, ids.shape[1] - sum(widths))))
    more = {"prompt_length": torch.tensor([len(row.prompt) for row in rows])}
    _check_windows(kind, spec, rows, ids, mask, widths, more)


def _check_windows(
    kind: str, spec: Spec, rows: list[Row], ids: Tensor, mask: Tensor, widths: list[int], more: dict[str, Tensor]
) -> None:
    model = adapted_model(kind, spec)
    cache = DynamicCache(config=model.config)
    logits, past = [], 0
    for width in widths:
        given_now = arguments(ids[:, past : past + width], mask, past)
        with torch.no_grad():
            logits.append(model(**given_now, **more, past_key_values=cache, use_cache=True).logits)
        past += width
    check(kind, spec, rows, torch.cat(logits, 1), mask)


@fast
@given(
    kind=st.sampled_from(("llama", "qwen3", "gpt2", "gemma3")),
    spec=specs,
    packs=st.lists(rows_of(max_rows=4, min_response=1), min_size=1, max_size=1),
    by=st.sampled_from(("labels", "lengths", "nothing")),
)
def test_packed_rows(kind: str, spec: Spec, packs: list[list[Row]], by: str) -> None:
    """Padding-free: all sequences in one row, position ids that restart, no mask."""
    (rows,) = packs
    if by == "nothing":
        rows = [Row(row.prompt, ()) for row in rows]
    ids = torch.tensor([[t for row in rows for t in row.tokens]])
    position_ids = torch.tensor([[i for row in rows for i in range(len(row.tokens))]])
    more = {}
    if by == "labels":
        more["labels"] = torch.tensor([[t for row in rows for t in (IGNORED,) * len(row.prompt) + row.response]])
    if by == "lengths":
        more["prompt_length"] = torch.tensor([len(row.prompt) for row in rows])
    with torch.no_grad():
        model = adapted_model(kind, spec)
        logits = model(input_ids=ids, position_ids=position_ids, use_cache=False, **more).logits[0]
    parts = logits.split([len(row.tokens) for row in rows])
    for row, found in zip(rows, parts, strict=True):
        expected = oracle_logits(kind, row.tokens, spec.units(len(row.prompt), len(row.tokens)))
        assert (found - expected).abs().max() < TOLERANCE


@settings(fast, max_examples=60)
@given(spec=specs.filter(lambda spec: spec.scope != "response"), rows=rows_of())
def test_encoder(spec: Spec, rows: list[Row]) -> None:
    """A classifier has no response: every token is prompt.  It reads column 0, so padding is at the right."""
    tokens = [row.tokens for row in rows]
    with torch.no_grad():
        out = adapted_model("bert", spec)(**arguments(pad(tokens, "right"), mask_of(tokens, "right")))
    for i, row in enumerate(tokens):
        expected = oracle_logits("bert", row, spec.units(len(row), len(row)))
        assert (out.logits[i] - expected).abs().max() < TOLERANCE
