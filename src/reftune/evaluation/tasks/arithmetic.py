"""The arithmetic sets: Alpaca's prompt without input, a written-out solution, the last number.

As LLM-Adapters (Hu et al. 2023) published it and the ReFT paper used it.  The paper trains on math_10k, whose rows have
the fields of LLM-Adapters' test files; the training text is a row's `output`, unchanged.

Must not know: models, where files lie.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from .alpaca import alpaca_prompt
from .base import Hub, Row, Source, Task, same_text

__all__ = ["ARITHMETIC", "first_letter", "last_number", "near"]

TOLERANCE = 1e-3
FINAL = "The final answer is: "
"""Published as what replaces `####` in GSM8K, so that two blanks stand before the number."""


def last_number(output: str) -> str | None:
    """The last number once all commas are gone; None without one.

    As published, in its odd cases too: percent and currency signs are not looked at, `3-2` ends in -2, `1/2` in 2, and
    a minus sign that is not the ASCII one is no sign.
    """
    numbers = re.findall(r"-?\d+\.?\d*", output.replace(",", ""))
    return numbers[-1].rstrip(".") if numbers else None


def first_letter(output: str) -> str | None:
    """The first capital A to E anywhere; None without one.

    As published, though it is rarely what was meant: the answer of `Bill rides 3 miles. The answer is (D).` is B.
    """
    found = re.search("[A-E]", output)
    return found.group() if found else None


def near(answer: str, reference: str) -> bool:
    """Two numbers that differ by at most a thousandth."""
    return abs(float(answer) - float(reference)) <= TOLERANCE


def arithmetic_task(
    name: str,
    title: str,
    *,
    sources: Mapping[str, Source],
    adapt: Callable[[Row], Row] = dict,
    extract: Callable[[str], str | None] = last_number,
    matches: Callable[[str, str], bool] = near,
    chance: float | None = None,
) -> Task:
    """`adapt` makes the fields `instruction`, `output`, `answer` of rows that have others."""
    return Task(
        name=name,
        title=title,
        sources=sources,
        prompt=lambda row: alpaca_prompt(adapt(row)["instruction"]),
        completion=lambda row: solution(adapt(row)),
        reference=lambda row: str(adapt(row)["answer"]).strip(),
        extract=extract,
        matches=matches,
        generation={"max_new_tokens": 512},
        chance=chance,
    )


def solution(row: Row) -> str:
    """The row's own, where it has one: the outputs of the mawps test are empty."""
    return row.get("output") or f"The answer is {row['answer']}."


def aqua_row(row: Row) -> Row:
    """The Hub's options read `A)21`.  LLM-Adapters put blanks around all brackets, those in the options too."""
    options = "".join(f"({option}" for option in row["options"]).replace("(", " (").replace(")", ") ")
    instruction = f"{row['question'].strip()} Answer Choices:{options}"
    return {"instruction": instruction, "output": row["rationale"], "answer": row["correct"]}


def gsm8k_row(row: Row) -> Row:
    """Of a row of the authors (files `gsm8k_openai`, Hub); rows of LLM-Adapters have the fields already."""
    if "question" not in row:
        return row
    worked = re.sub(r"<<.*?>>", "", row["answer"])  # marks for a calculator
    answer = row["answer"].rpartition("####")[2].replace(",", "")
    return {"instruction": row["question"], "output": worked.replace("####", FINAL), "answer": answer}


def mawps_row(row: Row) -> Row:
    """Of a row to train on, which has an equation and no words; those to test on have LLM-Adapters' fields already."""
    if "original_text" not in row:
        return row
    answer = f"{row['ans']:.10g}"
    output = f"{row['equation']}\nThe answer is {answer}."
    return {"instruction": row["original_text"], "output": output, "answer": answer}


def svamp_row(row: Row) -> Row:
    body = row["Body"].strip()
    return {"instruction": f"{body}{'' if body.endswith('.') else '.'} {row['Question']}", "answer": row["Answer"]}


def tested(name: str, hub: Hub | None = None) -> dict[str, Source]:
    return {"test": Source(f"math/{name}.test.jsonl.gz", hub)}


ARITHMETIC = (
    # Ling et al. 2017: five answers to problems of algebra, by their letter
    arithmetic_task(
        "AQuA",
        "AQuA",
        sources=tested("AQuA", Hub("deepmind/aqua_rat", "raw", "test", aqua_row)),
        extract=first_letter,
        matches=same_text,
        chance=1 / 5,
    ),
    # Cobbe et al. 2021: word problems of several steps, asked as the arithmetic sets of the ReFT paper are.  pyreft has
    # a second recipe for this set alone (another prompt, 256 new tokens): from it come only the words before the final
    # answer, since math_10k cannot be had and the rows to train on are the authors' human solutions.
    arithmetic_task(
        "gsm8k",
        "GSM8K",
        sources={
            "train": Source("math/gsm8k_openai.train.jsonl.gz", Hub("openai/gsm8k", "main", "train")),
            **tested("gsm8k", Hub("openai/gsm8k", "main", "test")),
        },
        adapt=gsm8k_row,
    ),
    # Koncel-Kedziorski et al. 2016: short word problems
    arithmetic_task(
        "mawps",
        "MAWPS",
        sources={"train": Source("math/mawps.train.jsonl.gz"), **tested("mawps")},
        adapt=mawps_row,
    ),
    # Patel et al. 2021: short word problems, varied so that key words mislead.  The Hub's copy was parted in two; here,
    # as in the paper, all 1,000 problems are asked.
    arithmetic_task("SVAMP", "SVAMP", sources=tested("SVAMP", Hub("ChilleD/SVAMP", None, "train+test", svamp_row))),
    # Roy and Roth 2015: word problems of two steps and more
    arithmetic_task("MultiArith", "MultiArith", sources=tested("MultiArith")),
    # Hosseini et al. 2014: word problems of addition and subtraction
    arithmetic_task("AddSub", "AddSub", sources=tested("AddSub")),
    # Koncel-Kedziorski et al. 2015: word problems that one equation solves
    arithmetic_task("SingleEq", "SingleEq", sources=tested("SingleEq")),
)
