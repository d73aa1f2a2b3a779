"""Rows of the tasks: a few written by hand in the shape of each file, and the folder of the real ones if it is there.

Must not know: what tasks do with rows.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

__all__ = ["SMALL", "data_folder", "write_rows"]


def choice(question: str, word: str, count: int, right: int) -> list[dict[str, str]]:
    names = [f"{word}{n}" for n in range(1, count + 1)]
    listed = " ".join(f"{name.capitalize()}: thing {name[-1]}" for name in names)
    answer = names[right - 1]
    instruction = f"{question}\n\n{listed}\n\nAnswer format: {'/'.join(names)}"
    return [{"instruction": instruction, "input": "", "output": f"the correct answer is {answer}", "answer": answer}]


def problem(question: str, output: str, answer: str) -> list[dict[str, str]]:
    return [{"instruction": question, "input": "", "output": output, "answer": answer}]


def both(name: str, rows: list[dict[str, str]]) -> dict[str, list[dict[str, Any]]]:
    return {f"commonsense/{name}.{split}.jsonl.gz": list(rows) for split in ("train", "test")}


def pairs(*labels: str) -> list[dict[str, Any]]:
    return [{"text_a": f"One {label}.", "text_b": f"Two {label}.", "label": label} for label in labels]


SMALL: dict[str, list[dict[str, Any]]] = {
    **both(
        "boolq",
        [
            {
                "instruction": "Please answer the following question with true or false, question: is tea a drink?\n\n"
                "Answer format: true/false",
                "input": "",
                "output": "the correct answer is true",
                "answer": "true",
            }
        ],
    ),
    **both("piqa", choice("Please choose the correct solution to the question: cut bread", "solution", 2, 2)),
    **both("social_i_qa", choice("Ann left. How does Bo feel?", "answer", 3, 1)),
    **both("hellaswag", choice("Baking: A man opens the oven. he", "ending", 4, 4)),
    **both("winogrande", choice("The cup did not fit the box as the _ was small.", "option", 2, 2)),
    **both("ARC-Easy", choice("Which is a metal?", "answer", 4, 3)),
    **both("ARC-Challenge", choice("Which is a gas?", "answer", 5, 5)),
    **both("openbookqa", choice("Ice melts when it is", "answer", 4, 1)),
    "math/AQuA.test.jsonl.gz": problem("2 + 2? Answer Choices: (A) 3 (B) 4", "\nit is four: (B).", "B"),
    "math/gsm8k_openai.train.jsonl.gz": [
        {
            "question": "Bo has 600 pens and buys 400. How many?",
            "answer": "He has 600+400=<<600+400=1000>>1000.\n#### 1,000",
        }
    ],
    "math/gsm8k.test.jsonl.gz": problem(
        "Bo has 3 pens and loses 1. How many?", "\nA: 3 - 1 = 2. The answer is 2.", "2.0"
    ),
    "math/mawps.train.jsonl.gz": [
        {
            "id": 1,
            "original_text": "Half of 5 ?",
            "segmented_text": "Half of 5 ?",
            "equation": "X=(5.0/2.0)",
            "ans": 2.5,
        },
        {
            "id": 2,
            "original_text": "1 less 4 ?",
            "segmented_text": "1 less 4 ?",
            "equation": "X=(1.0-4.0)",
            "ans": -3.0,
        },
    ],
    "math/mawps.test.jsonl.gz": problem("Twice 6 ?", "", "12.0"),
    "math/SVAMP.test.jsonl.gz": problem("Ann has 9 nuts. She eats 4. How many are left?", "\nA: 5 are left.", "5.0"),
    "math/MultiArith.test.jsonl.gz": problem(" 2 boxes of 3 and 1 more? ", "\nA: 2 * 3 + 1 = 7.", "7.0"),
    "math/AddSub.test.jsonl.gz": problem("0.5 and 0.25 ? ", "\nA: 0.5 + 0.25 = 0.75 liters.", "0.75"),
    "math/SingleEq.test.jsonl.gz": problem("A third of 12 ?", "\nA: 12 / 3 = 4 apples.", "4.0"),
    "glue/CoLA.train.jsonl.gz": [
        {"text_a": "He sleeps.", "text_b": None, "label": "1"},
        {"text_a": "He sleep the.", "text_b": None, "label": "0"},
    ],
    "glue/CoLA.dev.jsonl.gz": [{"source": "x", "label": "0", "star": "*", "sentence": "Cats the."}],
    "glue/SST-2.train.jsonl.gz": [{"sentence": "a joy ", "label": "1"}, {"sentence": "a {bore} ", "label": "0"}],
    "glue/SST-2.dev.jsonl.gz": [{"sentence": "dull .", "label": "0"}],
    "glue/MRPC.train.jsonl.gz": pairs("0", "1"),
    "glue/MRPC.dev.jsonl.gz": [
        {"Quality": "1", "#1 ID": "7", "#2 ID": "8", "#1 String": "He won .", "#2 String": "He was the winner ."}
    ],
    "glue/STS-B.train.jsonl.gz": pairs("3.000", "4", "0.25", "4.95"),
    "glue/STS-B.dev.jsonl.gz": [
        {"index": "0", "genre": "x", "sentence1": "A man runs.", "sentence2": "A man is running.", "score": "4.750"}
    ],
    "glue/QNLI.train.jsonl.gz": pairs("entailment", "not_entailment"),
    "glue/QNLI.dev.jsonl.gz": [
        {"index": "0", "question": "Who won?", "sentence": "It rained.", "label": "not_entailment"}
    ],
    "glue/RTE.train.jsonl.gz": pairs("entailment", "not_entailment"),
    "glue/RTE.dev.jsonl.gz": [
        {"index": "0", "sentence1": "Bo died in 1900.", "sentence2": "Bo is dead.", "label": "entailment"}
    ],
    "glue/QQP.train.jsonl.gz": pairs("0", "1"),
    "glue/QQP.dev.jsonl.gz": pairs("1"),
    "glue/MNLI.train.jsonl.gz": pairs("entailment", "neutral", "contradiction"),
    "glue/MNLI.dev.jsonl.gz": pairs("neutral"),
    # of both memorisation and codebook
    "memorisation/alice_in_wonderland.jsonl.gz": [{"text": "Down, down, down.  Would the fall never come to an end?"}],
    "instruction/ultrafeedback.train.jsonl.gz": [
        {"instruction": "Name a river.", "input": "", "output": "The Rhine."},
    ],
    "instruction/ultrafeedback_1k.train.jsonl.gz": [
        {"instruction": "Name a colour.", "input": "", "output": "Blue."},
        {"instruction": "Say it in French.", "input": "bread", "output": "pain"},
    ],
    "instruction/alpaca_eval_davinci003.test.jsonl.gz": [
        {"dataset": "koala", "instruction": "Name a tree.", "output": "\nOak.", "generator": "text_davinci_003"},
        {"dataset": "koala", "instruction": "Say nothing.", "output": "", "generator": "text_davinci_003"},
    ],
}


def write_rows(folder: Path, files: dict[str, list[dict[str, Any]]]) -> None:
    for name, rows in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def data_folder() -> Path | None:
    """The folder of the real files: REFTUNE_DATA, else beside the checkout."""
    named = os.environ.get("REFTUNE_DATA")
    folder = Path(named) if named else Path(__file__).parents[4] / "shared" / "data"
    return folder if folder.is_dir() else None
