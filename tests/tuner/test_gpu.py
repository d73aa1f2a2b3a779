"""What could differ on a GPU: mixed precision, a 4-bit base, compiled code, several streams, reuse, padded batches.

`REFTUNE_GPU_TESTS=cpu` runs them without one, to see that they run.
"""

from __future__ import annotations

import importlib.util
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainingArguments

from reftune import ReftConfig, ReftTrainer
from tests.conftest import GPU_TESTS
from tests.models import random_tokens, tiny_model
from tests.training.text_models import word_tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::FutureWarning:transformers")]


def adapted(base: Any = None, **fields: Any) -> Any:
    config = ReftConfig(**{"r": 2, "positions": "f2+l2", "init": "random", "task_type": "CAUSAL_LM", **fields})
    torch.manual_seed(0)
    return get_peft_model(tiny_model("llama") if base is None else base, config)


def batch(device: str, rows: int = 4, length: int = 12, seed: int = 0) -> dict[str, Tensor]:
    ids = random_tokens(rows, length, seed=seed)
    labels = ids.masked_fill(torch.arange(length) < 7, -100)
    return {"input_ids": ids.to(device), "labels": labels.to(device)}


def loss_and_gradients(model: Any, given: dict[str, Tensor], call: Any = None) -> tuple[float, Tensor]:
    model.zero_grad()
    loss = (model if call is None else call)(**given, use_cache=False).loss
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert {g.dtype for g in gradients} == {torch.float32}
    return float(loss.detach()), torch.cat([g.flatten() for g in gradients]).cpu()


def close(found: tuple[float, Tensor], wanted: tuple[float, Tensor], tolerance: float) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=tolerance)
    assert float((found[1] - wanted[1]).norm() / wanted[1].norm()) < tolerance


@pytest.mark.parametrize("kind", ["float32", "autocast bfloat16", "autocast float16", "bfloat16 base"])
def test_mixed_precision(kind: str) -> None:
    wanted = loss_and_gradients(adapted(), batch("cpu"))
    base = tiny_model("llama", dtype=torch.bfloat16 if kind == "bfloat16 base" else torch.float32)
    model = adapted(base).to(GPU_TESTS)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    cast = nullcontext()
    if kind.startswith("autocast"):
        cast = torch.autocast(GPU_TESTS, getattr(torch, kind.split()[1]))
    with cast:
        found = loss_and_gradients(model, batch(GPU_TESTS))
    # bfloat16 rounds to 4e-3, four blocks deep and back
    close(found, wanted, 2e-4 if kind == "float32" else 5e-2)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs the package bitsandbytes")
def test_a_4bit_base(tmp_path: Path) -> None:
    # 4-bit weights are scaled in blocks of 64
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    tiny_model("llama", overrides=sizes).save_pretrained(tmp_path)
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=options, device_map=GPU_TESTS)
    plain = base(**batch(GPU_TESTS)).loss
    model = adapted(base, init="identity").train()
    loss, gradient = loss_and_gradients(model, batch(GPU_TESTS))
    assert loss == pytest.approx(float(plain), rel=1e-2)
    assert bool(gradient.isfinite().all()) and bool(gradient.any())


def test_several_streams() -> None:
    model = adapted().to(GPU_TESTS)
    given = [batch(GPU_TESTS, rows=1, length=9 + i, seed=i) for i in range(4)]
    with torch.no_grad():
        wanted = [model(**one).logits for one in given]
    found: dict[int, list[Tensor]] = {}

    def work(index: int) -> None:
        stream = torch.cuda.stream(torch.cuda.Stream()) if GPU_TESTS != "cpu" else nullcontext()
        with torch.no_grad(), stream:
            found[index] = [model(**given[index]).logits for _ in range(10)]
            if GPU_TESTS != "cpu":
                torch.cuda.current_stream().synchronize()

    if GPU_TESTS != "cpu":
        torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, logits in found.items():
        for one in logits:
            torch.testing.assert_close(one, wanted[index], rtol=1e-4, atol=1e-4)
    assert len(found) == 4


def losses(folder: Path, reuse: str) -> tuple[list[float], bool]:
    """Of a training, and whether anything was replayed."""
    model = adapted(layers=[2], positions="l1")
    rows = [ids.tolist() for ids in random_tokens(8, 24)]
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        max_steps=8,
        logging_steps=1,
        learning_rate=1e-2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=GPU_TESTS == "cpu",
    )
    trainer = ReftTrainer(
        model,
        arguments,
        train_dataset=[{"input_ids": ids, "labels": [-100] * 20 + ids[20:], "prompt_length": 20} for ids in rows],
        processing_class=word_tokenizer(),
        reuse=reuse,
    )
    trainer.train()
    found = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return found, trainer._frozen is not None


def test_training_with_reuse_from_the_memory_of_the_device(tmp_path: Path) -> None:
    with_it, replayed = losses(tmp_path / "with", "auto")
    without, plain = losses(tmp_path / "without", "off")
    assert replayed and not plain
    assert with_it == pytest.approx(without, rel=1e-3)
    # two steps are all rows
    assert sum(with_it[-2:]) < sum(with_it[:2])


def test_a_padded_batch_generates_what_each_row_does() -> None:
    model = adapted().to(GPU_TESTS).eval()
    rows = [random_tokens(1, length, seed=length)[0] for length in (5, 9, 7)]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        wanted = [model.generate(input_ids=ids[None].to(GPU_TESTS), **options)[0, len(ids) :] for ids in rows]
        width = max(map(len, rows))
        padded = torch.stack([torch.nn.functional.pad(ids, (width - len(ids), 0)) for ids in rows]).to(GPU_TESTS)
        found = model.generate(input_ids=padded, attention_mask=(padded != 0).long(), **options)[:, width:]
    assert torch.equal(found, torch.stack(wanted))


# last: it takes longest
def test_compiled() -> None:
    torch.compiler.reset()
    model = adapted(tiny_model("llama", layers=2)).to(GPU_TESTS)
    eager = loss_and_gradients(model, batch(GPU_TESTS))
    backend = "aot_eager" if GPU_TESTS == "cpu" else "inductor"
    call = torch.compile(model, backend=backend, fullgraph=True)
    # float32 in another order
    close(loss_and_gradients(model, batch(GPU_TESTS), call), eager, 1e-3)
