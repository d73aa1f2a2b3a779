"""Answers by teacher forcing: those that greedy decoding gives, whatever is replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments, set_seed

from reftune import ReftConfig, ReftTrainer, build_dataset, generate_texts
from reftune.training import SharedPrefix
from reftune.training.forced import forced, rows_to_force
from reftune.training.shared import adapted
from tests.training.text_models import PAIRS, text_model, word_tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("sharing", [False, True])
def test_right_is_what_greedy_decoding_gives(tmp_path: Path, sharing: bool) -> None:
    set_seed(1)
    tokenizer, base = word_tokenizer(), text_model()
    config = ReftConfig(r=8, positions="l3", layers="all", task_type="CAUSAL_LM")
    learnt, others = PAIRS[:1], PAIRS[1:]
    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=60,
        learning_rate=5e-2,
        per_device_train_batch_size=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    shared = SharedPrefix([config], 2, folder=tmp_path / "shared") if sharing else None
    with adapted(base, config) as model:
        data = build_dataset(learnt, tokenizer)
        trainer = ReftTrainer(model, arguments, train_dataset=data, processing_class=tokenizer, shared=shared)
        trainer.train()
        # all but the first were never seen by what is replayed
        rows = rows_to_force(trainer, build_dataset([*learnt, *others], tokenizer))
        found = forced(trainer, rows)
        asked: list[Any] = [{"prompt": pair["prompt"]} for pair in [*learnt, *others]]
        model.eval()
        answers = generate_texts(model, tokenizer, asked, max_new_tokens=4)
        right = [a.strip() == p["completion"].strip() for a, p in zip(answers, [*learnt, *others], strict=True)]
        assert found.right == right and 0 < sum(right) < len(right)
        assert found.share == sum(right) / len(right)
        if shared is not None:
            assert trainer._frozen is not None and all(trainer._frozen.holds(row) for row in rows)
        evaluated = trainer.evaluate(build_dataset([*learnt, *others], tokenizer))
        assert found.loss == pytest.approx(evaluated["eval_loss"], rel=1e-5)
