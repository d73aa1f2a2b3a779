"""A token for each row: each option alone, and no row's draw depends on the rows beside it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reftune.serving.embedded.sampling import RowSampler, SamplingOptions, cut_unlikely, sample

VOCABULARY = 12


def logits(seed: int = 0, *, rows: int = 1) -> torch.Tensor:
    return 2 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def draws(options: dict[str, Any], count: int, *, values: torch.Tensor | None = None) -> Counter[int]:
    """How often each token is drawn; no penalties, which would change from draw to draw."""
    sampler = RowSampler(SamplingOptions(seed=1, **options), [])
    values = logits() if values is None else values
    found = [sample(values, [sampler])[0] for _ in range(count)]
    return Counter(choice.token for choice in found if choice is not None)


def test_greedy_takes_the_first_of_the_most_probable() -> None:
    values = torch.tensor([[0.0, 3.0, 3.0, 1.0]])
    assert draws({"temperature": 0}, 3, values=values) == {1: 3}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_softmax(temperature: float) -> None:
    count = 4000
    wanted = torch.softmax(logits()[0].double() / temperature, -1)
    found = draws({"temperature": temperature}, count)
    for token, p in enumerate(wanted.tolist()):
        # five standard deviations of a binomial: one failure in a million seeds, and the seed is fixed
        assert abs(found[token] - count * p) <= 5 * (count * p * (1 - p)) ** 0.5 + 1


@pytest.mark.parametrize(
    "options", [{"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.3}, {"top_k": 1}, {"top_p": 1e-9}, {"top_k": 4, "min_p": 0.1}]
)
def test_cuts_leave_what_they_should(options: dict[str, Any]) -> None:
    p = torch.softmax(logits()[0].double(), -1)
    order = p.argsort(descending=True).tolist()
    kept = set(order)
    kept &= set(order[: options.get("top_k", VOCABULARY)])
    kept &= {token for token in order if p[token] >= options.get("min_p", 0) * p.max()}
    if "top_p" in options:
        before = {token: float(p[order[:i]].sum()) for i, token in enumerate(order)}
        kept &= {token for i, token in enumerate(order) if i == 0 or before[token] < options["top_p"]}
    assert 1 <= len(kept) < VOCABULARY
    # each kept token has a probability of at least 1 %, so 2000 draws miss none
    assert set(draws(options, 2000)) == kept


def test_a_look_at_the_most_probable_tokens_cuts_as_one_at_all() -> None:
    """Also where many are equally probable, and where those that stay are more than were looked at."""
    seen = set()
    options = [
        SamplingOptions(top_p=top_p, top_k=top_k, min_p=min_p)
        for top_p in (0.2, 0.7, 0.95, 1.0)
        for top_k in (0, 2, 7)
        for min_p in (0, 0.05, 0.4)
    ]
    for seed in range(20):
        values = logits(seed, rows=len(options))
        values = (2 * values).round() / 2 if seed % 2 else values
        whole = cut_unlikely(values, options, VOCABULARY)
        assert torch.equal(cut_unlikely(values, options, 4), whole)
        assert torch.equal(whole == -torch.inf, whole != values)
        seen |= set((whole > -torch.inf).sum(-1).tolist())
    assert seen >= {1, 2, 3, 4, 5, VOCABULARY}


def test_penalties_and_biases() -> None:
    values = logits()
    best = int(values.argmax())
    second = int(values[0].argsort(descending=True)[1])
    greedy = {"temperature": 0.0}

    def chosen(prompt: list[int] = [], **options: Any) -> list[int]:  # noqa: B006 — not changed
        sampler = RowSampler(SamplingOptions(**greedy, **options), prompt)
        found = [sample(values, [sampler])[0] for _ in range(2)]
        return [choice.token for choice in found if choice is not None]

    gap = float(values[0, best] - values[0, second])
    assert chosen() == [best, best]
    assert chosen(presence_penalty=gap + 0.1) == chosen(frequency_penalty=gap + 0.1) == [best, second]
    assert chosen(logit_bias={best: -100.0}) == [second, second]
    assert chosen(logit_bias={7: 100.0}) == [7, 7]
    assert chosen(repetition_penalty=50.0) == [best, second]
    assert chosen([best], repetition_penalty=50.0) == [second, chosen([best, second], repetition_penalty=50.0)[0]]


def test_frequency_counts_and_presence_does_not() -> None:
    values = torch.tensor([[5.0, 3.5, -9.0]])
    counted = RowSampler(SamplingOptions(temperature=0, frequency_penalty=1.0), [])
    present = RowSampler(SamplingOptions(temperature=0, presence_penalty=1.0), [])
    tokens = [[choice.token for choice in sample(values.repeat(2, 1), [counted, present])] for _ in range(4)]  # type: ignore[union-attr]
    assert [pair[0] for pair in tokens] == [0, 0, 1, 0]
    assert [pair[1] for pair in tokens] == [0, 0, 0, 0]


def test_logprobs_are_those_of_the_model() -> None:
    values = logits()
    wanted = torch.log_softmax(values[0], -1)
    options = SamplingOptions(temperature=0.0, logit_bias={3: 100.0}, presence_penalty=1.0, logprobs=4)
    (choice,) = sample(values, [RowSampler(options, [])])
    assert choice is not None and choice.token == 3
    assert choice.logprob == float(wanted[3])
    assert choice.top == tuple((int(i), float(wanted[i])) for i in wanted.argsort(descending=True)[:4])


ROW = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.7, 1.0, 3.0]),
        "top_p": st.sampled_from([0.3, 0.9, 1.0]),
        "top_k": st.sampled_from([0, 1, 5]),
        "min_p": st.sampled_from([0.0, 0.05]),
        "presence_penalty": st.sampled_from([0.0, 0.5]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "logprobs": st.sampled_from([None, 0, 2]),
        "seed": st.integers(-5, 1 << 62),
    }
)


@settings(max_examples=40)
@given(rows=st.lists(ROW, min_size=2, max_size=6), gone=st.integers(0, 5))
def test_rows_do_not_depend_on_each_other(rows: list[dict[str, Any]], gone: int) -> None:
    steps = [logits(seed, rows=len(rows)) for seed in range(5)]
    together: list[Any] = [RowSampler(SamplingOptions(**row), [1, 2]) for row in rows]
    alone = [RowSampler(SamplingOptions(**row), [1, 2]) for row in rows]
    for number, values in enumerate(steps):
        if number == 2 and gone < len(rows):
            together[gone] = None
        found = sample(values, together)
        for i, sampler in enumerate(together):
            if sampler is None:
                assert found[i] is None
            else:
                assert found[i] == sample(values[i : i + 1], [alone[i]])[0]


def test_without_a_seed_draws_differ() -> None:
    flat = torch.zeros(1, 1000)
    found = {sample(flat, [RowSampler(SamplingOptions(), [])])[0].token for _ in range(5)}  # type: ignore[union-attr]
    assert len(found) > 1


def test_the_last_token_can_be_drawn_and_an_impossible_one_cannot() -> None:
    values = torch.full((1, 5), -torch.inf)
    values[0, 3] = 0.0
    assert draws({}, 200, values=values) == {3: 200}
    values[0, 4] = 20.0
    assert set(draws({}, 50, values=values)) == {4}
