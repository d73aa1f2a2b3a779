"""How prompts were written is kept beside every adapter that was trained on our data, whoever saves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import TrainingArguments

from reftune import DataError, PromptStyle, ReftConfig, ReftTrainer, build_dataset
from reftune.models import load_adapter, save_adapter
from tests.training.text_models import CHATS, PAIRS, save_base, text_model, word_tokenizer

SYSTEM = {"role": "system", "content": "w1 w2"}
LED = [{"messages": [SYSTEM, *record["messages"]]} for record in CHATS]
LORA = LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM")


def trainer(folder: Path, dataset: Any, config: PeftConfig | None = None) -> ReftTrainer:
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=2, save_steps=1, report_to="none", disable_tqdm=True, use_cpu=True
    )
    model = get_peft_model(text_model(), config or ReftConfig(r=1, positions="l1", task_type="CAUSAL_LM"))
    tokenizer = word_tokenizer()
    return ReftTrainer(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer)


@pytest.mark.parametrize(
    ("records", "style"),
    [
        (PAIRS, PromptStyle("prompt")),
        (CHATS, PromptStyle("messages")),
        (LED, PromptStyle("messages", "w1 w2")),
        ([*LED, *CHATS], PromptStyle("messages")),
        ([*PAIRS, *CHATS], None),
    ],
)
def test_a_data_set_knows_its_style(tmp_path: Path, records: Any, style: PromptStyle | None) -> None:
    dataset = build_dataset(list(records), word_tokenizer())
    dataset.save_to_disk(str(tmp_path / "disk"))
    for changed in (
        dataset,
        dataset.shuffle(seed=0).select(range(2)),
        dataset.train_test_split(2)["train"],
        dataset.map(lambda row: {"length": len(row["input_ids"])}),
        datasets.concatenate_datasets([dataset, dataset]),
        datasets.load_from_disk(str(tmp_path / "disk")),
    ):
        assert PromptStyle.of_dataset(changed) == style
    both = datasets.concatenate_datasets([dataset, build_dataset(list(LED), word_tokenizer())])
    expected = None if style is None or style.style == "prompt" else PromptStyle("messages", style.system)
    assert PromptStyle.of_dataset(both) == expected
    assert PromptStyle.of_dataset(datasets.Dataset.from_list(PAIRS)) is None
    assert PromptStyle.of_dataset([1, 2]) is None


@pytest.mark.parametrize("config", [None, LORA], ids=["reft", "lora"])
def test_checkpoints_and_what_is_saved_have_it(tmp_path: Path, config: PeftConfig | None) -> None:
    made = trainer(tmp_path / "run", build_dataset(list(LED), word_tokenizer()).shuffle(seed=1), config)
    made.train()
    made.save_model(str(tmp_path / "model"))
    save_adapter(made.model, tmp_path / "saved")  # type: ignore[arg-type]
    folders = [
        tmp_path / "run" / "checkpoint-1",
        tmp_path / "run" / "checkpoint-2",
        tmp_path / "model",
        tmp_path / "saved",
    ]
    if config is None:
        made.model.save_pretrained(tmp_path / "own")  # type: ignore[union-attr]
        folders.append(tmp_path / "own")
    for folder in folders:
        assert PromptStyle.read(folder) == PromptStyle("messages", "w1 w2"), folder
        assert "prompt_style" not in json.loads((folder / "adapter_config.json").read_text())


def test_without_our_data_nothing_is_written_unless_it_is_told(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"input_ids": [9, 10, 11], "prompt_length": 2}] * 4)
    trainer(tmp_path / "unknown", rows).train()
    assert PromptStyle.read(tmp_path / "unknown" / "checkpoint-2") is None
    config = ReftConfig(r=1, positions="l1", task_type="CAUSAL_LM")
    config.prompt_style = PromptStyle.of_records(PAIRS)
    trainer(tmp_path / "told", rows, config).train()
    assert PromptStyle.read(tmp_path / "told" / "checkpoint-2") == PromptStyle("prompt")


def test_what_is_loaded_and_saved_again_keeps_it(tmp_path: Path) -> None:
    config = ReftConfig(r=1, positions="l1", task_type="CAUSAL_LM")
    config.prompt_style = PromptStyle("messages", "w1 w2")
    model = get_peft_model(text_model(), config)
    model.save_pretrained(tmp_path / "one")
    PeftModel.from_pretrained(text_model(), tmp_path / "one").save_pretrained(tmp_path / "two")
    loaded, _ = load_adapter(tmp_path / "two", base=str(save_base(tmp_path / "base")))
    save_adapter(loaded, tmp_path / "three")
    assert PromptStyle.read(tmp_path / "three") == config.prompt_style
    # adapters of other names have folders of their own
    model.add_adapter("other", ReftConfig(r=1, positions="f1", task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "several")
    assert PromptStyle.read(tmp_path / "several") == config.prompt_style
    assert PromptStyle.read(tmp_path / "several" / "other") is None


def test_a_style_that_cannot_be_is_refused_when_the_adapter_is_loaded(tmp_path: Path) -> None:
    get_peft_model(text_model(), ReftConfig(r=1, positions="l1", task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    (tmp_path / "reftune.json").write_text('{"style": "messages", "system": 5}')
    with pytest.raises(DataError, match=r"reftune\.json.*system=5"):
        PeftModel.from_pretrained(text_model(), tmp_path)
    # before the base model is looked for
    with pytest.raises(DataError, match=r"reftune\.json.*system=5"):
        load_adapter(tmp_path, base="no/model")
