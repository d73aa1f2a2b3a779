"""The eight sets of GLUE (Wang et al. 2018): a sentence or two, as a classification and as a prompt for one word.

The classification is the paper's, for models with a head.  The prompts are ours, short, and end in a question and
`Answer:`; what is taught is one word after a blank.  Files and Hub differ in their fields, and so do a set's train and
dev file, so all names are looked for.

Must not know: models, where files lie.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ...errors import DataError
from ..scores import ACCURACY, MATTHEWS, PEARSON, Metric
from .base import Classes, Hub, Row, Source, Task

__all__ = ["GLUE", "first_word"]

_TEXTS = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("#1 String", "#2 String"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("sentence", ""),
)
_LABELS = ("label", "Quality", "score")
YES, NO = ("yes", "no"), ("no", "yes")


def texts(row: Row) -> tuple[str, str | None]:
    """The row's sentences; the second is None where it has one only."""
    for first, second in _TEXTS:
        if first in row and (not second or second in row):
            other = row.get(second)
            return row[first].strip(), None if other is None else other.strip()
    valid = "; ".join(" + ".join(filter(None, names)) for names in _TEXTS)
    raise DataError(f"no sentence in the columns {', '.join(map(str, row))}; valid: {valid}")


def value(row: Row) -> str:
    """The row's label: a name, an index or a number, as text."""
    for name in _LABELS:
        if name in row:
            return str(row[name])
    raise DataError(f"no label in the columns {', '.join(map(str, row))}; valid: {', '.join(_LABELS)}")


def first_word(output: str, words: tuple[str, ...]) -> str | None:
    """The first word of an output, in lower case and without marks, if it is one of `words`; else None."""
    found = re.search(r"[^\W_]+", output)
    word = found.group().lower() if found else ""
    return word if word in words else None


def glue_sources(name: str, hub: str, *, hub_split: str = "validation") -> dict[str, Source]:
    """Of the files `glue/<name>.{train,dev}.jsonl.gz`, or the configuration `hub` of GLUE on the Hub."""
    return {
        "train": Source(f"glue/{name}.train.jsonl.gz", Hub("nyu-mll/glue", hub, "train")),
        "test": Source(f"glue/{name}.dev.jsonl.gz", Hub("nyu-mll/glue", hub, hub_split)),
    }


def sentence_task(
    name: str,
    title: str,
    *,
    template: str,
    names: tuple[str, ...],
    words: tuple[str, ...],
    sources: Mapping[str, Source] | None = None,
    metric: Metric = ACCURACY,
    numbers: Callable[[str | None, str], tuple[float, float]] | None = None,
    chance: float = 1 / 2,
) -> Task:
    """`names` are the classes in the order of their index, `words` what stands for each in the prompt's answer.

    `template` has `{a}` and, for the second sentence, `{b}`.  `sources` unless they are named as title and name are.
    """

    def index(row: Row) -> int:
        label = value(row)
        if label in names:
            return names.index(label)
        if label.isdecimal() and int(label) < len(names):
            return int(label)
        raise DataError(f"the task {name!r} has no label {label!r}; valid: {', '.join(names)}, or the index of one")

    def prompt(row: Row) -> dict[str, str]:
        a, b = texts(row)
        return {"prompt": template.format(a=a, b=b)}

    return Task(
        name=name,
        title=title,
        sources=sources or glue_sources(title, name),
        prompt=prompt,
        completion=lambda row: f" {words[index(row)]}",
        reference=lambda row: words[index(row)],
        extract=lambda output: first_word(output, words),
        metric=metric,
        numbers=numbers,
        generation={"max_new_tokens": 4},
        classes=Classes(texts=texts, label=index, names=names),
        chance=chance,
    )


def cola_numbers(answer: str | None, reference: str) -> tuple[float, float]:
    """Indices of the classes; -1, which the metric counts as the wrong class, for an output without an answer."""
    return -1.0 if answer is None else NO.index(answer), NO.index(reference)


LOWEST, HIGHEST = 0.0, 5.0
ROUNDING = 0.05 + 1e-9
NUMBER = re.compile(r"\W*?(-?(?:\d[\d,]*(?:\.\d+)?|\.\d+))(?!\w|\.\d)")


def stsb_prompt(row: Row) -> dict[str, str]:
    a, b = texts(row)
    question = "How similar in meaning are the two sentences, from 0.0 (not at all) to 5.0 (the same)?"
    return {"prompt": f"Sentence 1: {a}\nSentence 2: {b}\n{question}\nAnswer:"}


def stsb_number(output: str) -> str | None:
    """The number that an output begins with, if it lies between 0 and 5; else None."""
    found = NUMBER.match(output.replace("\N{MINUS SIGN}", "-"))
    if found is None:
        return None
    number = float(found.group(1).replace(",", ""))
    return str(number) if LOWEST <= number <= HIGHEST else None


def stsb_numbers(answer: str | None, reference: str) -> tuple[float, float]:
    """Both as numbers.  An output without one counts as the end of the scale that is farther from the truth."""
    truth = float(reference)
    farther = LOWEST if truth > (LOWEST + HIGHEST) / 2 else HIGHEST
    return farther if answer is None else float(answer), truth


GLUE = (
    # Williams et al. 2018, matched: whether a premise implies a hypothesis, contradicts it, or neither
    sentence_task(
        "mnli",
        "MNLI",
        sources=glue_sources("MNLI", "mnli", hub_split="validation_matched"),
        template="Premise: {a}\nHypothesis: {b}\n"
        "Does the hypothesis follow from the premise, yes, no or maybe?\nAnswer:",
        names=("entailment", "neutral", "contradiction"),
        words=("yes", "maybe", "no"),
        chance=1 / 3,
    ),
    # Socher et al. 2013: whether a piece of a film review is positive
    sentence_task(
        "sst2",
        "SST-2",
        template="Review: {a}\nIs this review positive or negative?\nAnswer:",
        names=("negative", "positive"),
        words=("negative", "positive"),
    ),
    # Dolan and Brockett 2005: whether two sentences of the news say the same
    sentence_task(
        "mrpc",
        "MRPC",
        template="Sentence 1: {a}\nSentence 2: {b}\nDo the two sentences mean the same, yes or no?\nAnswer:",
        names=("not_equivalent", "equivalent"),
        words=NO,
    ),
    # Warstadt et al. 2019: whether a sentence is acceptable English
    sentence_task(
        "cola",
        "CoLA",
        template="Sentence: {a}\nIs this sentence acceptable English, yes or no?\nAnswer:",
        names=("unacceptable", "acceptable"),
        words=NO,
        metric=MATTHEWS,
        numbers=cola_numbers,
        chance=0.0,
    ),
    # from Rajpurkar et al. 2016: whether a sentence holds the answer to a question
    sentence_task(
        "qnli",
        "QNLI",
        template="Question: {a}\nSentence: {b}\nDoes the sentence answer the question, yes or no?\nAnswer:",
        names=("entailment", "not_entailment"),
        words=YES,
    ),
    # Quora 2017: whether two questions of a forum ask the same
    sentence_task(
        "qqp",
        "QQP",
        template="Question 1: {a}\nQuestion 2: {b}\nDo the two questions ask the same, yes or no?\nAnswer:",
        names=("not_duplicate", "duplicate"),
        words=NO,
    ),
    # Dagan et al. 2006 and later rounds: whether a text implies a sentence
    sentence_task(
        "rte",
        "RTE",
        template="Text: {a}\nStatement: {b}\nDoes the statement follow from the text, yes or no?\nAnswer:",
        names=("entailment", "not_entailment"),
        words=YES,
    ),
    # Cer et al. 2017: how alike two sentences are, from 0 to 5.  As text the number is taught with one decimal; scores
    # are computed with all of the reference's.
    Task(
        name="stsb",
        title="STS-B",
        sources=glue_sources("STS-B", "stsb"),
        prompt=stsb_prompt,
        completion=lambda row: f" {float(value(row)):.1f}",
        reference=lambda row: str(float(value(row))),
        extract=stsb_number,
        matches=lambda answer, reference: abs(float(answer) - float(reference)) <= ROUNDING,
        metric=PEARSON,
        numbers=stsb_numbers,
        generation={"max_new_tokens": 6},
        classes=Classes(texts=texts, label=lambda row: float(value(row))),
        chance=0.0,
    ),
)
