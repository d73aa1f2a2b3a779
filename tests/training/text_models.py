"""A tiny random llama with a word tokenizer and a chat template, saved to a folder, and records for it.

Must not know: what is tested with them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.models import tiny_model

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>", "<system>")
WORDS = tuple(f"w{i}" for i in range(60))
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<assistant> {{ m['content'] }} </s> "
    "{% else %}<{{ m['role'] }}> {{ m['content'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
# prompts of 3 to 6 words, so that batches are padded
PAIRS = [
    {"prompt": " ".join(WORDS[i : i + 3 + i % 4]), "completion": f" w{30 + 2 * i} w{31 + 2 * i}"} for i in range(8)
]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": pair["prompt"]},
            {"role": "assistant", "content": pair["completion"].strip()},
        ]
    }
    for pair in PAIRS
]


def word_tokenizer(*, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a word; `<s>` and `</s>` are never added to a text."""
    ids = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **names)


def text_model(*, layers: int = 2, dtype: torch.dtype = torch.float32) -> Any:
    """The model to `word_tokenizer`."""
    return tiny_model("llama", layers=layers, dtype=dtype, overrides={"vocab_size": len(SPECIAL) + len(WORDS)})


def save_base(folder: Path, *, template: str | None = TEMPLATE, dtype: torch.dtype = torch.float32) -> Path:
    """Model and tokenizer as a folder that transformers loads."""
    text_model(dtype=dtype).save_pretrained(folder)
    word_tokenizer(template=template).save_pretrained(folder)
    return folder


def write_jsonl(path: Path, records: Sequence[dict[str, Any]] = PAIRS) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path
