"""Base models of the workers that run with transformers 5, from a folder or of a shape with random weights, and what
else a Trainer of theirs is given.

Must not know: reftune, methods.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

from .protocol import Case


def load_base(case: Case) -> Any:
    """Frozen, and told not to fill a cache, as the Trainer of transformers 5 does."""
    if "folder" in case.model:
        base = AutoModelForCausalLM.from_pretrained(case.model["folder"], dtype=case.torch_dtype)
        base = base.to(case.device)
    else:
        config = LlamaConfig(**case.model["llama"])
        previous = torch.get_default_dtype()
        torch.set_default_dtype(case.torch_dtype)
        try:
            # made where it is needed: 8B parameters in float32 on the host would take a minute and 32 GB
            with torch.device(case.device):
                base = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(previous)
    base.config.use_cache = False
    return base.requires_grad_(False).eval()


def tokenizer_of(case: Case) -> Any:
    """The model's; for random weights one that only knows its padding."""
    if "folder" in case.model:
        return AutoTokenizer.from_pretrained(case.model["folder"])
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="<pad>",
    )


def training_arguments(case: Case, *, steps: int, **more: Any) -> TrainingArguments:
    """As the plain loops of the others train: a constant rate, no decay, nothing written or printed."""
    return TrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="reftune-bench-"),
        per_device_train_batch_size=case.batch_size,
        learning_rate=case.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_steps=steps,
        logging_steps=steps,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=case.device == "cpu",
        **more,
    )
