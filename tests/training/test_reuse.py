"""Frozen-prefix reuse: the same losses and gradients as plain training on many architectures, with less work.

When it is left aside, and what makes its entries stale: `test_frozen.py`.  Where they are kept: `test_store.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback

import reftune.training.loss as loss_module
from reftune import ReftConfig, ReftuneError
from reftune.data import ReftCollator
from reftune.training.frozen import FrozenPlan, frozen_plan
from reftune.training.replay import cache_name
from reftune.training.reuse import FrozenPrefix
from reftune.training.rows import rows_of
from tests.models import CAUSAL, tiny_model
from tests.training.fast_models import (
    Course,
    RowData,
    adapted,
    assert_same,
    course_of,
    off_lines,
    on_lines,
    plain_course,
    ragged,
    tokens_through,
    trainer_of,
)
from tests.training.text_models import word_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")

# prompts of 1 to 14 tokens, so that some are shorter than f2+l2
ROWS = ragged()
OTHER_ROWS = ragged(4, seed=5)

MIXED: dict[str, Any] = {
    "groups": [{"layers": [2], "positions": "f1"}, {"layers": [1], "positions": "l1"}],
    "tie": "group",
}
COMPONENTS: dict[str, Any] = {
    "groups": [
        {"layers": [1], "positions": "l1", "component": "attention_output"},
        {"layers": [1], "positions": "l2", "component": "mlp_output"},
        {"layers": [2], "positions": "l1", "component": "attention_head[1]"},
    ]
}
EVERYWHERE: dict[str, dict[str, Any]] = {
    "l1 of the middle": {"layers": [1], "positions": "l1"},
    "f2+l2 of two": {"layers": [1, 2], "positions": "f2+l2", "tie": "none"},
    "two groups": MIXED,
    "components": COMPONENTS,
}
IN_DETAIL: dict[str, dict[str, Any]] = {
    "l1 of the first": {"layers": [0], "positions": "l1"},
    "l1 of the last": {"layers": [2], "positions": "l1"},
    "l2 of first and last": {"layers": [0, 2], "positions": "l2", "tie": "group"},
    "response": {"layers": [0], "positions": "response", "intervention": "noreft"},
    "prompt": {"layers": [2], "positions": "prompt", "intervention": "direft"},
    "all": {"layers": [1], "positions": "all"},
    "terms": {"layers": [1, 2], "positions": "p[2:4]+g2-id(9)", "tie": "group"},
    "ids": {"layers": [1], "positions": f"id({','.join(map(str, range(5, 97, 3)))})+l1"},
    "turns": {"layers": [1, 2], "positions": f"turn({','.join(map(str, range(5, 97, 4)))}):f1+l2-id(8)"},
    "l1 of an attention below": {"layers": [0], "positions": "l1", "component": "attention_output"},
}
CASES = [
    *((kind, name, EVERYWHERE[name]) for kind in CAUSAL for name in EVERYWHERE),
    *((kind, name, IN_DETAIL[name]) for kind in ("qwen3", "gemma3") for name in IN_DETAIL),
]


def reused(
    folder: Path,
    model: Any,
    rows: list[RowData],
    caplog: pytest.LogCaptureFixture,
    **arguments: Any,
) -> Course:
    """Training that did reuse."""
    course = course_of(trainer_of(folder, model, rows, **arguments))
    assert len(on_lines(caplog)) == 1
    assert not off_lines(caplog)
    return course


@pytest.mark.parametrize(("kind", "fields"), [case[::2] for case in CASES], ids=["-".join(case[:2]) for case in CASES])
def test_losses_and_gradients_are_those_of_the_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, fields: dict[str, Any]
) -> None:
    expected = plain_course(adapted(kind, **fields), ROWS, steps=2, evaluation=OTHER_ROWS)
    arguments = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    found = reused(tmp_path, adapted(kind, **fields), ROWS, caplog, evaluation=OTHER_ROWS, **arguments)
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("kind", "fields"), [("llama", {"positions": "f2+l2", "layers": [1, 2]}), ("gemma3", {"positions": "l2"})]
)
def test_batches_parts_and_evaluation_are_those_of_trainer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, fields: dict[str, Any]
) -> None:
    """Shuffled batches of 2, two a step, the last step of an epoch with less; rows of both sets in common."""
    rows = [*ragged(7, seed=1), ROWS[1]]
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "num_train_epochs": 3,
        "evaluation": [*OTHER_ROWS, rows[0]],
        "eval_strategy": "epoch",
        "per_device_eval_batch_size": 3,
    }
    expected = course_of(trainer_of(tmp_path, adapted(kind, **fields), rows, plain=True, **arguments))
    assert len(expected.losses) == 6 and len(expected.evaluated) == 3
    found = reused(tmp_path, adapted(kind, **fields), rows, caplog, **arguments)
    assert_same(found, expected)


def test_marked_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also packed; what is kept of a row ends before its first marked token."""
    rows: Any = [{**row, "spans": [int(i % 3 == 2) for i in range(len(row["input_ids"]))]} for row in ROWS]

    def model() -> Any:
        return adapted(layers=[1, 2], positions="span+l1", tie="group")

    expected = course_of(trainer_of(tmp_path, model(), rows, plain=True, max_steps=2))
    assert_same(course_of(trainer_of(tmp_path, model(), rows, max_steps=2, more={"packing": True})), expected)
    caplog.clear()
    assert_same(reused(tmp_path, model(), rows, caplog, max_steps=2), expected)


def loss_in_float64(hidden: Tensor, targets: Tensor, logits_of: Any, **more: Any) -> Tensor:
    return F.cross_entropy(logits_of(hidden), targets, reduction="sum")


@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
def test_float64(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Only the cross-entropy is float32, in transformers as here; without it nothing but the order of sums differs."""
    monkeypatch.setattr(loss_module, "chunked_cross_entropy", loss_in_float64)

    def model() -> Any:
        found = adapted(kind, base=tiny_model(kind, layers=3, dtype=torch.float64), layers=[1, 2], positions="f2+l2")
        return found.double()

    reference = model()
    batch = ReftCollator(word_tokenizer())(ROWS)
    logits = reference(**{key: batch[key] for key in batch if key != "labels"}).logits[:, :-1]
    assert logits.dtype == torch.float64
    F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
    found = reused(tmp_path, (trained := model()), ROWS, caplog, max_steps=2)
    for name, p in reference.named_parameters():
        if p.requires_grad:
            assert p.grad is not None and p.dtype == torch.float64
            torch.testing.assert_close(found.gradients[0][name], p.grad, rtol=1e-11, atol=1e-13)
    assert next(p for p in trained.parameters() if p.requires_grad).dtype == torch.float64


@pytest.mark.parametrize("reuse", ["auto", "off"])
@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rotary_embeddings_that_look_at_the_longest_row(tmp_path: Path, kind: str, reuse: str) -> None:
    """Beyond 12 tokens; the first rows, with which the replay is tried, are shorter."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 12}
    rope = {"rope_type": kind, "factor": 8.0, "rope_theta": 10000.0, **(factors if kind == "longrope" else {})}
    rows = [*ragged(2, prompts=(2, 6)), *ragged(4, seed=1, prompts=(14, 20))]

    def model() -> Any:
        length = 96 if kind == "longrope" else 12
        overrides = {"rope_parameters": rope, "max_position_embeddings": length}
        return adapted(base=tiny_model("llama", layers=3, overrides=overrides))

    found = course_of(trainer_of(tmp_path, model(), rows, max_steps=2, more={"reuse": reuse}))
    assert_same(found, plain_course(model(), rows, steps=2))


def test_two_active_adapters(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def model() -> Any:
        found = adapted(layers=[1], positions="l1")
        config = ReftConfig(r=2, layers=[1, 2], positions="f3", init="random", task_type="CAUSAL_LM")
        found.add_adapter("other", config)
        found.base_model.set_adapter(["default", "other"])
        return found

    expected = plain_course(model(), ROWS, steps=3)
    assert len([name for name in expected.gradients[0] if ".other." in name]) == 6
    assert_same(reused(tmp_path, model(), ROWS, caplog, max_steps=3), expected)


def marked(row: RowData, labels: list[int]) -> RowData:
    return {**row, "labels": labels}


def unusual_rows() -> list[RowData]:
    """Labels with gaps, a tail without labels, a prompt with labels of its own, a prompt behind the last label."""
    rows = ragged(5, seed=2, prompts=(4, 9), answers=6)
    ids = [row["input_ids"] for row in rows]
    n = [row["prompt_length"] for row in rows]
    gaps = [-100] * n[0] + [t if i % 2 else -100 for i, t in enumerate(ids[0][n[0] :])]
    gaps[-1] = ids[0][-1]
    tail = [-100] * n[1] + ids[1][n[1] : n[1] + 1] + [-100] * (len(ids[1]) - n[1] - 1)
    whole = [-100, *ids[2][1:]]
    early = [-100, ids[3][1]] + [-100] * (len(ids[3]) - 2)
    return [marked(row, labels) for row, labels in zip(rows, (gaps, tail, whole, early), strict=False)] + rows[4:]


@pytest.mark.parametrize("fields", [EVERYWHERE["l1 of the middle"], EVERYWHERE["f2+l2 of two"], MIXED])
def test_labels_of_any_form(tmp_path: Path, caplog: pytest.LogCaptureFixture, fields: dict[str, Any]) -> None:
    rows = unusual_rows()
    expected = plain_course(adapted(**fields), rows, steps=2)
    assert_same(reused(tmp_path, adapted(**fields), rows, caplog, max_steps=2), expected)


def test_rows_that_choose_subspaces(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{**row, "subspaces": [[0], [1], [0, 1]][i % 3]} for i, row in enumerate(ROWS)]
    fields = {"r": 4, "subspaces": [[0, 2], [1, 3]], "positions": "l2"}
    expected = plain_course(adapted(**fields), rows, steps=2)
    assert expected.losses != plain_course(adapted(**fields), ROWS, steps=2).losses
    assert_same(reused(tmp_path, adapted(**fields), rows, caplog, max_steps=2), expected)


def test_a_collator_that_pads_on_the_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    collator = ReftCollator(word_tokenizer(), padding_side="left", pad_to_multiple_of=8)
    expected = plain_course(adapted(positions="f2+l2"), ROWS, steps=2)
    found = reused(tmp_path, adapted(positions="f2+l2"), ROWS, caplog, collator=collator, max_steps=2)
    assert_same(found, expected)


def test_a_repeated_row_is_kept_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*ROWS, *ROWS[:4]]
    told: list[tuple[int, int]] = []
    more = {"on_fill": lambda done, total: told.append((done, total))}
    expected = plain_course(adapted(), rows, steps=2)
    assert_same(reused(tmp_path, adapted(), rows, caplog, max_steps=2, more=more), expected)
    assert told[-1] == (len(ROWS), len(ROWS))
    assert f"{len(ROWS)} examples" in on_lines(caplog)[0]


@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
def test_turns_of_a_conversation_are_computed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """A row of each answer, and what all rows begin with is in one call; other rows are computed beside them."""
    chats = [row["input_ids"] for row in ragged(3, seed=7, prompts=(30, 36))]
    rows = list(ROWS)
    for ids in chats:
        for prompt, end in ((9, 12), (20, 22), (20, 24), (29, len(ids))):
            labels = [-100] * prompt + ids[prompt:end]
            rows.append({"input_ids": ids[:end], "labels": labels, "prompt_length": prompt})
    rows.append({**rows[-1], "input_ids": [*rows[-1]["input_ids"][:-3], 3, 4, 5]})

    def model() -> Any:
        return adapted(kind, layers=[1, 2], positions="f1+l2")

    expected = plain_course(model(), rows, steps=2)
    trained = model()
    seen = tokens_through(trained.get_base_model().model.layers[0].mlp)
    caplog.clear()
    assert_same(reused(tmp_path, trained, rows, caplog, max_steps=2), expected)
    whole = [*(len(ids) for ids in chats), len(chats[-1]), *(len(row["input_ids"]) for row in ROWS)]
    # a row ends before its last token; the rows are also computed to try the replay, and padded
    assert sum(whole) - len(whole) <= sum(seen) < sum(len(row["input_ids"]) for row in rows) - len(rows)


class _Counts(TrainerCallback):
    """Tokens that went through the MLP of each block, up to the end of each step."""

    def __init__(self, model: Any) -> None:
        self.seen = [tokens_through(block.mlp) for block in model.get_base_model().model.layers]
        self.after: list[list[int]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.after.append([sum(counts) for counts in self.seen])


def test_only_the_window_is_computed_and_nothing_below_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answer = 3
    rows = [
        {**row, "input_ids": ids, "labels": [-100] * n + ids[n:]}
        for row in ragged(8, prompts=(4, 14), answers=1)
        for n in [row["prompt_length"]]
        for ids in [[*row["input_ids"][:n], *range(20, 20 + answer)]]
    ]
    model = adapted(depth=4, layers=[1, 3], positions="l1")
    counts = _Counts(model)
    arguments = {"per_device_train_batch_size": 4, "num_train_epochs": 4, "callbacks": [counts]}
    reused(tmp_path, model, rows, caplog, **arguments)
    assert len(counts.after) == 8
    first = counts.after[0]
    # the first step checks and fills: every token of every row but the last, which predicts nothing
    assert first[0] >= sum(len(row["input_ids"]) - 1 for row in rows)
    for before, after in zip(counts.after[:-1], counts.after[1:], strict=True):
        # l1 is the token before the answer, whose last token predicts nothing
        assert [b - a for a, b in zip(before, after, strict=True)] == [0, 0, 4 * answer, 4 * answer]


def test_evaluation_computes_the_window_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = adapted()
    seen = tokens_through(model.get_base_model().model.layers[0].mlp)
    trainer = trainer_of(tmp_path, model, ROWS, evaluation=OTHER_ROWS, eval_strategy="epoch", num_train_epochs=4)
    trainer.train()
    assert on_lines(caplog)
    before = len(seen)
    after_training = trainer.evaluate()["eval_loss"]
    trainer.evaluate(trainer.train_dataset)
    assert len(seen) == before
    # rows that training did not announce are computed whole
    trainer.evaluate(Dataset.from_list(ragged(3, seed=9)))
    assert len(seen) > before
    with torch.no_grad():
        by_hand = model.eval()(**ReftCollator(word_tokenizer())(OTHER_ROWS)).loss.item()
    assert after_training == pytest.approx(by_hand, rel=1e-6)


def test_the_size_is_said_before_the_rows_are_computed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[int, int, int]] = []
    rows = ragged(20)
    trainer = trainer_of(
        tmp_path,
        adapted(),
        rows,
        num_train_epochs=3,
        disable_tqdm=False,
        more={"on_fill": lambda done, total: told.append((done, total, len(on_lines(caplog))))},
    )
    trainer.train()
    assert [total for _, total, _ in told] == [20] * len(told)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told) and told[-1][0] == 20
    assert [said for _, _, said in told] == [1] * len(told)
    line = on_lines(caplog)[0]
    assert "20 examples" in line and "MB in CPU memory" in line
    # who is told shows a bar of their own
    assert "frozen prefix" not in capsys.readouterr().err


@pytest.mark.parametrize("disabled", [False, True])
def test_a_bar_unless_bars_are_off(tmp_path: Path, capsys: pytest.CaptureFixture[str], disabled: bool) -> None:
    trainer_of(tmp_path, adapted(), ROWS, max_steps=2, disable_tqdm=disabled).train()
    assert ("frozen prefix" in capsys.readouterr().err) is not disabled


def test_the_size_is_that_of_the_tensors(tmp_path: Path) -> None:
    """l1 of block 1 of 3: of each row the hidden states from the edit on, and one pair of keys and values before."""
    model = adapted()
    plan = frozen_plan(model)
    rows = rows_of(ReftCollator(word_tokenizer())(ROWS))
    assert isinstance(plan, FrozenPlan) and rows is not None
    windows = [len(row["input_ids"]) - row["prompt_length"] for row in ROWS]
    before = [row["prompt_length"] - 1 for row in ROWS]
    width, heads = 32, 2
    expected = 4 * (width * sum(windows) + 2 * heads * (width // 4) * sum(before))
    assert FrozenPrefix(model, plan, folder=tmp_path).size(rows) == expected


def test_off_is_silent_and_anything_else_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = plain_course(adapted(), ROWS, steps=2)
    found = course_of(trainer_of(tmp_path, adapted(), ROWS, max_steps=2, more={"reuse": "off"}))
    assert_same(found, expected)
    assert not on_lines(caplog) and not off_lines(caplog)
    with pytest.raises(ReftuneError, match=r"reuse='on' is not valid; use one of 'auto', 'off'"):
        trainer_of(tmp_path, adapted(), ROWS, more={"reuse": "on"})


def test_blocks_and_head_are_left_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted()
    base = model.get_base_model()
    modules = [*base.model.layers, base.lm_head]
    trainer_of(tmp_path, model, ROWS, max_steps=2).train()
    assert not [module for module in modules if "forward" in module.__dict__]

    calls = iter(range(100))
    real = loss_module.chunked_cross_entropy

    def fail_later(*args: Any, **kwargs: Any) -> Tensor:
        # beyond the comparisons before the first step
        if next(calls) == 4:
            raise RuntimeError("in the midst of a call")
        return real(*args, **kwargs)

    monkeypatch.setattr(loss_module, "chunked_cross_entropy", fail_later)
    with pytest.raises(RuntimeError, match="in the midst"):
        trainer_of(tmp_path, model, ROWS, max_steps=20).train()
    assert not [module for module in modules if "forward" in module.__dict__]


def test_the_cache_is_passed_by_the_name_that_the_model_has_for_it() -> None:
    """Up to transformers 5.23, and from 5.24 on; the old name is taken until 5.40."""

    class Before(torch.nn.Module):
        def forward(self, input_ids: Tensor, past_key_values: Any = None) -> None: ...

    class After(torch.nn.Module):
        def forward(self, input_ids: Tensor, cache: Any = None) -> None: ...

    assert (cache_name(Before()), cache_name(After())) == ("past_key_values", "cache")
