"""Positions that are put together of terms: calls of every kind edit what the oracle edits, or say why they cannot."""

from __future__ import annotations

import re
from typing import Any

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

from reftune import PositionError, ReftConfig
from tests.models import tiny_model
from tests.term_oracle import Term, Terms, terms_of

from .oracle import (
    IGNORED,
    Row,
    adapted,
    adapted_model,
    arguments,
    mask_of,
    oracle_logits,
    pad,
    rows_of,
)

KINDS = ("llama", "gpt2")
TOLERANCE = 1e-9
# generate hands out its logits in float32
ROUNDED = 1e-6
NEW = 3
RIGHT = settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

kinds, sides = st.sampled_from(KINDS), st.sampled_from(("left", "right"))
# few ids, so that they are met
rows_with_ids = rows_of(min_response=1).map(
    lambda rows: [Row(*(tuple(t % 9 + 3 for t in part) for part in (row.prompt, row.response))) for row in rows]
)


def expected(kind: str, terms: Terms, n: int, tokens: Any) -> Tensor:
    return oracle_logits(kind, tokens, terms.units(n, tokens))


def check(kind: str, terms: Terms, rows: list[Row], logits: Tensor, mask: Tensor) -> None:
    for i, row in enumerate(rows):
        assert (logits[i][mask[i].bool()] - expected(kind, terms, len(row.prompt), row.tokens)).abs().max() < TOLERANCE


@RIGHT
@given(kind=kinds, terms=terms_of(), rows=rows_with_ids, side=sides, by=st.sampled_from(("labels", "lengths")))
def test_padded_rows(kind: str, terms: Terms, rows: list[Row], side: str, by: str) -> None:
    tokens = [row.tokens for row in rows]
    mask = mask_of(tokens, side)
    more: dict[str, Any] = {"prompt_length": torch.tensor([len(row.prompt) for row in rows])}
    if by == "labels":
        more = {"labels": pad([(IGNORED,) * len(row.prompt) + row.response for row in rows], side, IGNORED)}
    with torch.no_grad():
        out = adapted_model(kind, terms)(**arguments(pad(tokens, side), mask), use_cache=False, **more)
    check(kind, terms, rows, out.logits, mask)


@RIGHT
@given(kind=kinds, terms=terms_of(), rows=rows_with_ids, data=st.data())
def test_packed_rows(kind: str, terms: Terms, rows: list[Row], data: Any) -> None:
    ids = torch.tensor([[t for row in rows for t in row.tokens]])
    position_ids = torch.tensor([[i for row in rows for i in range(len(row.tokens))]])
    lengths = torch.tensor([len(row.prompt) for row in rows])
    with torch.no_grad():
        model: Any = adapted_model(kind, terms)
        out = model(input_ids=ids, position_ids=position_ids, prompt_length=lengths, use_cache=False)
    for row, found in zip(rows, out.logits[0].split([len(row.tokens) for row in rows]), strict=True):
        assert (found - expected(kind, terms, len(row.prompt), row.tokens)).abs().max() < TOLERANCE


@RIGHT
@given(kind=kinds, terms=terms_of(), rows=rows_with_ids, side=sides, data=st.data())
def test_windows_of_any_size(kind: str, terms: Terms, rows: list[Row], side: str, data: Any) -> None:
    tokens = [row.tokens for row in rows]
    ids, mask = pad(tokens, side), mask_of(tokens, side)
    model: Any = adapted_model(kind, terms)
    cache = DynamicCache(config=model.config)
    lengths = torch.tensor([len(row.prompt) for row in rows])
    logits, past = [], 0
    while past < ids.shape[1]:
        width = data.draw(st.integers(1, ids.shape[1] - past))
        now = arguments(ids[:, past : past + width], mask, past)
        try:
            with torch.no_grad():
                logits.append(model(**now, prompt_length=lengths, past_key_values=cache, use_cache=True).logits)
        except PositionError as error:
            # a turn that a later window ends
            assert terms.borders and re.search("turns are counted in whole prompts|the cache holds", str(error))
            return
        past += width
    check(kind, terms, rows, torch.cat(logits, 1), mask)


@RIGHT
@given(kind=kinds, terms=terms_of(), rows=rows_with_ids, side=sides)
def test_loop_of_the_user(kind: str, terms: Terms, rows: list[Row], side: str) -> None:
    """Prefill of the prompts and steps behind them, with padding in between, of which the cache knows the prompts."""
    rows = [Row(row.prompt, row.response[:1] * 2) for row in rows]
    prompts, after = [row.prompt for row in rows], torch.tensor([row.response for row in rows])
    ids = torch.cat([pad(prompts, side), after], 1)
    mask = torch.cat([mask_of(prompts, side), torch.ones_like(after)], 1)
    model: Any = adapted_model(kind, terms)
    cache, logits, past = DynamicCache(config=model.config), [], 0
    for width in (ids.shape[1] - 2, 1, 1):
        now = arguments(ids[:, past : past + width], mask, past)
        with torch.no_grad():
            logits.append(model(**now, past_key_values=cache, use_cache=True).logits)
        past += width
    check(kind, terms, rows, torch.cat(logits, 1), mask)


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "chunked prefill": {"prefill_chunk_size": 2},
    "samples": {"num_return_sequences": 2, "do_sample": True},
    "beams": {"num_beams": 2, "num_return_sequences": 2},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "assistant": {},
}


@settings(RIGHT, max_examples=25)
@given(kind=kinds, terms=terms_of(), rows=rows_with_ids, way=st.sampled_from(sorted(WAYS)))
def test_generate(kind: str, terms: Terms, rows: list[Row], way: str) -> None:
    prompts = [row.prompt for row in rows]
    more = dict(WAYS[way])
    if way in ("prompt lookup", "assistant"):
        prompts = [(prompts[0] * 3)[: len(prompts[0]) + 4]]
    if way == "assistant":
        more["assistant_model"] = tiny_model(kind, layers=1, seed=1, dtype=torch.float64)
    model: Any = adapted_model(kind, terms)
    asked = {"input_ids": pad(prompts, "left"), "attention_mask": mask_of(prompts, "left"), "max_new_tokens": NEW}
    asked |= {"min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
    out = model.generate(**{**asked, "output_logits": True, "output_scores": True, **more})
    answers = out.sequences[:, -NEW:].tolist()
    for i, answer in enumerate(answers):
        prompt = prompts[i // (len(answers) // len(prompts))]
        wanted = expected(kind, terms, len(prompt), [*prompt, *answer])[len(prompt) - 1 : -1]
        if way == "beams":
            chances = wanted.float().log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()
            assert abs(chances / NEW - out.sequences_scores[i]) < 1e-4
            continue
        assert (torch.stack(out.logits, 1)[i] - wanted).abs().max() < ROUNDED


@RIGHT
@given(terms=terms_of(), rows=rows_with_ids)
def test_more_of_a_text_than_its_prompt(terms: Terms, rows: list[Row]) -> None:
    """As the server goes on with answers that were broken off."""
    tokens = [row.tokens for row in rows]
    model: Any = adapted_model("llama", terms)
    lengths = torch.tensor([len(row.prompt) for row in rows])
    asked = {"input_ids": pad(tokens, "left"), "attention_mask": mask_of(tokens, "left"), "prompt_length": lengths}
    out = model.generate(
        **asked, max_new_tokens=2, do_sample=False, pad_token_id=0, return_dict_in_generate=True, output_logits=True
    )
    for i, row in enumerate(rows):
        whole = [*row.tokens, *out.sequences[i, -2:].tolist()]
        wanted = expected("llama", terms, len(row.prompt), whole)[len(row.tokens) - 1 : -1]
        assert (torch.stack(out.logits, 1)[i][: len(wanted)] - wanted).abs().max() < ROUNDED


@settings(RIGHT)
@given(terms=terms_of(), rows=rows_with_ids)
def test_a_second_turn_on_a_cache_is_right_or_refused(terms: Terms, rows: list[Row]) -> None:
    row = rows[0]
    model: Any = adapted_model("llama", terms)
    cache = DynamicCache(config=model.config)
    more = {"past_key_values": cache, "max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0}
    more |= {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    first = model.generate(input_ids=torch.tensor([row.prompt]), **more).sequences[0].tolist()
    ids = [*first, *row.response]
    try:
        out = model.generate(input_ids=torch.tensor([ids]), **more)
    except PositionError as error:
        assert "the cache holds" in str(error)
        return
    tokens = out.sequences[0].tolist()
    wanted = expected("llama", terms, len(ids), tokens)[len(ids) - 1 : -1]
    assert (torch.stack(out.logits, 1)[0] - wanted).abs().max() < ROUNDED


def test_most_second_turns_on_a_cache_go_on() -> None:
    """Positions that look at the tokens alone, or from the first on, are the same with a longer prompt."""
    model = adapted(positions="p[1:3]+id(5,6)")
    cache = DynamicCache(config=model.config)
    more = {"past_key_values": cache, "max_new_tokens": 2, "pad_token_id": 0, "do_sample": False}
    first = model.generate(input_ids=torch.tensor([[5, 6, 7, 8]]), **more)
    assert model.generate(input_ids=torch.cat([first, torch.tensor([[5]])], 1), **more).shape == (1, 9)


def marked(data: Any, rows: list[Row]) -> list[tuple[int, ...]]:
    """Of each token of the rows whether it is marked, those of the responses too."""
    return [
        tuple(data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))) for n in (len(r.tokens) for r in rows)
    ]


@RIGHT
@given(terms=terms_of(spans=True), rows=rows_with_ids, side=sides, data=st.data())
def test_marked_tokens(terms: Terms, rows: list[Row], side: str, data: Any) -> None:
    """Padded rows in one call and in windows, packed rows, and `generate`."""
    marks, tokens = marked(data, rows), [row.tokens for row in rows]
    ids, mask, spans = pad(tokens, side), mask_of(tokens, side), pad(marks, side)
    lengths = torch.tensor([len(row.prompt) for row in rows])
    wanted = [
        oracle_logits("llama", r.tokens, terms.units(len(r.prompt), r.tokens, m))
        for r, m in zip(rows, marks, strict=True)
    ]
    model: Any = adapted_model("llama", terms)
    with torch.no_grad():
        once = model(**arguments(ids, mask), prompt_length=lengths, spans=spans, use_cache=False).logits
        packed = model(
            input_ids=torch.tensor([[t for row in tokens for t in row]]),
            position_ids=torch.tensor([[i for row in tokens for i in range(len(row))]]),
            spans=torch.tensor([[m for row in marks for m in row]]),
            prompt_length=lengths,
            use_cache=False,
        ).logits[0]
    for i, found in enumerate(packed.split([len(row) for row in tokens])):
        assert (found - wanted[i]).abs().max() < TOLERANCE
        assert (once[i][mask[i].bool()] - wanted[i]).abs().max() < TOLERANCE
    prompts = [row.prompt for row in rows]
    out = model.generate(
        input_ids=pad(prompts, "left"),
        attention_mask=mask_of(prompts, "left"),
        spans=pad([m[: len(p)] for m, p in zip(marks, prompts, strict=True)], "left"),
        **{"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0},
        **data.draw(st.sampled_from([WAYS["plain"], WAYS["no cache"], WAYS["chunked prefill"], WAYS["static cache"]])),
        return_dict_in_generate=True,
        output_logits=True,
    )
    for i, (prompt, m) in enumerate(zip(prompts, marks, strict=True)):
        whole = [*prompt, *out.sequences[i, -NEW:].tolist()]
        units = terms.units(len(prompt), whole, [*m[: len(prompt)], *[0] * NEW])
        expected_ones = oracle_logits("llama", whole, units)[len(prompt) - 1 : -1]
        assert (torch.stack(out.logits, 1)[i] - expected_ones).abs().max() < ROUNDED


def test_marks_that_nobody_gives_are_asked_for() -> None:
    model = adapted(positions="span+l1")
    ids = torch.tensor([[5, 6, 7]])
    for call in (lambda: model(ids), lambda: model.generate(ids, max_new_tokens=2)):
        with pytest.raises(PositionError, match=r"nothing says which tokens of these prompts are marked. Pass spans="):
            call()
    with pytest.raises(PositionError, match=r"spans has 2 columns, but the call has 3"):
        model(ids, spans=torch.ones(1, 2))
    with pytest.raises(PositionError, match=r"shape \[1, 2\], but the prompts have 3 columns"):
        model.generate(ids, spans=torch.ones(1, 2), max_new_tokens=2)
    with pytest.raises(PositionError, match="the batch has 1 rows"):
        model(ids, spans=torch.ones(2, 3))
    cache = DynamicCache(config=model.config)
    model(ids[:, :2], spans=torch.ones(1, 2), prompt_length=[3], past_key_values=cache)
    with pytest.raises(PositionError, match="does not say which of their tokens were marked"):
        model.generate(ids, spans=torch.ones(1, 3), past_key_values=cache, max_new_tokens=2)
    # others do not mind
    adapted(positions="l1").generate(ids, spans=torch.ones(1, 3), max_new_tokens=2, pad_token_id=0)


def test_embeddings_have_no_ids() -> None:
    model = adapted(positions="all-id(5)")
    embeds = model.get_input_embeddings()(torch.tensor([[5, 6, 7]]))
    with pytest.raises(PositionError, match=r"'all-id\(5\)': the model was given no input_ids"):
        model(inputs_embeds=embeds)
    with pytest.raises(PositionError, match="the model was given no input_ids"):
        model.generate(inputs_embeds=embeds, max_new_tokens=2)
    # others need none
    adapted(positions="l1+g2").generate(inputs_embeds=embeds, max_new_tokens=2, pad_token_id=0)


def test_turns_of_prompts_that_are_not_whole() -> None:
    model = adapted(positions="turn(6):f1+l2")
    ids = torch.tensor([[5, 6, 7]])
    embeds = model.get_input_embeddings()(ids)
    cache = DynamicCache(config=model.config)
    for call in (
        lambda: model(inputs_embeds=embeds),
        lambda: model.generate(inputs_embeds=embeds, max_new_tokens=2),
        lambda: model(ids, prompt_length=[5], past_key_values=cache),
    ):
        with pytest.raises(PositionError, match=r"'turn\(6\):f1\+l2': turns are counted in whole prompts"):
            call()
    # the last of the cached tokens ends a turn, or goes on
    model(ids, past_key_values=(cache := DynamicCache(config=model.config)))
    with pytest.raises(PositionError, match="by which turns they were counted"):
        model.generate(torch.tensor([[5, 6, 7, 8]]), past_key_values=cache, max_new_tokens=2)
    with pytest.raises(ValueError, match="or begin a turn, is not known without the tokenizer"):
        adapted(positions="turn:l1")


def test_a_step_behind_an_unknown_prompt_cannot_be_counted() -> None:
    model = adapted(positions="g2")
    out = adapted(positions="f1")(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True)
    layers = tuple((layer.keys, layer.values) for layer in out.past_key_values.layers)
    cache = DynamicCache(layers)
    with pytest.raises(PositionError, match="which token of the response it is cannot be counted"):
        model(input_ids=torch.tensor([[8]]), past_key_values=cache)


def test_texts_are_refused_until_they_are_ids() -> None:
    config = ReftConfig(positions='f1+text(".")', task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match=r"config.resolve_texts\(tokenizer\)"):
        peft.get_peft_model(tiny_model("llama"), config)


def test_ties() -> None:
    with pytest.raises(ValueError, match=r"'id\(5\)' names depends on the text"):
        ReftConfig(positions="f1+id(5)", tie="none")
    with pytest.raises(ValueError, match=r"'p\[2:-2\]' names depends on the text"):
        ReftConfig(positions="p[2:-2]", tie="none")
    assert ReftConfig(positions="p[2:5]+g2-id(7)", tie="none").positions == "p[2:5]+g2-id(7)"


def test_saved_and_loaded(tmp_path: Any) -> None:
    model = adapted(
        positions="l4+g4", tie="group", groups=[{"positions": "l4+g4"}, {"positions": "p[:-4]-id(9,7)", "tie": "all"}]
    )
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    wanted = model.generate(ids, max_new_tokens=4, pad_token_id=0)
    model.save_pretrained(tmp_path)
    base = tiny_model("llama", layers=2, dtype=torch.float64)
    again: Any = peft.PeftModel.from_pretrained(base, str(tmp_path), autocast_adapter_dtype=False)
    config = again.peft_config["default"]
    assert [group.positions for group in config.resolved_groups()] == ["l4+g4", "p[:-4]-id(7,9)"]
    with torch.no_grad():
        assert torch.equal(again(ids, prompt_length=[5]).logits, model(ids, prompt_length=[5]).logits)
    assert torch.equal(again.generate(ids, max_new_tokens=4, pad_token_id=0), wanted)


def test_gradients_are_of_the_edited_tokens_only() -> None:
    """A token that is not edited adds nothing, and a batch in which none is goes through all the same."""
    model = adapted(positions="id(5)+g1").train()
    for ids, length, some in (([[7, 8, 5, 6]], [3], True), ([[7, 8, 9, 6]], [2], True), ([[7, 8, 9, 6]], [4], False)):
        model.zero_grad()
        labels = torch.tensor(ids).clone()
        model(input_ids=torch.tensor(ids), labels=labels, prompt_length=torch.tensor(length)).loss.backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(g is not None for g in gradients)
        assert any(bool(g.any()) for g in gradients if g is not None) is some


@pytest.mark.parametrize("positions", ["id(5,7)+l2-f1", "turn(6):f1+l2-id(5)"])
def test_compiled_code_edits_the_same(positions: str) -> None:
    model = adapted(positions=positions)
    ids = torch.tensor([[5, 6, 7, 8], [7, 5, 6, 6]])
    with torch.no_grad():
        wanted = model(ids, prompt_length=torch.tensor([3, 4])).logits
        compiled: Any = torch.compile(model, backend="eager")
        assert torch.allclose(compiled(ids, prompt_length=torch.tensor([3, 4])).logits, wanted)


def test_one_term_names_a_token_first() -> None:
    assert Terms((Term("id", (5,)), Term("p", (0, 2))), (), "group").units(2, [5, 6]) == {0: 0, 1: 1}
