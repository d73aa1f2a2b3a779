"""Rows out of batches and batches out of rows, and how batches are split: pure functions, against naive ones."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reftune.data import ReftCollator
from reftune.training.rows import Batch, Row, batch_of, packed_batch, rows_of, split
from tests.training.text_models import word_tokenizer

TOKENIZER = word_tokenizer()
CPU = torch.device("cpu")
NO = -100

# --- split -----------------------------------------------------------------------------------------------------------

widths = st.lists(st.integers(0, 30), min_size=1, max_size=12)


def cost(parts: list[list[int]], widths: list[int], overhead: int) -> int:
    return sum(overhead + len(part) * max(widths[i] for i in part) for part in parts)


@given(widths=widths, overhead=st.integers(0, 60))
def test_split_is_a_partition_by_width(widths: list[int], overhead: int) -> None:
    parts = split(widths, overhead=overhead)
    assert sorted(i for part in parts for i in part) == list(range(len(widths)))
    assert all(part and part == sorted(part) for part in parts)
    # the widest part first, and no part reaches into the next one
    for wide, narrow in pairwise(parts):
        assert min(widths[i] for i in wide) >= max(widths[i] for i in narrow)
    assert cost(parts, widths, overhead) <= cost([list(range(len(widths)))], widths, overhead)


@given(widths=st.lists(st.integers(0, 12), min_size=1, max_size=4), overhead=st.integers(0, 20))
def test_no_partition_at_all_costs_less(widths: list[int], overhead: int) -> None:
    parts = split(widths, overhead=overhead)
    best = None
    for labels in product(range(len(widths)), repeat=len(widths)):
        groups = [[i for i, label in enumerate(labels) if label == group] for group in set(labels)]
        found = cost(groups, widths, overhead)
        best = found if best is None else min(best, found)
    assert cost(parts, widths, overhead) == best


def test_split_of_nothing() -> None:
    assert split([], overhead=5) == []


# --- rows of a batch -------------------------------------------------------------------------------------------------


@st.composite
def features(draw: st.DrawFn) -> dict[str, Any]:
    """A row with at least one label behind its first token; labels may have gaps, and the prompt ends anywhere."""
    size = draw(st.integers(2, 9))
    ids = draw(st.lists(st.integers(3, 60), min_size=size, max_size=size))
    marks = draw(st.lists(st.booleans(), min_size=size - 1, max_size=size - 1).filter(any))
    labels = [NO, *(token if mark else NO for token, mark in zip(ids[1:], marks, strict=True))]
    return {"input_ids": ids, "labels": labels, "prompt_length": draw(st.integers(1, size))}


def naive(feature: dict[str, Any]) -> tuple[list[int], dict[int, int], int]:
    """Tokens that matter, which of them predicts which label, and the prompt."""
    ids, labels, length = feature["input_ids"], feature["labels"], feature["prompt_length"]
    predicted = {i - 1: label for i, label in enumerate(labels) if i and label != NO}
    return ids[: max(max(predicted) + 1, length)], predicted, length


@given(
    rows=st.lists(features(), min_size=1, max_size=5),
    side=st.sampled_from(["left", "right"]),
    step=st.sampled_from([1, 4]),
)
def test_rows_without_padding_and_tail(rows: list[dict[str, Any]], side: str, step: int) -> None:
    batch = ReftCollator(TOKENIZER, padding_side=side, pad_to_multiple_of=step)(rows)
    found = rows_of(batch)
    assert found is not None and len(found) == len(rows)
    for row, feature in zip(found, rows, strict=True):
        ids, predicted, length = naive(feature)
        assert list(row.ids) == ids
        assert row.prompt_length == length
        assert {i: label for i, label in enumerate(row.targets) if label != NO} == predicted
        assert len(row.targets) == len(row.ids)
        assert row.first_target == min(predicted)
        assert row.labelled == len(predicted)
    assert len(set(found)) == len({repr(naive(feature)) for feature in rows})


@given(data=st.data(), rows=st.lists(features(), min_size=1, max_size=5))
def test_a_batch_of_windows_predicts_the_labels(data: st.DataObject, rows: list[dict[str, Any]]) -> None:
    found = rows_of(ReftCollator(TOKENIZER)(rows))
    assert found is not None
    starts = [data.draw(st.integers(0, row.first_target)) for row in found]
    given_starts = None if data.draw(st.booleans()) else starts
    starts = [0] * len(found) if given_starts is None else starts
    batch = batch_of(found, device=CPU, starts=given_starts)
    ids = batch.inputs["input_ids"]
    assert ids.shape == (len(found), max(len(row.ids) - start for row, start in zip(found, starts, strict=True)))
    for i, (row, start) in enumerate(zip(found, starts, strict=True)):
        width = len(row.ids) - start
        assert ids[i, :width].tolist() == list(row.ids[start:])
    predicted = {
        (i, j - start): label
        for i, (feature, start) in enumerate(zip(rows, starts, strict=True))
        for j, label in naive(feature)[1].items()
    }
    pairs = zip(batch.rows.tolist(), batch.columns.tolist(), strict=True)
    assert dict(zip(pairs, batch.targets.tolist(), strict=True)) == predicted
    assert len(batch.targets) == len(predicted)
    assert batch.inputs["prompt_length"].tolist() == [row["prompt_length"] for row in rows]
    assert "subspaces" not in batch.inputs


def test_the_prompt_is_what_has_no_label_where_nothing_else_is_said() -> None:
    ids, labels = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 0]]), torch.tensor([[NO, NO, 7, 8], [NO, 6, NO, NO]])
    found = rows_of({"input_ids": ids, "labels": labels})
    assert found == [Row((5, 6, 7), (NO, 7, 8), 2), Row((5,), (6,), 1)]


def test_a_prompt_that_ends_behind_the_last_label() -> None:
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "labels": torch.tensor([[NO, 6, NO, NO]])}
    found = rows_of({**batch, "prompt_length": torch.tensor([3])})
    assert found == [Row((5, 6, 7), (6, NO, NO), 3)]


def test_subspaces_stay_with_their_rows() -> None:
    rows = [{"input_ids": [1, 2, 3], "prompt_length": 2, "subspaces": chosen} for chosen in ([0], [1, 2])]
    found = rows_of(ReftCollator(TOKENIZER)(rows))
    assert found is not None and [row.subspaces for row in found] == [(0,), (1, 2)]
    assert batch_of(found[::-1], device=CPU).inputs["subspaces"] == [[1, 2], [0]]


IDS = torch.tensor([[5, 6, 7], [8, 9, 10]])
LABELS = torch.tensor([[NO, 6, 7], [NO, NO, 10]])
PLAIN = {"input_ids": IDS, "labels": LABELS}


@pytest.mark.parametrize(
    "batch",
    [
        {"input_ids": IDS},
        {"labels": LABELS},
        {**PLAIN, "position_ids": torch.arange(3)[None]},
        {**PLAIN, "token_type_ids": IDS},
        {**PLAIN, "inputs_embeds": torch.zeros(2, 3, 4)},
        {"input_ids": IDS, "labels": torch.tensor([0, 1])},
        {"input_ids": IDS[0], "labels": LABELS[0]},
        {**PLAIN, "attention_mask": torch.ones(2, 1, 3, 3)},
        # a hole in a row, and a row that is all padding
        {**PLAIN, "attention_mask": torch.tensor([[1, 0, 1], [1, 1, 1]])},
        {**PLAIN, "attention_mask": torch.tensor([[0, 0, 0], [1, 1, 1]])},
        # nothing to predict, or nothing to predict it from
        {"input_ids": IDS, "labels": torch.full_like(IDS, NO)},
        {"input_ids": IDS, "labels": torch.tensor([[5, NO, NO], [NO, 9, 10]])},
        # what the model's own hooks refuse
        {"input_ids": IDS, "labels": IDS},
        {**PLAIN, "prompt_length": torch.tensor([0, 2])},
        {**PLAIN, "prompt_length": torch.tensor([4, 2])},
        {**PLAIN, "prompt_length": torch.tensor([2])},
        {**PLAIN, "subspaces": [[0]]},
    ],
)
def test_what_is_more_than_rows_is_taken_as_it_is(batch: dict[str, Any]) -> None:
    assert rows_of(PLAIN) is not None
    assert rows_of(batch) is None


# --- packed batches --------------------------------------------------------------------------------------------------


@given(rows=st.lists(features(), min_size=1, max_size=4))
def test_a_packed_batch_predicts_the_same_labels(rows: list[dict[str, Any]]) -> None:
    collated = ReftCollator(TOKENIZER, packing=True)(rows)
    assert rows_of(collated) is None
    batch = packed_batch(collated)
    assert isinstance(batch, Batch)
    assert set(batch.inputs) == {"input_ids", "position_ids", "prompt_length"}
    assert batch.rows.tolist() == [0] * len(batch.rows)
    expected, begin = {}, 0
    for feature in rows:
        expected |= {begin + i: label for i, label in naive(feature)[1].items()}
        begin += len(feature["input_ids"])
    assert dict(zip(batch.columns.tolist(), batch.targets.tolist(), strict=True)) == expected
    assert packed_batch({**collated, "attention_mask": torch.ones_like(collated["input_ids"])}) is None
    assert packed_batch({key: collated[key] for key in collated if key != "position_ids"}) is None
