"""How an output is read and scored: the forms that `score` has.

Must not know: files, models.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

from ...errors import MissingExtraError, ReftuneError
from ..scores import ACCURACY, ROUGE_L, WORD_F1, Metric
from ..tasks.base import same_text
from .labels import Labels, plain

__all__ = ["FORMS", "Reading", "check_score", "number_in", "reading_of"]

REGEX = "regex:"
FORMS = ("labels", "exact", "contains", "number", "f1", "rouge", "regex:PATTERN")
_NUMBER = r"(?<![\d.])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?"
_ONLY_NUMBER = re.compile(rf"[$€£¥]?\s*({_NUMBER})\s*[%$€£¥]?")
# what a word is: letters and digits of any script; where words have no blanks between them, each sign
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")

Examples: TypeAlias = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Reading:
    """A form of score, as a `Task` has it."""

    told: str
    """What is right, in a few words."""
    extract: Callable[[str], str | None]
    metric: Metric = ACCURACY
    matches: Callable[[str, str], bool] = same_text
    numbers: Callable[[str | None, str], tuple[float, float]] | None = None
    details: Callable[[Examples], dict[str, Any]] | None = None
    reference: Callable[[str], str] = field(default=str.strip)
    """The right answer of a row, as it is compared."""


def check_score(score: Any) -> None:
    """Make sure that there is such a form.

    Raises:
        ReftuneError: there is none, or its pattern is no regular expression.
    """
    if isinstance(score, str) and score.startswith(REGEX):
        try:
            re.compile(score.removeprefix(REGEX))
        except re.error as error:
            raise ReftuneError(f"score={score!r} is not valid: the pattern is none of Python's ({error})") from None
        if score == REGEX:
            raise ReftuneError("score='regex:' is not valid; the pattern follows the colon, as in 'regex:#### (.*)'")
    elif score not in FORMS[:-1]:
        raise ReftuneError(f"score={score!r} is not valid; use one of {', '.join(FORMS)}")


def reading_of(score: str, answers: Sequence[str]) -> Reading:
    """The form of that name for these right answers.

    Raises:
        MissingExtraError: it needs a package that is not installed.
        ReftuneError: an answer is not of its kind.
    """
    check_score(score)
    if score == "labels":
        return _labels(answers)
    if score == "number":
        return _number(answers)
    if score == "contains":
        return Reading("the output contains the answer, in small or capital letters", _whole, matches=_contains)
    if score == "exact":
        return Reading("the output is the answer, but for white space", _whole, matches=_same, details=_texts)
    if score == "f1":
        need("rouge_score", "rouge-score")
        about = "share of the words that output and answer have in common (ROUGE-1's F)"
        return Reading(about, _whole, WORD_F1, _same, lambda a, r: (_rouge("rouge1", a, r), 1.0), _texts)
    if score == "rouge":
        need("rouge_score", "rouge-score")
        about = "ROUGE-L: the longest sequence of words that output and answer share"
        return Reading(about, _whole, ROUGE_L, _same, lambda a, r: (_rouge("rougeL", a, r), 1.0), _texts)
    return _regex(re.compile(score.removeprefix(REGEX)))


def need(module: str, package: str) -> None:
    """Raises `MissingExtraError` where a package of the extra `scores` is not installed: better now than at the end."""
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(package, extra="scores")


def _labels(answers: Sequence[str]) -> Reading:
    need("sklearn", "scikit-learn")
    labels = Labels.of(answers)
    return Reading(
        "the output is the label, or names it and no other",
        labels.read,
        details=labels.details,
        reference=labels.canonical,
    )


def _number(answers: Sequence[str]) -> Reading:
    wrong = [answer for answer in answers if number_in(answer) is None]
    if wrong:
        raise ReftuneError(
            f"score='number': {len(wrong)} of {len(answers)} answers are no numbers, the first is {wrong[0][:60]!r}; "
            "write them as 1234.5, or use another score"
        )

    def last(output: str) -> str | None:
        found = re.findall(_NUMBER, output.replace("\u2212", "-"))
        return found[-1] if found else None

    return Reading("the last number of the output is the answer", last, matches=_equal)


def _regex(pattern: re.Pattern[str]) -> Reading:
    def found(text: str) -> str | None:
        match = pattern.search(text)
        return None if match is None else (match[1] if pattern.groups else match[0] or "").strip() or None

    def reference(answer: str) -> str:
        return found(answer) or answer.strip()

    return Reading("what the pattern finds in the output is the answer", found, reference=reference)


def number_in(answer: str) -> float | None:
    """The number that an answer is, be it with a sign of percent or money; None if it is anything else."""
    match = _ONLY_NUMBER.fullmatch(answer.strip().replace("\u2212", "-"))
    return None if match is None else float(match[1].replace(",", ""))


def _whole(output: str) -> str | None:
    return output.strip() or None


def _same(answer: str, reference: str) -> bool:
    return answer.split() == reference.split()


def _contains(answer: str, reference: str) -> bool:
    """As words of its own: `no` is not in `know`."""
    wanted = plain(reference)
    before = r"(?<!\w)" if wanted[:1].isalnum() else ""
    after = r"(?!\w)" if wanted[-1:].isalnum() else ""
    return re.search(before + re.escape(wanted) + after, plain(answer)) is not None


def _equal(answer: str, reference: str) -> bool:
    wanted = number_in(reference)
    return wanted is not None and math.isclose(float(answer.replace(",", "")), wanted, rel_tol=1e-6, abs_tol=1e-9)


def _texts(examples: Examples) -> dict[str, Any]:
    """What is told of texts beside their score: how many are exact, and ROUGE-L where its package is there."""
    found = {"exact": sum(_same(e["answer"] or "", e["reference"]) for e in examples) / max(1, len(examples))}
    if importlib.util.find_spec("rouge_score") is not None:
        rouge = [_rouge("rougeL", e["answer"], e["reference"]) for e in examples]
        found["ROUGE-L"] = sum(rouge) / max(1, len(rouge))
    return found


def _rouge(kind: str, answer: str | None, reference: str) -> float:
    return float(_scorer(kind).score(reference, answer or "")[kind].fmeasure)


@lru_cache(maxsize=4)
def _scorer(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # noqa: PLC0415  (optional extra)

    return RougeScorer([kind], tokenizer=_Words())


class _Words:
    """rouge-score's own tokenizer drops all letters but a to z."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.casefold())
