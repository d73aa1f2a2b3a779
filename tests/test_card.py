"""The card of a saved adapter: what it tells, that the Hub's own library reads its metadata, and whose it is.

Must not know: how a card is made.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from peft import PeftModel, get_peft_model
from transformers import TrainingArguments

from reftune import PromptStyle, ReftConfig, ReftTrainer
from reftune.card import Training, write_card
from reftune.models import save_adapter
from tests.models import tiny_model

BASE = "owner/tiny-model"


def adapted(**fields: Any) -> PeftModel:
    base = tiny_model("llama")
    base.config._name_or_path = base.name_or_path = BASE
    model = get_peft_model(base, ReftConfig(**{"r": 2, "positions": "f1+l2", "task_type": "CAUSAL_LM", **fields}))
    assert isinstance(model, PeftModel)
    return model


def card_of(folder: Path) -> Any:
    """As the Hub's library reads it; metadata that are not valid raise."""
    return ModelCard.load(folder / "README.md", ignore_metadata_errors=False)


def test_every_save_writes_what_the_hub_reads_and_what_a_reader_needs(tmp_path: Path) -> None:
    model = adapted(groups=[{"positions": "f1", "layers": [0]}, {"positions": "l1", "intervention": "direft"}])
    config: Any = model.peft_config["default"]
    config.prompt_style = PromptStyle("messages", system="Be brief.")
    model.save_pretrained(str(tmp_path))
    card = card_of(tmp_path)
    assert (card.data.base_model, card.data.library_name, card.data.pipeline_tag) == (BASE, "peft", "text-generation")
    assert {"reft", "peft", "loreft", "direft", f"base_model:adapter:{BASE}"} <= set(card.data.tags)
    trained, _ = model.get_nb_trainable_parameters()
    assert f"{trained:,}" in card.text
    assert "| loreft | f1 | all | 0 | block_output | 2 |" in card.text
    assert "| direft | l1 | all | all | block_output | 2 |" in card.text
    code = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)[0]
    assert "import reftune" in code and f"'{BASE}'" in code
    compile(code, "card", "exec")
    assert "| prompts are written | by the chat template with the system turn" in card.text
    assert "More Information Needed" not in card.text


def test_training_is_told(tmp_path: Path) -> None:
    model = adapted()
    rows = [{"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, -100, 4, 5]}] * 6
    options = {"save_strategy": "epoch", "report_to": "none", "logging_steps": 1, "use_cpu": True, "seed": 7}
    arguments = TrainingArguments(str(tmp_path / "run"), learning_rate=3e-3, num_train_epochs=2, **options)
    trainer = ReftTrainer(model, arguments, tiny_batch, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    trainer.tell_card("somewhere/on/this/machine/train.jsonl")
    save_adapter(model, tmp_path / "saved")
    card = card_of(tmp_path / "saved")
    first, *_, last = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert re.search(rf"\| training loss \| {first:.4g} [▁-█]+ {last:.4g} \|", card.text)
    for line in (
        "| rows | 6 |",
        "| epochs | 2 |",
        "| learning rate | 0.003 |",
        "| seed | 7 |",
        "| data | train.jsonl |",
    ):
        assert line in card.text, line
    assert "somewhere" not in card.text and card.data.datasets is None
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("loss", pytest.approx(loss, abs=1e-4))
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-2")
    assert "| steps | 2 |" in card_of(checkpoint).text


def tiny_batch(examples: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    return {name: torch.tensor([example[name] for example in examples]) for name in examples[0]}


def test_folders_of_this_machine_are_no_names_on_the_hub(tmp_path: Path) -> None:
    model = adapted()
    (tmp_path / "secret/model").mkdir(parents=True)
    config: Any = model.peft_config["default"]
    config.base_model_name_or_path = str(tmp_path / "secret/model")
    model.save_pretrained(str(tmp_path / "saved"))
    card = card_of(tmp_path / "saved")
    assert card.data.base_model is None and not any("secret" in tag for tag in card.data.tags)
    assert "| base model | model |" in card.text and "secret" not in card.text


def test_data_of_the_hub_are_named(tmp_path: Path) -> None:
    adapted().save_pretrained(str(tmp_path))
    write_card(tmp_path, Training({}, data="owner/rows"))
    assert card_of(tmp_path).data.datasets == ["owner/rows"]


def test_a_card_of_somebody_else_is_left_and_a_licence_stays(tmp_path: Path) -> None:
    model, path = adapted(), tmp_path / "README.md"
    save_adapter(model, tmp_path)
    path.write_text(path.read_text("utf-8").replace("---\n", "---\nlicense: mit\n", 1), encoding="utf-8")
    model.save_pretrained(str(tmp_path))
    assert card_of(tmp_path).data.license == "mit"
    path.write_text("---\nlicense: mit\n---\n\n# Mine\n", encoding="utf-8")
    save_adapter(model, tmp_path)
    assert path.read_text("utf-8").endswith("# Mine\n")
    write_card(tmp_path)
    assert path.read_text("utf-8").endswith("# Mine\n")
