"""Padding, and the prompt length that is in every batch."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from reftune.data import ReftCollator, build_dataset
from reftune.errors import DataError

FEATURES = [
    {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8], "prompt_length": 2},
    {"input_ids": [9, 10], "labels": [-100, 10], "prompt_length": 1},
]


def test_right(bpe: PreTrainedTokenizerFast) -> None:
    batch = ReftCollator(bpe)(FEATURES)
    pad = bpe.pad_token_id
    assert list(batch) == ["input_ids", "attention_mask", "labels", "prompt_length"]
    assert all(tensor.dtype == torch.long for tensor in batch.values())
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, pad, pad]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 7, 8], [-100, 10, -100, -100]]
    assert batch["prompt_length"].tolist() == [2, 1]


def test_left(bpe: PreTrainedTokenizerFast) -> None:
    batch = ReftCollator(bpe, padding_side="left")(FEATURES)
    pad = bpe.pad_token_id
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [pad, pad, 9, 10]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 7, 8], [-100, -100, -100, 10]]
    # Padding is not counted.
    assert batch["prompt_length"].tolist() == [2, 1]


rows = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from(["both", "labels", "length"])),
    min_size=1,
    max_size=5,
)


@given(rows=rows, side=st.sampled_from(["left", "right"]), multiple=st.sampled_from([None, 1, 4]))
def test_rows_come_back(
    bpe: PreTrainedTokenizerFast, rows: list[tuple[int, int, str]], side: str, multiple: int | None
) -> None:
    features: list[dict[str, Any]] = []
    for prompt, response, given_columns in rows:
        ids = list(range(10, 10 + prompt + response))
        feature = {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:], "prompt_length": prompt}
        feature.pop({"labels": "prompt_length", "length": "labels", "both": ""}[given_columns], None)
        features.append(feature)
    batch = ReftCollator(bpe, padding_side=side, pad_to_multiple_of=multiple)(features)
    longest = max(prompt + response for prompt, response, _ in rows)
    width = batch["input_ids"].shape[1]
    assert longest <= width < longest + (multiple or 1)
    assert width % (multiple or 1) == 0
    assert batch["prompt_length"].tolist() == [prompt for prompt, _, _ in rows]
    for index, (prompt, response, _) in enumerate(rows):
        real = batch["attention_mask"][index].bool()
        ids = list(range(10, 10 + prompt + response))
        assert batch["input_ids"][index][real].tolist() == ids
        assert batch["labels"][index][real].tolist() == [-100] * prompt + ids[prompt:]
        assert (batch["labels"][index][~real] == -100).all()
        assert (batch["input_ids"][index][~real] == bpe.pad_token_id).all()


def test_tensors_arrays_and_foreign_columns(bpe: PreTrainedTokenizerFast) -> None:
    expected = ReftCollator(bpe)(FEATURES)
    for kind in (torch.tensor, np.array):
        features = [{name: kind(value) for name, value in feature.items()} for feature in FEATURES]
        for feature in features:
            feature["attention_mask"] = kind([1] * len(feature["input_ids"]))
            feature["text"] = "not for tensors"
        batch = ReftCollator(bpe)(features)
        assert list(batch) == list(expected)
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_pads_with_eos_where_there_is_no_pad(metaspace: PreTrainedTokenizerFast, bert: PreTrainedTokenizerFast) -> None:
    assert metaspace.pad_token_id is None
    assert ReftCollator(metaspace)(FEATURES)["input_ids"][1, 2:].tolist() == [metaspace.eos_token_id] * 2
    nothing = PreTrainedTokenizerFast(tokenizer_object=bert.backend_tokenizer)
    with pytest.raises(DataError, match="neither a pad nor an eos token"):
        ReftCollator(nothing)


def test_explicit_prompt_length_wins(bpe: PreTrainedTokenizerFast) -> None:
    # Loss on the prompt as well, or a response whose first token is left out of the loss.
    features = [
        {"input_ids": [1, 2, 3], "labels": [1, 2, 3], "prompt_length": 2},
        {"input_ids": [1, 2, 3], "labels": [-100, -100, 3], "prompt_length": 1},
    ]
    assert ReftCollator(bpe)(features)["prompt_length"].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("feature", "needle"),
    [
        ({"input_ids": [1, 2], "labels": [1, 2]}, "no prompt: its labels do not begin with -100"),
        ({"input_ids": [1, 2], "labels": [-100, -100]}, "no response to learn: all 2 labels are -100"),
        ({"input_ids": [1, 2], "labels": [-100, -100], "prompt_length": 1}, "no response to learn"),
        ({"input_ids": [1, 2], "prompt_length": 2}, "no response to learn"),
        ({"input_ids": [1, 2], "labels": [-100, 2], "prompt_length": 0}, "no prompt: prompt_length=0"),
        ({"input_ids": [1, 2], "labels": [-100, 2], "prompt_length": 3}, "it needs 1 to 2 prompt tokens"),
        ({"input_ids": [1, 2], "labels": [-100]}, "1 labels for 2 input_ids"),
        ({"input_ids": [1, 2]}, "neither 'prompt_length' nor 'labels'"),
        ({"labels": [-100, 2]}, "no 'input_ids'; columns found: labels"),
        ({"input_ids": [1, 2], "labels": [-100, 2], "attention_mask": [0, 1]}, "is padded already"),
    ],
)
def test_unusable_feature(bpe: PreTrainedTokenizerFast, feature: dict[str, Any], needle: str) -> None:
    with pytest.raises(DataError) as error:
        ReftCollator(bpe)([FEATURES[0], feature])
    assert "feature 1 of the batch" in str(error.value)
    assert needle in str(error.value)


def test_bad_options(bpe: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="padding_side='middle'; valid: 'left', 'right'"):
        ReftCollator(bpe, padding_side="middle")
    with pytest.raises(DataError, match="pad_to_multiple_of=0"):
        ReftCollator(bpe, pad_to_multiple_of=0)


def test_with_a_dataset_and_in_a_worker(bpe: PreTrainedTokenizerFast) -> None:
    dataset = build_dataset([{"prompt": "a b", "completion": "c"}, {"prompt": "hello", "completion": "abc abc"}], bpe)
    collator = pickle.loads(pickle.dumps(ReftCollator(bpe)))
    for rows in (dataset, dataset.with_format("torch")):
        batch = next(iter(torch.utils.data.DataLoader(rows, batch_size=2, collate_fn=collator)))
        assert batch["prompt_length"].tolist() == dataset["prompt_length"]
        assert batch["labels"].shape == batch["input_ids"].shape


def test_subspaces_stay_with_their_rows(bpe: PreTrainedTokenizerFast) -> None:
    rows = [{"input_ids": [1, 2], "prompt_length": 1, "subspaces": [i]} for i in (0, 1)]
    assert ReftCollator(bpe)(rows)["subspaces"] == [[0], [1]]
    del rows[1]["subspaces"]
    with pytest.raises(DataError, match="some have not"):
        ReftCollator(bpe)(rows)


# --- packing ----------------------------------------------------------------------------------------------------------


def test_packed(bpe: PreTrainedTokenizerFast) -> None:
    batch = ReftCollator(bpe, packing=True)(FEATURES)
    assert list(batch) == ["input_ids", "labels", "position_ids", "prompt_length"]
    assert all(tensor.dtype == torch.long for tensor in batch.values())
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 10]]
    assert batch["labels"].tolist() == [[-100, -100, 7, 8, -100, 10]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch["prompt_length"].tolist() == [2, 1]


@given(rows=rows)
def test_packed_rows_come_back(bpe: PreTrainedTokenizerFast, rows: list[tuple[int, int, str]]) -> None:
    features = [
        {"input_ids": list(range(10 + 20 * i, 10 + 20 * i + prompt + response)), "prompt_length": prompt}
        for i, (prompt, response, _) in enumerate(rows)
    ]
    batch = ReftCollator(bpe, packing=True)(features)
    assert {batch[name].shape for name in ("input_ids", "labels", "position_ids")} == {
        (1, sum(prompt + response for prompt, response, _ in rows))
    }
    begins = [*(batch["position_ids"][0] == 0).nonzero()[:, 0].tolist(), batch["input_ids"].shape[1]]
    assert len(begins) == len(rows) + 1
    for i, (feature, prompt) in enumerate(zip(features, batch["prompt_length"].tolist(), strict=True)):
        ids = batch["input_ids"][0, begins[i] : begins[i + 1]].tolist()
        assert ids == feature["input_ids"] and prompt == feature["prompt_length"]
        assert batch["labels"][0, begins[i] : begins[i + 1]].tolist() == [-100] * prompt + ids[prompt:]
        assert batch["position_ids"][0, begins[i] : begins[i + 1]].tolist() == list(range(len(ids)))


def test_the_last_token_of_one_packed_row_does_not_predict_the_next_row(bpe: PreTrainedTokenizerFast) -> None:
    # loss on the prompt as well: in a row of its own the first label is shifted away
    features = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3], "prompt_length": 2}] * 2
    batch = ReftCollator(bpe, packing=True)(features)
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, 2, 3]]
    assert features[0]["labels"] == [1, 2, 3]


def test_what_cannot_be_packed(bpe: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="packing=True has no padding; leave pad_to_multiple_of out"):
        ReftCollator(bpe, packing=True, pad_to_multiple_of=8)
    with pytest.raises(DataError, match="packed rows cannot choose 'subspaces'"):
        ReftCollator(bpe, packing=True)([{**feature, "subspaces": [0]} for feature in FEATURES])
    with pytest.raises(DataError, match="feature 1 of the batch: no response to learn"):
        ReftCollator(bpe, packing=True)([FEATURES[0], {"input_ids": [1, 2], "prompt_length": 2}])
