"""What answers to single rows tell, as a report shows it: each method beside the best, labels, samples.

Must not know: HTML, Markdown.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...evaluation.paired import Paired
from ...reporting.blocks import Block, Cell, Column, Fold, Items, Table, Text
from ...reporting.numbers import NONE, count, p_value, points
from .notes import listing, title_of
from .results import Best, Results, Run, Sample

__all__ = ["beside_the_best", "label_tables", "sample_answers"]

ABOUT = (
    "All methods answered the same rows. Where an answer is right or wrong, McNemar's exact test asks of the rows that "
    "only one of two methods has right how often chance alone would part them so unevenly (p). Else, and for means "
    "over several trainings, the difference has a 95 % interval of the bootstrap over the rows, and tells nothing if "
    "that holds 0. The luck of training is in neither, and the best was chosen by these same scores: take a p just "
    "below 0.05 for a hint."
)


def ends(test: Paired) -> str:
    """The interval of a difference, with signs."""
    low, high = (f"{'+' if value > 0 else ''}{points(value)}" for value in (test.low, test.high))
    return f"{low} to {high}"


def why(test: Paired) -> str:
    if test.p is None:
        return f"difference {ends(test)} points"
    return f"{p_value(test.p)}: {test.only_first:,} rows only the best has right, {test.only_second:,} only it"


def beside_the_best(results: Results) -> list[Block]:
    """A sentence for each task, and all numbers when asked for."""
    if not results.paired:
        return []
    lines = [
        [
            Cell(title_of(results, task)),
            Cell(name),
            Cell(found.best),
            Cell(NONE if test.only_first is None else count(test.only_first)),
            Cell(NONE if test.only_second is None else count(test.only_second)),
            Cell(points(test.difference), ends(test)),
            Cell(NONE if test.p is None else p_value(test.p).removeprefix("p = ").removeprefix("p ")),
        ]
        for task, found in results.paired.items()
        for name, test in found.others.items()
    ]
    columns = [Column(name, number=False) for name in ("Scored on", "Method", "Best")]
    columns += [Column("Only the best right", "rows"), Column("Only it right", "rows")]
    columns += [Column("Difference", "points"), Column("McNemar's p")]
    table = Table(columns, lines, "Each method beside the best of its task, on the same rows")
    sentences = [sentence(title_of(results, task), found) for task, found in results.paired.items()]
    return [Text(ABOUT), Items(sentences), Fold("All tests", [table])]


def sentence(title: str, found: Best) -> str:
    """Who is shown to be worse than the best, and who is not."""
    told = [(f"{name} ({why(test)})", test.told_apart) for name, test in found.others.items()]
    worse = "; ".join(name for name, apart in told if apart)
    close = "; ".join(name for name, apart in told if not apart)
    parts = [f"is shown to be better than: {worse}"] if worse else []
    parts += [f"is not told apart from: {close}"] if close else []
    return f"{title}: {found.best} has the highest score. It {'. It '.join(parts)}."


def label_tables(results: Results) -> list[Block]:
    """Precision, recall and confusion of labels, for the first training of each method."""
    blocks: list[Block] = []
    for task in results.tasks:
        first: dict[str, Run] = {}
        for run in results.done:
            if task in run.scores and run.scores[task].details.get("labels"):
                first.setdefault(run.label, run)
        for name, run in first.items():
            details = run.scores[task].details
            columns = [Column("Label", number=False)]
            columns += [Column(head) for head in ("Rows", "Precision", "Recall", "F1")]
            taken = details["confusion"]["columns"]
            columns += [Column(label, "taken for") for label in taken]
            lines = [
                [
                    Cell(one["label"]),
                    Cell(count(one["rows"])),
                    *(Cell(points(one[key])) for key in ("precision", "recall", "f1")),
                    *(
                        Cell(count(number) if number else "·", strong=one["label"] == label and number > 0)
                        for label, number in zip(taken, row, strict=True)
                    ),
                ]
                for one, row in zip(details["labels"], details["confusion"]["rows"], strict=True)
            ]
            caption = f"{title_of(results, task)}, {name}: macro F1 {points(details['macro_f1'])}"
            blocks.append(Table(columns, lines, caption))
    return [Fold("Labels: precision, recall, and what was taken for what", blocks)] if blocks else []


def sample_answers(results: Results) -> list[Block]:
    """For each task the same rows of all methods."""
    blocks: list[Block] = []
    for task, samples in results.samples.items():
        names = list(dict.fromkeys(name for sample in samples for name in sample.answers))
        lines = [line for sample in samples for line in sample_lines(sample, names)]
        columns = [Column(head, number=False) for head in ("Row", "What", "Text")]
        quiet = frozenset(i for i, line in enumerate(lines) if line[1].text in ("asked", "wanted"))
        table = Table(columns, lines, f"{title_of(results, task)}: {len(samples)} rows", quiet=quiet)
        blocks.append(Fold(f"{title_of(results, task)}: {listing(names)}", [table]))
    if not blocks:
        return []
    return [Text("The same rows, from all over those that were scored; of each method its first training."), *blocks]


def sample_lines(sample: Sample, names: Sequence[str]) -> list[list[Cell]]:
    lines = [
        [Cell(str(sample.row)), Cell("asked"), Cell(sample.prompt)],
        [Cell(""), Cell("wanted"), Cell(sample.wanted)],
    ]
    for name in names:
        answer = sample.answers.get(name)
        if answer is not None:
            lines.append([Cell(""), Cell(name, "right" if answer.right else "wrong"), Cell(answer.output or NONE)])
    return lines
