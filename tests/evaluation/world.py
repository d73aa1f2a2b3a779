"""Models in folders and small data files, for tests of runners and comparisons.

Must not know: what is tested with them.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from tests.models import tiny_model
from tests.training.text_models import WORDS, save_base, word_tokenizer

__all__ = ["causal_folder", "encoder_folder", "sentences_folder"]


def causal_folder(folder: Path) -> str:
    """A tiny Llama with a tokenizer of words, of which the tasks' words are not part: they are all `<unk>`."""
    return str(save_base(folder))


def encoder_folder(folder: Path) -> str:
    """A tiny BERT with the same tokenizer."""
    vocabulary = len(word_tokenizer())
    tiny_model("bert", overrides={"vocab_size": vocabulary}).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return str(folder)


def sentences_folder(folder: Path, *, train: int = 24, test: int = 16) -> Path:
    """SST-2's files, with sentences of the tokenizer's words: those that begin with `w1` are positive."""
    for split, count in (("train", train), ("dev", test)):
        rows: list[dict[str, Any]] = []
        for i in range(count):
            positive = i % 2
            words = " ".join(WORDS[2 + (i + j) % 50] for j in range(1 + i % 4))
            rows.append({"sentence": f"w{positive} {words}", "label": str(positive)})
        path = folder / f"glue/SST-2.{split}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return folder
