"""Records to batches: read and check rows, split them into prompt and response, tokenise, collate.

    dataset = build_dataset("train.jsonl.gz", tokenizer, max_length=512)
    collator = ReftCollator(tokenizer)

One stage a file, each usable alone: `kinds` (what a record may look like), `records` (files to checked rows),
`templates` (record to prompt and response text; `lossless`: nothing left out), `tokenize` (text to ids), `collate`
(examples to tensors).  `style` is how prompts were written, kept beside the adapter; `strict` reads JSON.

Must not know: interventions, positions, the tuner.  All that leaves this package about positions is `prompt_length`.
"""

from __future__ import annotations

from reftune.data.collate import ReftCollator
from reftune.data.records import load_records
from reftune.data.style import PromptStyle
from reftune.data.tokenize import Example, build_dataset, encode_prompt, tokenize_record

__all__ = [
    "Example",
    "PromptStyle",
    "ReftCollator",
    "build_dataset",
    "encode_prompt",
    "load_records",
    "tokenize_record",
]
