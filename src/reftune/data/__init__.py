"""Records to batches: read and check rows, split them into prompt and response, tokenise, collate.

    dataset = build_dataset("train.jsonl.gz", tokenizer, max_length=512)
    collator = ReftCollator(tokenizer)

One stage a file, each usable alone: `kinds` (what a record may look like), `records` (files to checked rows), `turns`
(a row for each answer of a conversation), `templates` (record to prompt and response text; `lossless`: nothing left
out; `spans`: what of a prompt is marked), `tokenize` (text to ids), `collate` (examples to tensors).  `style` is how
prompts were written, kept beside the adapter; `strict` reads JSON; `passes` says how often few rows are gone over.

Must not know: interventions, positions, the tuner.  All that leaves this package about positions is `prompt_length`
and `spans`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reftune.data.records import load_records
from reftune.data.style import PromptStyle
from reftune.data.tokenize import Example, build_dataset, encode_marked, encode_prompt, tokenize_record
from reftune.data.turns import split_record, split_turns

if TYPE_CHECKING:
    from reftune.data.collate import ReftCollator

__all__ = [
    "Example",
    "PromptStyle",
    "ReftCollator",
    "build_dataset",
    "encode_marked",
    "encode_prompt",
    "load_records",
    "split_record",
    "split_turns",
    "tokenize_record",
]


def __getattr__(name: str) -> Any:
    """The collator is loaded when first asked for: it alone needs torch, which the command must not wait for."""
    if name == "ReftCollator":
        from reftune.data.collate import ReftCollator  # noqa: PLC0415

        return ReftCollator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
