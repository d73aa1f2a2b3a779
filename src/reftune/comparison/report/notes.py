"""Sentences that a reader of the numbers must not miss: who leads and how surely, what is missing, failed or uneven.

Must not know: how they are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...reporting.numbers import points, significant
from .results import Results, Run
from .summary import AVERAGE, Lead, MethodRow, lead

__all__ = ["budget_text", "caveats", "columns_of", "findings", "listing", "name_of", "title_of"]

# What a budget may be missed by before it is told: a step or two, the rounding of an epoch.
EPOCHS_OFF = 0.02
SECONDS_OFF = 0.10
LONGEST_ERROR = 300
MOST_NAMES = 8
MOST_TIED = 4
# Told from a twentieth of the rows on: fewer do not explain a score.
UNREADABLE_FROM = 20


def listing(names: Iterable[str]) -> str:
    """`a, b and c`; a name that has a comma itself stands in quotes."""
    found = [f"“{name}”" if "," in name else name for name in names]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}" if found else ""


def title_of(results: Results, task: str) -> str:
    """Of a task, the average, or a group of tasks, whose name is all that is known."""
    if task == AVERAGE:
        return "the average"
    return results.tasks[task].title if task in results.tasks else task


def columns_of(results: Results, rows: Sequence[MethodRow]) -> list[str]:
    """Tasks, and the average if any row has it."""
    return [*results.tasks, *([AVERAGE] if any(AVERAGE in row.scores for row in rows) else [])]


def budget_text(results: Results) -> str:
    value = f"{results.budget.value:g}"
    if results.budget.kind == "epochs":
        passes = "once" if results.budget.value == 1 else f"{value} times"
        return f"Equal epochs: every method sees its training rows {passes}; how long that takes differs."
    return f"Equal time: every method trains for {value} s; how often it sees its training rows differs."


def findings(results: Results, rows: Sequence[MethodRow]) -> list[str]:
    """One sentence for each task and the average: the best, and which others its interval does not part it from."""
    found: list[str] = []
    for task in columns_of(results, rows):
        top = lead(rows, task)
        if top is None or not top.others:
            continue
        best = top.best.scores[task]
        tied = [row.name for row in top.overlapping if row.scores[task].mean == best.mean]
        if tied:
            who = listing([top.best.name, *tied]) if len(tied) < MOST_TIED else f"{len(tied) + 1} methods"
            found.append(f"{_upper(title_of(results, task))}: {who} share the highest score, {points(best.mean)}.")
            continue
        start = f"{_upper(title_of(results, task))}: {top.best.name} has the highest score, {points(best.mean)}"
        if best.low is None:
            found.append(f"{start}; without an interval, so nothing says how surely.")
        elif top.clear:
            found.append(f"{start}, and its interval overlaps with no other.")
        else:
            found.append(f"{start}, but its interval overlaps with {_overlapping(top, task, rows)}.")
    return found


def _overlapping(top: Lead, task: str, rows: Sequence[MethodRow]) -> str:
    """Which they are, told by the shorter list."""
    close = [row.name for row in top.overlapping]
    apart = [row.name for row in rows if task in row.scores and row is not top.best and row.name not in close]
    if not apart:
        return f"those of all {top.others} others" if top.others > 1 else f"that of {close[0]}"
    if len(close) <= max(3, len(apart)):
        return f"{'those' if len(close) > 1 else 'that'} of {listing(close)}"
    return f"those of {len(close)} of {top.others} others, all but {listing(apart)}"


def caveats(results: Results, rows: Sequence[MethodRow]) -> list[str]:
    """In order of weight."""
    return [
        *_failures(results),
        *_of_files(results),
        *_protocol(results),
        *_sizes(results),
        *_seeds(results, rows),
        *_missing(results, rows),
        *_without_score(results),
        *_unreadable(results),
        *_like_a_guess(results, rows),
        *_without_width(results, rows),
        *_off_budget(results),
    ]


def _failures(results: Results) -> list[str]:
    """Runs by the last line of their error, which in a traceback says what went wrong."""
    found: dict[str, list[str]] = {}
    for run in results.failed:
        lines = (run.error or "").strip().splitlines()
        found.setdefault(lines[-1][:LONGEST_ERROR] if lines else "no reason is known", []).append(name_of(results, run))
    notes = []
    for why, names in found.items():
        shown = names if len(names) <= MOST_NAMES else [*names[:MOST_NAMES], f"{len(names) - MOST_NAMES} more"]
        count = "A run is" if len(names) == 1 else f"{len(names)} runs are"
        notes.append(f"{count} missing from tables and pictures ({why}): {'; '.join(shown)}.")
    return notes


def _of_files(results: Results) -> list[str]:
    """What was told of files of one's own when the comparison began."""
    return list(dict.fromkeys(note for task in results.tasks.values() for note in task.notes))


def _protocol(results: Results) -> list[str]:
    found: list[str] = []
    if results.held_out:
        found.append("Scores are on training rows that were held out of training, not on test rows.")
    if results.kind == "classes":
        found.append(
            "Each seed parts the test rows in two halves of its own: the best epoch is chosen on one, and its score on "
            "the other is what is reported."
        )
    return found


def _sizes(results: Results) -> list[str]:
    """How much data each task had, and how far one row moves a score."""
    found: list[str] = []
    for name, task in results.tasks.items():
        counts = sorted({run.scores[name].n for run in results.done if name in run.scores})
        if not counts:
            continue
        trained = f"{task.train_rows:,} training rows, " if task.train_rows else ""
        scored = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        step = f"; one row is {100 / counts[0]:.2f} points" if task.metric == "accuracy" and counts[0] else ""
        uneven = " Runs were scored on different numbers of rows: compare them with care." if len(counts) > 1 else ""
        found.append(f"{task.title}: {trained}{scored} test rows{step}.{uneven}")
    for name, what in (("train_rows", "training"), ("test_rows", "test")):
        limit = results.config.get(name)
        if isinstance(limit, int):
            found.append(f"At most {limit:,} {what} rows of a task were taken; of more, so many were drawn at random.")
    return found


def _seeds(results: Results, rows: Sequence[MethodRow]) -> list[str]:
    single = [row.name for row in rows if row.trains and len(row.seeds) == 1]
    several = [row.name for row in rows if row.trains and len(row.seeds) > 1]
    if not single:
        return []
    who = f"{listing(single)} ran" if several else "Every method ran"
    return [
        f"{who} with one seed only: the interval is that of the test rows and holds nothing of the luck of training."
    ]


def _missing(results: Results, rows: Sequence[MethodRow]) -> list[str]:
    found: list[str] = []
    for task, facts in results.tasks.items():
        without = [row.name for row in rows if task not in row.scores]
        if len(without) == len(rows):
            found.append(f"{facts.title}: no run has a score.")
        elif without:
            found.append(f"{facts.title}: no score of {listing(without)}.")
    for row in rows:
        lacking: dict[int, list[str]] = {}
        for task, facts in results.tasks.items():
            seeds = {run.seed for run in row.of(task)}
            for seed in row.seeds if task in row.scores else ():
                if seed not in seeds:
                    lacking.setdefault(seed, []).append(facts.title)
        found += [f"{row.name} lacks seed {seed} of {listing(titles)}." for seed, titles in lacking.items()]
    return found


def _without_score(results: Results) -> list[str]:
    found: dict[tuple[str, str], int] = {}
    for run in results.done:
        for task, score in run.scores.items():
            if score.score is None:
                found[run.label, task] = found.get((run.label, task), 0) + 1
    return [
        f"{results.tasks[task].title}: {'a score' if count == 1 else f'{count} scores'} of {label} "
        f"{'is no number and is' if count == 1 else 'are no numbers and are'} left out."
        for (label, task), count in found.items()
    ]


def _unreadable(results: Results) -> list[str]:
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for run in results.done:
        for task, score in run.scores.items():
            without, rows = found.get((run.label, task), (0, 0))
            found[run.label, task] = (without + (score.unreadable or 0), rows + score.n)
    parts: dict[str, list[str]] = {}
    for (label, task), (without, rows) in found.items():
        if without and without * UNREADABLE_FROM >= rows:
            parts.setdefault(label, []).append(f"{without:,} of {rows:,} of {results.tasks[task].title}")
    return [f"{label}: outputs without an answer count as wrong: {listing(told)}." for label, told in parts.items()]


def _like_a_guess(results: Results, rows: Sequence[MethodRow]) -> list[str]:
    found: dict[str, list[str]] = {}
    trained = {row.name for row in rows if row.trains}
    for name, task in results.tasks.items():
        for row in rows:
            low = row.scores[name].low if name in row.scores else None
            if low is not None and task.chance is not None and low <= task.chance:
                found.setdefault(row.name, []).append(f"{task.title} ({points(task.chance)})")
    return [
        f"{name} is not shown to be better than a guess on {listing(titles)}: it has learnt too little here, and that "
        "another method is better says so and no more. More epochs or another learning rate may change it."
        if name in trained
        else f"{name} is not shown to be better than a guess on {listing(titles)}."
        for name, titles in found.items()
    ]


def _without_width(results: Results, rows: Sequence[MethodRow]) -> list[str]:
    """A bootstrap of rows that all count the same, or of answers that are all the same, knows no spread."""
    found: dict[str, list[str]] = {}
    for name, task in results.tasks.items():
        for row in rows:
            score = row.scores.get(name)
            if score is not None and score.low is not None and score.low == score.high:
                found.setdefault(task.title, []).append(f"{row.name} ({points(score.mean)})")
    return [
        f"{title}: the interval of {listing(names)} has no width: every sample of the rows has the same score, as "
        "where all answers are the same, or all are right. It says nothing of how sure that is."
        for title, names in found.items()
    ]


def _off_budget(results: Results) -> list[str]:
    kind, value = results.budget.kind, results.budget.value
    allowed = EPOCHS_OFF if kind == "epochs" else SECONDS_OFF
    found: dict[str, list[float]] = {}
    for run in results.done:
        had = run.epochs if kind == "epochs" else run.train_seconds
        if run.trains and had is not None and abs(had - value) > allowed * value:
            found.setdefault(run.label, []).append(had)
    unit = "epochs" if kind == "epochs" else "s"
    return [
        f"{label} did not keep to the budget of {value:g} {unit}: it had "
        f"{significant(min(had))}{f' to {significant(max(had))}' if max(had) > min(had) else ''}."
        for label, had in found.items()
    ]


def name_of(results: Results, run: Run) -> str:
    """A run in words."""
    task = title_of(results, run.train_task) if run.train_task else ""
    parts = [f"trained on {task}" if task and run.trains else task]
    parts.append(f"seed {run.seed}" if run.seed is not None and run.trains else "")
    detail = ", ".join(part for part in parts if part)
    return f"{run.label} ({detail})" if detail else run.label


def _upper(text: str) -> str:
    """Of words of ours: a file keeps its name."""
    return f"The {text.removeprefix('the ')}" if text.startswith("the ") else text
