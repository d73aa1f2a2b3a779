"""Trainers that do not say where prompts end: right, refused, or told; never trained at other tokens in silence."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from reftune import PositionError, ReftConfig
from reftune.data import ReftCollator
from tests.models import random_tokens
from tests.training.test_trl import PAIRS, PROMPTS, arguments, base_model, reft, sft_trainer, word_tokenizer
from tests.tuner.adapters import adapted

LABELLED = {"input_ids": random_tokens(2, 6), "labels": random_tokens(2, 6)}
LABELLED["labels"][:, :3] = -100


@pytest.mark.parametrize("positions", ["l1", "f1+l1", "prompt", "response"])
def test_training_without_a_word_of_prompts_is_refused(positions: str) -> None:
    model = adapted(positions=positions).train()
    with pytest.raises(
        PositionError, match=r"(?s)neither labels nor prompt_length.*ReftCollator.*ORPO.*unknown_prompt"
    ) as e:
        model(input_ids=LABELLED["input_ids"])
    assert repr(positions) in str(e.value)
    model(input_ids=LABELLED["input_ids"], prompt_length=[3, 3]).logits.sum().backward()
    with torch.no_grad():
        model(input_ids=LABELLED["input_ids"])


def test_positions_that_need_no_end_are_trained_and_short_prompts_are_told_of() -> None:
    adapted(positions="all").train()(input_ids=LABELLED["input_ids"])
    with pytest.warns(UserWarning, match="every prompt has at least 2 tokens"):
        adapted(positions="f2").train()(input_ids=LABELLED["input_ids"])


def test_one_option_opens_it() -> None:
    model = adapted(positions="l1", unknown_prompt="whole").train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model(input_ids=LABELLED["input_ids"]).logits.sum().backward()
    with pytest.raises(ValueError, match=r"unknown_prompt='maybe'.*'refuse', 'whole'"):
        ReftConfig(unknown_prompt="maybe")


def test_whole_texts_of_a_classifier_are_prompts() -> None:
    model = adapted("bert", positions="l1").train()
    model(input_ids=LABELLED["input_ids"], labels=torch.tensor([0, 1])).loss.backward()


def test_the_same_tokens_without_their_labels_are_told_of() -> None:
    model = adapted(positions="l1")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model(input_ids=LABELLED["input_ids"])
        model(**LABELLED)
        model(input_ids=random_tokens(2, 6, seed=5))
        model(input_ids=LABELLED["input_ids"], prompt_length=[3, 3])
        with pytest.raises(UserWarning, match=r"came with labels just before.*compute_metrics"):
            model(input_ids=LABELLED["input_ids"])


def test_several_labelled_stretches_are_told_of() -> None:
    ids, labels = random_tokens(1, 8), random_tokens(1, 8)
    labels[0, [0, 1, 4, 5]] = -100
    with pytest.warns(UserWarning, match="several labelled stretches"):
        adapted(positions="l1")(input_ids=ids, labels=labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adapted(positions="f1")(input_ids=ids, labels=labels)
        # two texts in one row are no turns
        packed = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
        adapted(positions="l1")(input_ids=ids, labels=labels, position_ids=packed)


# --- the trainers of TRL ----------------------------------------------------------------------------------------------


def preferences(*, messages: bool = False) -> Dataset:
    rows = [{"prompt": prompt, "chosen": " w40 w41", "rejected": " w50 w51"} for prompt in PROMPTS]
    if messages:
        rows = [{name: [{"role": "user", "content": text}] for name, text in row.items()} for row in rows]
    return Dataset.from_list(rows)


def chats() -> Dataset:
    rows = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"].strip()}]
        for row in PAIRS
    ]
    return Dataset.from_list([{"messages": row} for row in rows])


def orpo(folder: Path, config: ReftConfig) -> Any:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return made(ORPOTrainer, ORPOConfig, folder, config, train_dataset=preferences())


def cpo(folder: Path, config: ReftConfig) -> Any:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return made(CPOTrainer, CPOConfig, folder, config, train_dataset=preferences())


def gkd(folder: Path, config: ReftConfig) -> Any:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    more = {"lmbda": 0.0, "teacher_model": base_model()}
    return made(GKDTrainer, GKDConfig, folder, config, train_dataset=chats(), **more)


def made(trainer: Any, arguments_of: Any, folder: Path, config: ReftConfig, **more: Any) -> Any:
    settings = {name: more.pop(name) for name in list(more) if name in ("lmbda",)}
    given = arguments(folder, max_steps=1, gradient_checkpointing=False, **settings)
    return trainer(
        model=base_model(), args=arguments_of(**given), processing_class=word_tokenizer(), peft_config=config, **more
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", [orpo, cpo, gkd])
def test_trainers_without_labels_are_refused(make: Any, tmp_path: Path) -> None:
    with pytest.raises(PositionError, match="neither labels nor prompt_length"):
        make(tmp_path, reft()).train()
    make(tmp_path, reft(positions="all")).train()
    make(tmp_path, reft(unknown_prompt="whole")).train()


@pytest.mark.slow
def test_metrics_of_sft_are_of_the_edits_of_the_loss_or_told_of(tmp_path: Path) -> None:
    def trainer(**more: Any) -> Any:
        made = sft_trainer(tmp_path, base_model(), max_steps=1, eval_strategy="no", **more)
        made.eval_dataset = made.train_dataset
        made.compute_metrics = lambda prediction: {}
        return made

    with pytest.warns(UserWarning, match="came with labels just before"):
        trainer().evaluate()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*came with labels")
        trainer(collator=ReftCollator(word_tokenizer())).evaluate()


@pytest.mark.slow
def test_a_trainer_of_ones_own_that_takes_the_labels_away(tmp_path: Path) -> None:
    class Own(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return model(input_ids=inputs["input_ids"]).logits.square().mean()

    rows = [{name: value[0].tolist() for name, value in LABELLED.items()}]
    given = TrainingArguments(str(tmp_path), use_cpu=True, max_steps=1, report_to="none", disable_tqdm=True)
    with pytest.raises(PositionError, match="neither labels nor prompt_length"):
        Own(model=adapted(positions="l1"), args=given, train_dataset=Dataset.from_list(rows)).train()
