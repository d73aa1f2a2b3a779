"""Scoring by vLLM: the answers of transformers, for the base, ReFT adapters and LoRAs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from reftune import ReftConfig, ReftuneError
from reftune.data.spans import MARKERS
from reftune.generation import generate_texts
from reftune.models import load_adapter, load_base
from tests.serving.folders import save_text_base, text_model
from tests.serving.vllm.engines import prepare

pytestmark = pytest.mark.vllm

PROMPTS = [" ".join(f"w{(7 * i + j) % 50}" for j in range(2 + i % 5)) for i in range(9)]
REFT = ReftConfig(task_type="CAUSAL_LM", r=3, positions="f1+l2", init="random", form="delta", alpha=4.0)
MARKED = ReftConfig(task_type="CAUSAL_LM", r=3, positions="span", init="random", form="delta", alpha=4.0)
LORA = peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj", "v_proj"], init_lora_weights=False)


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> None:
    prepare()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("offline")
    save_text_base(place / "base", hidden=128)
    for name, config in (("reft", REFT), ("marked", MARKED), ("lora", LORA)):
        torch.manual_seed(3)
        model = peft.get_peft_model(text_model(hidden=128), config)
        model.save_pretrained(place / name)
    return place


@pytest.mark.parametrize("name", [None, "reft", "marked", "lora"])
def test_answers_are_those_of_transformers(folder: Path, name: str | None) -> None:
    from reftune.serving.vllm.offline import VllmEngine

    base, adapter = str(folder / "base"), None if name is None else str(folder / name)
    begin, end = MARKERS if name == "marked" else ("", "")
    records: list[Any] = [{"prompt": f"{begin}{prompt[:2]}{end}{prompt[2:]}"} for prompt in PROMPTS]
    engine = VllmEngine(base, adapter)
    try:
        found = {i: text for batch in engine.batches(records, max_new_tokens=8) for i, text in batch}
        with pytest.raises(ReftuneError, match="num_beams=2"):
            next(engine.batches(records, num_beams=2))
        with pytest.raises(ReftuneError, match="prompt 1 has"):
            next(engine.batches([" ".join(["w1"] * 5000)], max_new_tokens=1))
    finally:
        engine.close()
    model, tokenizer = load_base(base) if adapter is None else load_adapter(adapter, base=base)
    wanted = generate_texts(model, tokenizer, records, max_new_tokens=8)
    assert [found[i].strip() for i in range(len(records))] == wanted
    assert len(set(wanted)) > 1
    if adapter is not None:
        plain, tokenizer = load_base(base)
        assert generate_texts(plain, tokenizer, records, max_new_tokens=8) != wanted
