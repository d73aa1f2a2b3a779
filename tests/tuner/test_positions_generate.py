"""`generate`, in each of its modes, edits what the oracle edits: its logits are the oracle's at every step."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

from reftune import PositionError
from tests.models import tiny_model

from .oracle import Row, Spec, adapted_model, mask_of, oracle_logits, pad, rows_of, spans, specs

KINDS = ("llama", "gemma3", "gpt2", "qwen3")
# generate hands out its logits, which are of the order of one, in float32.
TOLERANCE = 1e-6
NEW = 3

kinds = st.sampled_from(KINDS)
prompts_of = rows_of(max_rows=3).map(lambda rows: [row.prompt for row in rows])
one_prompt = rows_of(max_rows=1).map(lambda rows: [row.prompt for row in rows])


def fast(examples: int) -> settings:
    return settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def run(kind: str, spec: Spec, prompts: list[tuple[int, ...]], **more: Any) -> Any:
    """`generate` of a left-padded batch, with the raw logits of every step."""
    asked = {"input_ids": pad(prompts, "left"), "attention_mask": mask_of(prompts, "left"), "do_sample": False}
    asked |= {"max_new_tokens": NEW, "return_dict_in_generate": True, "output_logits": True, **more}
    return adapted_model(kind, spec).generate(**{k: v for k, v in asked.items() if v is not None})


def check(
    kind: str, spec: Spec, prompts: list[tuple[int, ...]], out: Any, *, times: int = 1, greedy: bool = True
) -> None:
    """Each row's logits of each step against one pass of the oracle over prompt and answer."""
    answers = out.sequences[:, -NEW:]
    logits = torch.stack(out.logits, 1)
    for i, answer in enumerate(answers.tolist()):
        prompt = prompts[i // times]
        expected = expected_logits(kind, spec, prompt, answer)
        assert (logits[i] - expected).abs().max() < TOLERANCE
        if greedy:
            assert answer == expected.argmax(-1).tolist()


def expected_logits(kind: str, spec: Spec, prompt: tuple[int, ...], answer: list[int]) -> Tensor:
    """The oracle's logits of the columns that choose the tokens of the answer."""
    tokens = [*prompt, *answer]
    return oracle_logits(kind, tokens, spec.units(len(prompt), len(tokens)))[len(prompt) - 1 : -1]


@fast(80)
@given(kind=st.sampled_from((*KINDS, "opt")), spec=specs, prompts=prompts_of)
def test_greedy(kind: str, spec: Spec, prompts: list[tuple[int, ...]]) -> None:
    check(kind, spec, prompts, run(kind, spec, prompts))


@fast(40)
@given(kind=kinds, spec=specs, prompts=prompts_of)
def test_no_cache(kind: str, spec: Spec, prompts: list[tuple[int, ...]]) -> None:
    check(kind, spec, prompts, run(kind, spec, prompts, use_cache=False))


@fast(40)
@given(kind=kinds, spec=specs, prompts=prompts_of)
def test_static_cache(kind: str, spec: Spec, prompts: list[tuple[int, ...]]) -> None:
    check(kind, spec, prompts, run(kind, spec, prompts, cache_implementation="static", disable_compile=True))


@fast(60)
@given(kind=kinds, spec=specs, prompts=prompts_of, size=st.integers(1, 5))
def test_chunked_prefill(kind: str, spec: Spec, prompts: list[tuple[int, ...]], size: int) -> None:
    check(kind, spec, prompts, run(kind, spec, prompts, prefill_chunk_size=size))


@fast(40)
@given(kind=kinds, spec=specs, prompts=prompts_of, returned=st.integers(1, 3), seed=st.integers(0, 99))
def test_samples(kind: str, spec: Spec, prompts: list[tuple[int, ...]], returned: int, seed: int) -> None:
    torch.manual_seed(seed)
    out = run(kind, spec, prompts, do_sample=True, num_return_sequences=returned)
    check(kind, spec, prompts, out, times=returned, greedy=False)


@fast(40)
@given(kind=kinds, spec=specs, prompts=prompts_of, beams=st.integers(2, 3), data=st.data())
def test_beams(kind: str, spec: Spec, prompts: list[tuple[int, ...]], beams: int, data: st.DataObject) -> None:
    returned = data.draw(st.integers(1, beams))
    out = run(
        kind, spec, prompts, num_beams=beams, num_return_sequences=returned, length_penalty=0.0, output_scores=True
    )
    for i, answer in enumerate(out.sequences[:, -NEW:].tolist()):
        chances = expected_logits(kind, spec, prompts[i // returned], answer).float().log_softmax(-1)
        score = chances.gather(1, torch.tensor(answer)[:, None]).sum()
        # scores of beams are kept in float32
        assert abs(score - out.sequences_scores[i]) < 1e-4


@fast(40)
@given(kind=kinds, spec=specs, prompts=prompts_of, ids_too=st.booleans())
def test_inputs_embeds(kind: str, spec: Spec, prompts: list[tuple[int, ...]], ids_too: bool) -> None:
    model = adapted_model(kind, spec)
    ids = pad(prompts, "left")
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids)
    check(kind, spec, prompts, run(kind, spec, prompts, inputs_embeds=embeds, input_ids=ids if ids_too else None))


@fast(40)
@given(kind=kinds, spec=specs, prompts=prompts_of)
def test_mask_inferred_from_padding(kind: str, spec: Spec, prompts: list[tuple[int, ...]]) -> None:
    check(kind, spec, prompts, run(kind, spec, prompts, attention_mask=None))


@fast(40)
@given(kind=kinds, spec=specs, prompts=prompts_of)
def test_no_mask_and_padding_ends_sequences(kind: str, spec: Spec, prompts: list[tuple[int, ...]]) -> None:
    """Where the padding token also ends sequences, transformers infers no mask: all columns are prompt."""
    prompts = [(0,) * (max(map(len, prompts)) - len(prompt)) + prompt for prompt in prompts]
    out = run(kind, spec, prompts, attention_mask=None, eos_token_id=0, pad_token_id=0, min_new_tokens=NEW)
    check(kind, spec, prompts, out, greedy=False)


@fast(40)
@given(kind=kinds, spec=specs, rows=rows_of(equal=True))
def test_prompt_length(kind: str, spec: Spec, rows: list[Row]) -> None:
    """Of the tokens given, only the first are the prompt."""
    out = run(
        kind,
        spec,
        [row.tokens for row in rows],
        prompt_length=torch.tensor([len(row.prompt) for row in rows]),
    )
    logits = torch.stack(out.logits, 1)
    for i, row in enumerate(rows):
        tokens = [*row.tokens, *out.sequences[i, -NEW:].tolist()]
        expected = oracle_logits(kind, tokens, spec.units(len(row.prompt), len(tokens)))
        assert (logits[i] - expected[len(row.tokens) - 1 : -1]).abs().max() < TOLERANCE


@cache
def assistant(kind: str) -> Any:
    """Another model of one layer; sure of itself, so that it drafts long."""
    model = tiny_model(kind, layers=1, seed=1, dtype=torch.float64)
    model.generation_config.num_assistant_tokens = 3
    model.generation_config.assistant_confidence_threshold = 0.0
    return model


@fast(40)
@given(kind=st.sampled_from(("llama", "qwen3", "gpt2")), spec=specs, prompts=one_prompt)
def test_assistant(kind: str, spec: Spec, prompts: list[tuple[int, ...]]) -> None:
    check(kind, spec, prompts, run(kind, spec, prompts, assistant_model=assistant(kind)))


@fast(20)
@given(spec=specs, prompts=one_prompt)
def test_own_first_layers_as_assistant(spec: Spec, prompts: list[tuple[int, ...]]) -> None:
    check("llama", spec, prompts, run("llama", spec, prompts, assistant_early_exit=1))


@fast(40)
@given(kind=st.sampled_from(("llama", "qwen3", "gpt2")), spec=specs, prompts=one_prompt, tokens=st.integers(1, 4))
def test_prompt_lookup(kind: str, spec: Spec, prompts: list[tuple[int, ...]], tokens: int) -> None:
    # a text that repeats itself, so that drafts are found
    prompts = [(prompts[0] * 3)[: len(prompts[0]) + 4]]
    check(kind, spec, prompts, run(kind, spec, prompts, prompt_lookup_num_tokens=tokens))


@fast(60)
@given(kind=kinds, spec=st.one_of(spans, specs), prompts=prompts_of, seed=st.integers(0, 99), mask_too=st.booleans())
def test_continued(kind: str, spec: Spec, prompts: list[tuple[int, ...]], seed: int, mask_too: bool) -> None:
    """A second turn on the cache of the first is as one without a cache, or refused."""
    if not mask_too:
        prompts = [prompt[: min(map(len, prompts))] for prompt in prompts]
    cache = DynamicCache(config=adapted_model(kind, spec).config)
    first = run(kind, spec, prompts, past_key_values=cache)
    turn = torch.randint(3, 97, (len(prompts), 3), generator=torch.Generator().manual_seed(seed))
    ids = torch.cat([first.sequences, turn], 1)
    mask = torch.cat([mask_of(prompts, "left"), torch.ones(len(prompts), NEW + 3, dtype=torch.long)], 1)
    again: dict[str, Any] = {"input_ids": ids, "attention_mask": mask if mask_too else None, "past_key_values": cache}
    slots = Spec(spec.scope, spec.p, spec.s, "none")
    for prompt in prompts:
        cached = len(prompt) + NEW - 1
        then, now = slots.units(len(prompt), cached), slots.units(cached + 4, cached)
        if then == {token: slot for token, slot in now.items() if token < cached}:
            continue
        # what lies in the cache would have to be edited otherwise
        with pytest.raises(PositionError, match="the cache holds"):
            run(kind, spec, prompts, **again)
        return
    out = run(kind, spec, prompts, **again)
    logits = torch.stack(out.logits, 1)
    for i, prompt in enumerate(prompts):
        known = len(prompt) + NEW + 3
        tokens = ids[i][mask[i].bool()].tolist() + out.sequences[i, -NEW:].tolist()
        expected = oracle_logits(kind, tokens, spec.units(known, len(tokens)))[known - 1 : -1]
        assert (logits[i] - expected).abs().max() < TOLERANCE
