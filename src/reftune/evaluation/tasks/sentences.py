"""The form that the eight GLUE sets share: a sentence or two, as a classification and as a prompt for one word.

The classification is the paper's, for models with a head.  The prompts are ours, short, and end in a question and
`Answer:`; what is taught is one word after a blank.  Files and Hub differ in their fields, and so do a set's train and
dev file, so all names are looked for.

Must not know: any one set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ...errors import DataError
from ..scores import ACCURACY, Metric
from .base import Classes, Hub, Row, Source, Task

__all__ = ["first_word", "sentence_task", "sources", "texts", "value"]

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


def sources(name: str, hub: str, *, hub_split: str = "validation") -> dict[str, Source]:
    """Of the files `glue/<name>.{train,dev}.jsonl.gz`, or the configuration `hub` of GLUE on the Hub."""
    return {
        "train": Source(f"glue/{name}.train.jsonl.gz", Hub("nyu-mll/glue", hub, "train")),
        "test": Source(f"glue/{name}.dev.jsonl.gz", Hub("nyu-mll/glue", hub, hub_split)),
    }


def sentence_task(
    name: str,
    title: str,
    *,
    sources: Mapping[str, Source],
    template: str,
    names: tuple[str, ...],
    words: tuple[str, ...],
    metric: Metric = ACCURACY,
    numbers: Callable[[str | None, str], tuple[float, float]] | None = None,
    chance: float,
) -> Task:
    """`names` are the classes in the order of their index, `words` what stands for each in the prompt's answer.

    `template` has `{a}` and, for the second sentence, `{b}`.
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
        sources=sources,
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
