"""Rows laid end to end, and batches of rows of similar length: the same losses, and the same tokens edited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging import version
from torch import Tensor

import reftune.tuner.layer as layer_module
from reftune import ReftuneError
from reftune.data import ReftCollator
from reftune.errors import DataError
from tests.models import CAUSAL
from tests.training.fast_models import RowData, adapted, assert_same, course_of, plain_course, ragged, trainer_of
from tests.training.text_models import word_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")

REFUSED = ("bloom", "falcon", "opt")
PACKED = tuple(kind for kind in CAUSAL if kind not in REFUSED)
# prompts of 1 to 14 tokens, so that some are shorter than f2+l2, and that a window of 4 reaches from row to row
ROWS = ragged()
PACKING = {"packing": True}

EDITS: dict[str, dict[str, Any]] = {
    "f2+l2": {"layers": [0, 1], "positions": "f2+l2"},
    "response": {"layers": [1], "positions": "response"},
    "terms": {"layers": [1], "positions": f"l1+g1+id({','.join(map(str, range(5, 97, 3)))})", "tie": "group"},
    "prompt of an mlp": {"layers": [0], "positions": "prompt", "component": "mlp_output"},
}
CASES = [(kind, name) for kind in PACKED for name in EDITS if name == "f2+l2" or kind in ("qwen3", "gemma3", "gpt2")]


@pytest.fixture
def edited_tokens(monkeypatch: pytest.MonkeyPatch) -> list[set[tuple[int, int]]]:
    """(row, column) of all tokens that an edit of a span changed, call by call."""
    seen: list[set[tuple[int, int]]] = []
    frame_class: Any = layer_module.Frame
    original = frame_class.slots

    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, *args, **kwargs)
        if found is not None:
            at = zip(found.rows[found.valid].tolist(), found.columns[found.valid].tolist(), strict=True)
            seen.append(set(at))
        return found

    monkeypatch.setattr(frame_class, "slots", recorded)
    return seen


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_packed_rows_have_the_losses_of_padded_ones(tmp_path: Path, kind: str, name: str) -> None:
    fields = EDITS[name]
    expected = plain_course(adapted(kind, **fields), ROWS, steps=2)
    found = course_of(trainer_of(tmp_path, adapted(kind, **fields), ROWS, max_steps=2, more=PACKING))
    assert_same(found, expected)


def test_batches_accumulation_and_evaluation_of_packed_rows(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "evaluation": ragged(5, seed=6),
        "eval_strategy": "epoch",
        "per_device_eval_batch_size": 2,
    }
    rows = ragged(7, seed=1)
    expected = course_of(trainer_of(tmp_path, adapted(positions="f1+l2"), rows, plain=True, **arguments))
    found = course_of(trainer_of(tmp_path, adapted(positions="f1+l2"), rows, more=PACKING, **arguments))
    assert len(expected.evaluated) == 2
    assert_same(found, expected)


def test_the_tokens_that_are_edited(tmp_path: Path, edited_tokens: list[set[tuple[int, int]]]) -> None:
    """One step of one packed row, whose columns count on from example to example."""
    trainer = trainer_of(tmp_path, adapted(positions="f1+l2"), ROWS, max_steps=1, more=PACKING)
    batches: list[dict[str, Tensor]] = []
    collate = trainer.data_collator

    def recorded(features: Any) -> Any:
        batches.append(collate(features))
        return batches[-1]

    trainer.data_collator = recorded
    trainer.train()
    position_ids, lengths = batches[0]["position_ids"][0].tolist(), batches[0]["prompt_length"].tolist()
    assert len(batches) == 1 and sorted(lengths) == sorted(row["prompt_length"] for row in ROWS)
    expected: set[tuple[int, int]] = set()
    begins = [column for column, position in enumerate(position_ids) if position == 0]
    for begin, n in zip(begins, lengths, strict=True):
        # with two tokens and less, the first and the last share what there is
        first = min(1, n // 2) if n < 3 else 1
        last = min(2, (n + 1) // 2) if n < 3 else 2
        expected |= {(0, begin + i) for i in range(first)} | {(0, begin + n - 1 - i) for i in range(last)}
    assert edited_tokens[-1] == expected


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bloom", "BloomForCausalLM takes no position_ids, so that it cannot tell packed examples apart"),
        ("opt", "in OPTForCausalLM with the attention 'sdpa' a packed example sees the one before it"),
    ],
)
def test_models_that_mix_packed_rows_are_refused(tmp_path: Path, kind: str, reason: str) -> None:
    with pytest.raises(ReftuneError, match=reason):
        trainer_of(tmp_path, adapted(kind), ROWS, max_steps=1, more=PACKING).train()


def test_falcon_is_refused_or_right(tmp_path: Path) -> None:
    """transformers 5.24 tells its mask where the packed examples begin, earlier versions do not."""
    trainer = trainer_of(tmp_path, adapted("falcon"), ROWS, max_steps=2, more=PACKING)
    if version.parse(transformers.__version__) < version.parse("5.24"):
        with pytest.raises(ReftuneError, match="in FalconForCausalLM with the attention 'sdpa' a packed example sees"):
            trainer.train()
    else:
        assert_same(course_of(trainer), plain_course(adapted("falcon"), ROWS, steps=2))


def test_a_model_that_mixes_is_found_out_in_the_first_batch_of_several_rows(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"max_steps": 2, "more": PACKING}
    single = trainer_of(tmp_path, adapted("opt"), ROWS, per_device_train_batch_size=1, **arguments)
    single.train()
    # single rows mix with nothing, and that none was mixed yet says nothing of later ones
    assert single.state.global_step == 2
    single._train_batch_size = single.args.per_device_train_batch_size = 2
    with pytest.raises(ReftuneError, match="sees the one before it"):
        single.train()


def test_what_packing_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(ReftuneError, match="packing=True needs the collator of ReftTrainer"):
        trainer_of(tmp_path, adapted(), ROWS, collator=ReftCollator(word_tokenizer()), more=PACKING)
    chosen: list[RowData] = [{**row, "subspaces": [0]} for row in ROWS]
    with pytest.raises(DataError, match="packed rows cannot choose 'subspaces'"):
        model = adapted(r=2, subspaces=[[0], [1]])
        trainer_of(tmp_path, model, chosen, max_steps=1, more=PACKING).train()


@pytest.mark.parametrize("packing", [False, True])
def test_batches_of_similar_length(tmp_path: Path, edited_tokens: list[set[tuple[int, int]]], packing: bool) -> None:
    """`group_by_length` of transformers sorts by the tokens of our rows, and each batch trains as it should."""
    rows = ragged(64, prompts=(2, 30))
    trainer = trainer_of(
        tmp_path,
        adapted(positions="f1+l1"),
        rows,
        more={"packing": packing, "reuse": "off"},
        per_device_train_batch_size=4,
        num_train_epochs=1,
        train_sampling_strategy="group_by_length",
        learning_rate=0.0,
    )
    batches: list[dict[str, Tensor]] = []
    collate = trainer.data_collator

    def recorded(features: Any) -> Any:
        batches.append(ReftCollator(word_tokenizer())(features))
        return collate(features)

    trainer.data_collator = recorded
    course = course_of(trainer)
    spreads = [batch["attention_mask"].sum(1).float().std() for batch in batches]
    lengths = torch.tensor([len(row["input_ids"]) for row in rows], dtype=torch.float)
    assert len(batches) == 16 and torch.stack(spreads).mean() < 0.4 * lengths.std()
    # with a rate of 0 every batch meets the same adapter
    model = adapted(positions="f1+l1")
    with torch.no_grad():
        expected = [model(**batch).loss.item() for batch in batches]
    torch.testing.assert_close(torch.tensor(course.losses), torch.tensor(expected), rtol=1e-6, atol=0.0)
