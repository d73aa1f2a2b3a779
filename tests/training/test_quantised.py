"""A quantised base: interventions stay float32 whatever a trainer casts, and train, save, reload and generate.

Must not know: how interventions are applied.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from reftune import ReftConfig
from tests.models import random_tokens, tiny_model

CONFIG = {"r": 4, "positions": "f2+l2", "task_type": "CAUSAL_LM"}
BITS = ("8bit", "4bit")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs the package bitsandbytes"
)


def interventions(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def cast_as_trl_does(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)


def said_to_be_quantised() -> Any:
    model = tiny_model("llama", layers=2)
    model.hf_quantizer = SimpleNamespace()
    return model


def test_a_cast_before_training_is_undone_exactly() -> None:
    model = get_peft_model(said_to_be_quantised(), ReftConfig(**CONFIG))
    before = interventions(model)
    cast_as_trl_does(model)
    assert {p.dtype for p in interventions(model).values()} == {torch.bfloat16}
    model.train()
    after = interventions(model)
    assert all(p.dtype == torch.float32 and torch.equal(p, before[name]) for name, p in after.items())


def test_weights_that_are_loaded_after_a_cast_keep_all_their_digits(tmp_path: Path) -> None:
    model = get_peft_model(said_to_be_quantised(), ReftConfig(**CONFIG, init="random"))
    trained = interventions(model)
    model.save_pretrained(tmp_path)

    other = get_peft_model(said_to_be_quantised(), ReftConfig(**CONFIG, init="random"))
    cast_as_trl_does(other)
    peft.set_peft_model_state_dict(other, load_file(tmp_path / "adapter_model.safetensors"))
    assert all(torch.equal(p, trained[name]) for name, p in interventions(other).items())

    again = PeftModel.from_pretrained(said_to_be_quantised(), str(tmp_path), is_trainable=True)
    cast_as_trl_does(again)
    again.train()
    assert all(torch.equal(p, trained[name]) for name, p in interventions(again).items())


def test_what_was_trained_in_between_is_widened_not_reset() -> None:
    model = get_peft_model(said_to_be_quantised(), ReftConfig(**CONFIG))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 1
    trained = interventions(model)
    cast_as_trl_does(model)
    model.eval()
    for name, parameter in interventions(model).items():
        assert torch.equal(parameter, trained[name].bfloat16().float())


def test_a_dtype_that_the_user_chose_stays() -> None:
    narrow = get_peft_model(said_to_be_quantised().bfloat16(), ReftConfig(**CONFIG), autocast_adapter_dtype=False)
    assert {p.dtype for p in interventions(narrow.train()).values()} == {torch.bfloat16}
    plain = get_peft_model(tiny_model("llama", layers=2), ReftConfig(**CONFIG)).bfloat16()
    assert {p.dtype for p in interventions(plain.train()).values()} == {torch.bfloat16}


@pytest.fixture(scope="module")
def saved_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # wide enough for blocks of 64 weights, by which 4 bits are scaled
    path = tmp_path_factory.mktemp("base")
    tiny_model("llama", overrides={"hidden_size": 128, "intermediate_size": 256}).save_pretrained(path)
    return path


def load_quantised(path: Path, bits: str) -> Any:
    from transformers import BitsAndBytesConfig

    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32} if bits == "4bit" else {}
    config = BitsAndBytesConfig(**{f"load_in_{bits}": True}, **options)
    model = AutoModelForCausalLM.from_pretrained(
        path, quantization_config=config, device_map="cpu", dtype=torch.float32
    )
    model.generation_config.eos_token_id = None
    return model


@needs_bitsandbytes
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize("bits", BITS)
def test_quantised_base_trains_saves_reloads_and_generates(saved_base: Path, bits: str, tmp_path: Path) -> None:
    ids = random_tokens(4, 12)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = ids.masked_fill(torch.arange(12) < 6, -100)
    # Training mode all along: on some CPUs a forward in eval mode makes bitsandbytes repack its 4-bit weights for
    # inference, after which no gradient passes through them, whatever the adapter.
    base = prepare_model_for_kbit_training(load_quantised(saved_base, bits)).train()
    with torch.no_grad():
        of_base = base(**batch).logits
    model = get_peft_model(base, ReftConfig(**CONFIG)).train()
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, of_base), "a fresh adapter changes the quantised base"
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert {p.dtype for p in trained} == {torch.float32}
    parameters = dict(model.named_parameters())
    assert all(torch.equal(p, parameters[name]) for name, p in frozen.items())

    model.eval().save_pretrained(tmp_path)
    prompt = {"input_ids": ids[:, :6], "attention_mask": torch.ones(4, 6, dtype=torch.long)}
    reloaded = PeftModel.from_pretrained(load_quantised(saved_base, bits), str(tmp_path)).eval()
    expected = model.generate(**prompt, max_new_tokens=6, do_sample=False)
    assert torch.equal(reloaded.generate(**prompt, max_new_tokens=6, do_sample=False), expected)
    with torch.no_grad():
        as_base = load_quantised(saved_base, bits).generate(**prompt, max_new_tokens=6, do_sample=False)
    assert not torch.equal(expected, as_base)


@needs_bitsandbytes
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_trl_trains_float32_interventions_on_a_quantised_base(saved_base: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    rows = [{"prompt": f"t{i}", "chosen": " t40 t41", "rejected": " t50 t51"} for i in range(4)]

    class Dtypes(TrainerCallback):
        def __init__(self) -> None:
            self.seen: set[torch.dtype] = set()

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.seen |= {p.dtype for p in model.parameters() if p.requires_grad}
            self.seen |= {p.grad.dtype for p in model.parameters() if p.grad is not None}

    args = DPOConfig(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=4, learning_rate=2e-2, logging_steps=1,
        lr_scheduler_type="constant", report_to="none", use_cpu=True, bf16=False, save_strategy="no",
        disable_tqdm=True, gradient_checkpointing=False,
    )  # fmt: skip
    dtypes = Dtypes()
    trainer = DPOTrainer(
        model=load_quantised(saved_base, "4bit"),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=word_tokenizer(),
        peft_config=ReftConfig(**CONFIG),
        callbacks=[dtypes],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # the identity survives TRL's cast to bfloat16: policy and reference are equal at first
    assert losses[0] == pytest.approx(0.6931472, abs=1e-6)
    assert losses[-1] < 0.65
    assert dtypes.seen == {torch.float32}
    trainer.save_model(str(tmp_path / "adapter"))
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {p.dtype for p in saved.values()} == {torch.float32}


def word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"t{i}" for i in range(90))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
