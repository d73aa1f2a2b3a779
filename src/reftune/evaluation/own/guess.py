"""Which form of score fits right answers, and why in one sentence.

Must not know: files, models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ...errors import DataError
from .labels import plain
from .readings import number_in

__all__ = ["guess"]

# Labels are few and short, and each is the answer of several rows.
MOST_LABELS, LABEL_LETTERS, LABEL_WORDS, ROWS_A_LABEL = 50, 40, 5, 2
# Of numbers: grades from 1 to 5 are labels, prices are not.
MOST_GRADES, ROWS_A_GRADE = 10, 5
SHOWN = 6


def guess(answers: Sequence[str], name: str) -> tuple[str, str]:
    """(form, the sentence that tells it) for the right answers in a file.

    Raises:
        DataError: all answers are the same, so that no score says anything.
    """
    counts = Counter(map(plain, answers))
    if len(counts) == 1 and len(answers) > 1:
        raise DataError(
            f"{name}: all {len(answers)} answers are {answers[0][:60]!r}, so every model that says so is right and no "
            "score tells anything: are rows missing? (--score exact scores them all the same)"
        )
    numbers = [number_in(answer) for answer in answers]
    short = all(len(text) <= LABEL_LETTERS and len(text.split()) <= LABEL_WORDS for text in counts)
    if None not in numbers:
        grades = all(number is not None and number.is_integer() for number in numbers)
        if not (grades and 1 < len(counts) <= MOST_GRADES and len(answers) >= ROWS_A_GRADE * len(counts)):
            return "number", f"{name}: all {len(answers):,} answers are numbers, so the last number of an output counts"
    if short and 1 < len(counts) <= MOST_LABELS and len(answers) >= ROWS_A_LABEL * len(counts):
        shown = ", ".join(text for text, _ in counts.most_common(SHOWN)) + (", …" if len(counts) > SHOWN else "")
        return (
            "labels",
            f"{name}: {len(counts)} different answers in {len(answers):,} rows ({shown}), so they are scored as "
            "labels, by accuracy",
        )
    if short:
        return (
            "exact",
            f"{name}: the answers are short and mostly different, so an output counts that is the answer exactly; "
            "ROUGE-L is told beside it",
        )
    return (
        "rouge",
        f"{name}: the answers are free text, so outputs are scored by ROUGE-L, the words that they share in order; "
        "exact ones are told beside it",
    )
