"""Records that choose parts of the rank by their column `subspaces`: in training, in generation, in evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from reftune import ReftConfig
from reftune.data import ReftCollator, build_dataset
from reftune.errors import DataError, ReftuneError
from reftune.generation import generate_texts
from reftune.training import ReftTrainer, RunConfig, train_run
from tests.training.text_models import PAIRS, save_base, text_model, word_tokenizer

ROWS: list[dict[str, Any]] = [{**pair, "subspaces": [i % 2]} for i, pair in enumerate(PAIRS)]


def parted(**more: Any) -> Any:
    torch.manual_seed(0)
    fields = {"r": 4, "positions": "l1", "init": "random", "task_type": "CAUSAL_LM"}
    return get_peft_model(text_model(), ReftConfig(**{"subspaces": [[0, 1], [2, 3]], **fields, **more})).eval()


def test_the_column_reaches_the_batches() -> None:
    tokenizer = word_tokenizer()
    dataset = build_dataset(ROWS, tokenizer)
    assert dataset["subspaces"] == [[i % 2] for i in range(8)]
    assert ReftCollator(tokenizer)([dataset[0], dataset[1]])["subspaces"] == [[0], [1]]
    as_text = build_dataset([{**row, "subspaces": str(row["subspaces"])} for row in ROWS], tokenizer)
    assert as_text["subspaces"] == dataset["subspaces"], "as CSV has it"
    assert "subspaces" not in build_dataset(list(PAIRS), tokenizer).column_names


@pytest.mark.parametrize(
    ("value", "told"),
    [(1, "int 1"), ([-1], r"\[-1\]"), ([True], r"\[True\]"), (["0"], "list"), ("x", "not JSON"), ([], "nothing")],
)
def test_what_is_no_list_of_parts_is_refused_with_its_row(value: Any, told: str) -> None:
    with pytest.raises(DataError, match=f"row 2: 'subspaces' .*{told}"):
        build_dataset([ROWS[0], {**ROWS[1], "subspaces": value}], word_tokenizer())


def test_all_rows_choose_or_none() -> None:
    with pytest.raises(DataError, match="row 2 has no 'subspaces'"):
        build_dataset([ROWS[0], PAIRS[1]], word_tokenizer())


def test_parts_that_the_adapter_has_not_are_refused_before_training(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    dataset = build_dataset([{**row, "subspaces": [2]} for row in ROWS], tokenizer)
    with pytest.raises(ReftuneError, match=r"the part 2 .*0\.\.1"):
        ReftTrainer(model=parted(), train_dataset=dataset, processing_class=tokenizer)
    with pytest.raises(ReftuneError, match="configuration has none"):
        ReftTrainer(model=parted(subspaces=None), train_dataset=dataset, processing_class=tokenizer)


def test_a_run_trains_only_the_parts_that_its_rows_name(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    reft = {"r": 4, "subspaces": [[0, 1], [2, 3]], "positions": "l1", "layers": [1]}
    training = {"num_train_epochs": 1, "learning_rate": 1e-2, "save_strategy": "no", "disable_tqdm": True}
    rows = [{**row, "subspaces": [1]} for row in ROWS]
    run = RunConfig(model=str(base), data=rows, output=str(tmp_path / "a"), reft=reft, training=training)
    found = {name.rpartition(".")[2]: p for name, p in train_run(run).model.named_parameters() if p.requires_grad}
    for name in ("dW", "b"):
        assert not found[name][:2].any() and found[name][2:].any()


def test_records_choose_the_parts_that_answer_them() -> None:
    model, tokenizer = parted(), word_tokenizer()
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data *= 6
    prompts = [{"prompt": row["prompt"]} for row in ROWS]
    said = generate_texts(
        model, tokenizer, [{**p, "subspaces": [i % 2]} for i, p in enumerate(prompts)], max_new_tokens=4
    )
    given: dict[str, Any] = {"subspaces": [[i % 2] for i in range(8)]}
    assert said == generate_texts(model, tokenizer, prompts, max_new_tokens=4, **given)
    assert said != generate_texts(model, tokenizer, prompts, max_new_tokens=4)
    with pytest.raises(DataError, match="the prompts: row 2 has no 'subspaces'"):
        generate_texts(model, tokenizer, [{**prompts[0], "subspaces": [0]}, prompts[1]], max_new_tokens=4)
    # a model without adapter is asked the same rows
    plain = generate_texts(text_model(), tokenizer, ROWS, max_new_tokens=4)
    assert plain == generate_texts(text_model(), tokenizer, prompts, max_new_tokens=4)
