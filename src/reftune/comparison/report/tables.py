"""The tables of a report: methods with their scores and costs, costs by training, published beside measured, runs.

Must not know: how tables are written down.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ...reporting.blocks import Cell, Column, Table
from ...reporting.numbers import NONE, Unit, between, count, memory_unit, points, significant, size_unit, time_unit
from .notes import columns_of
from .published import SOURCE, PublishedTable, beside, published_for
from .results import Results, Run
from .summary import AVERAGE, Estimate, MethodRow, lead, mean_over_tasks

__all__ = ["cost_table", "main_table", "published_tables", "run_table"]


def interval(low: float | None, high: float | None) -> str:
    return f"{points(low)} to {points(high)}" if low is not None and high is not None else ""


def score_cell(estimate: Estimate | None, *, strong: bool = False) -> Cell:
    if estimate is None:
        return Cell(NONE)
    spread = "" if estimate.spread is None else f" ± {points(estimate.spread)}"
    return Cell(points(estimate.mean) + spread, interval(estimate.low, estimate.high), strong)


def main_table(results: Results, rows: Sequence[MethodRow]) -> Table:
    """A line for each method: what it trains, what it scores, what it costs."""
    tasks = columns_of(results, rows)
    tops = {task: lead(rows, task) for task in tasks}
    units = _Units(results.done)
    columns = [Column("Method", number=False), Column("Trained", "parameters and %")]
    columns += [_score_column(results, task) for task in tasks] + units.columns()
    folders = any(run.trained for row in rows for run in row.runs)
    columns += [Column("What it trained", "seen from this page", number=False)] if folders else []
    lines = []
    for row in rows:
        seeds = len(row.seeds)
        cells = [Cell(row.name, f"{seeds} seeds" if seeds > 1 else "1 seed" if seeds else ""), _trained(row)]
        for task in tasks:
            top = tops[task]
            best = top is not None and top.clear and top.best is row
            cells.append(score_cell(row.scores.get(task), strong=best))
        lines.append([*cells, *units.cells(row.runs), *([_folder(row)] if folders else [])])
    value = f"{results.budget.value:g}"
    budget = f"equal epochs, {value}" if results.budget.kind == "epochs" else f"equal time, {value} s"
    caption = f"Scores in points of 100, and what a training costs ({budget})"
    return Table(columns, lines, caption, _main_notes(results, rows, tasks))


def _score_column(results: Results, task: str) -> Column:
    if task == AVERAGE:
        return Column("Average", f"of {len(results.tasks)} tasks")
    facts = results.tasks[task]
    counts = sorted({run.scores[task].n for run in results.done if task in run.scores})
    rows = f"{between(counts, count)} rows" if counts else ""
    chance = "" if facts.chance is None else f"guess {points(facts.chance)}"
    return Column(facts.title, ", ".join(part for part in (facts.metric, rows, chance) if part))


def _trained(row: MethodRow) -> Cell:
    if not row.trains:
        return Cell("0")
    percent = between((run.trained_percent for run in row.runs), significant)
    return Cell(between((run.trained_parameters for run in row.runs), count), f"{percent} %")


def _folder(row: MethodRow) -> Cell:
    """Of the first training; the others are told of in “Every run”."""
    found = [run.trained for run in row.runs if run.trained]
    more = f"and {len(found) - 1} more, see “Every run”" if len(found) > 1 else ""
    return Cell(found[0] if found else NONE, more)


def _main_notes(results: Results, rows: Sequence[MethodRow], tasks: Sequence[str]) -> list[str]:
    notes = ["Below a score: its 95 % interval; of one seed that of the bootstrap over the test rows."]
    if any(len(row.seeds) > 1 for row in rows):
        notes[0] += (
            " Of several seeds the score is the mean over n rows × seeds, ± the standard deviation over seeds, and the "
            "interval is pooled: each side is √(a² + b²), a the mean of the seeds' own bootstrap half-widths (seeds "
            "share test rows, so more of them do not narrow it), b = 1.96 × standard deviation ÷ √seeds, which is "
            "rough for few seeds."
        )
    if AVERAGE in tasks:
        metrics = {facts.metric for facts in results.tasks.values()}
        mixed = " It mixes different measures." if len(metrics) > 1 else ""
        notes.append(
            "Average: the mean of the tasks, each counting the same; its interval is √(sum of the tasks' squared "
            "half-widths) ÷ number of tasks, its ± the standard deviation over seeds that have all tasks. "
            f"A method that lacks a task has none.{mixed}"
        )
    notes.append(
        "Bold: the best of a column, only where its interval overlaps with no other. Overlapping intervals do not show "
        "that two methods are equal: they are scored on the same rows, and tests of paired answers tell more (below). "
        "Costs are not ranked: they have no intervals."
    )
    if any(row.trains for row in rows):
        several = len({run.train_task for run in results.done if run.trains}) > 1
        over = "seeds, then over training tasks" if several else "the seeds"
        prepares = any(run.prepare_seconds for run in results.done)
        prepared = " Preparation computes once what training cannot change, to replay it." if prepares else ""
        timed = any(run.cpu_seconds for run in results.done)
        what = "that of the training in all threads, which other work on the machine hardly lengthens"
        processor = f" CPU time is {what}." if timed else ""
        notes.append(f"Times and bytes on disk are means over {over}; memory is the largest peak.{prepared}{processor}")
    return notes


class _Units:
    """Cost columns, each in one unit."""

    def __init__(self, runs: Sequence[Run]) -> None:
        trained = [run for run in runs if run.trains]
        self.time = time_unit([run.train_seconds for run in trained])
        self.memory = memory_unit([run.peak_memory_mb for run in trained])
        self.disk = size_unit([run.adapter_bytes for run in trained])
        self.prepares = any(run.prepare_seconds for run in trained)
        self.cpu = any(run.cpu_seconds for run in trained)
        self.epochs = len({round(run.epochs, 2) for run in trained if run.epochs is not None}) > 1

    def columns(self) -> list[Column]:
        epochs = [Column("Epochs")] if self.epochs else []
        return [
            *epochs,
            Column("Training", self.time.name),
            *([Column("of which preparation", self.time.name)] if self.prepares else []),
            *([Column("CPU time", self.time.name)] if self.cpu else []),
            Column("Peak memory", self.memory.name),
            Column("On disk", self.disk.name),
        ]

    def cells(self, runs: Sequence[Run]) -> list[Cell]:
        trained = [run for run in runs if run.trains]
        memory = [run.peak_memory_mb for run in trained if run.peak_memory_mb is not None]
        epochs = [Cell(between((run.epochs for run in trained), significant))] if self.epochs else []
        return [
            *epochs,
            _mean(trained, "train_seconds", self.time),
            *([_mean(trained, "prepare_seconds", self.time)] if self.prepares else []),
            *([_mean(trained, "cpu_seconds", self.time)] if self.cpu else []),
            Cell(self.memory.show(max(memory, default=None))),
            _mean(trained, "adapter_bytes", self.disk),
        ]


def _mean(runs: Sequence[Run], name: str, unit: Unit) -> Cell:
    return Cell(unit.show(mean_over_tasks(runs, name)))


def cost_table(results: Results) -> Table | None:
    """Costs for each training task on its own; None where there is one only."""
    tasks = dict.fromkeys(run.train_task for run in results.done if run.trains)
    if len(tasks) < 2:
        return None
    units = _Units(results.done)
    lines: list[list[Cell]] = []
    for task in tasks:
        for label in dict.fromkeys(run.label for run in results.done):
            runs = [run for run in results.done if run.trains and (run.label, run.train_task) == (label, task)]
            if runs:
                steps = Cell(between((run.steps for run in runs), count))
                lines.append([Cell(_title(results, task)), Cell(label), steps, *units.cells(runs)])
    columns = [Column("Trained on", number=False), Column("Method", number=False), Column("Steps"), *units.columns()]
    return Table(columns, lines, "Means over seeds; of memory the largest peak")


def _title(results: Results, task: str | None) -> str:
    return NONE if task is None else results.tasks[task].title if task in results.tasks else task


def published_tables(results: Results, rows: Sequence[MethodRow]) -> list[Table]:
    """What the paper reports on groups of tasks that were measured here, and the measured scores above it."""
    return [_published(results, rows, table, shared) for table, shared in published_for(results.tasks)]


def _published(results: Results, rows: Sequence[MethodRow], table: PublishedTable, shared: list[str]) -> Table:
    whole_measured = len(shared) == len(table.tasks)
    # of single tasks those of which a number was published too
    told = [name for name in shared if any(name in line.scores for line in table.rows)]
    scores = told if len(table.tasks) > 1 else []
    columns = [Column(name, number=False) for name in ("Method", "Model", "Numbers are")]
    columns += [Column("Trained", "% of all")]
    columns += [Column(table.title, table.of_average)] if whole_measured else []
    columns += [Column(results.tasks[name].title) for name in scores]
    lines: list[list[Cell]] = []
    for row in rows:
        known = [row.scores[name].mean for name in shared if name in row.scores]
        if not known:
            continue
        whole = points(statistics.fmean(known)) if len(known) == len(table.tasks) else NONE
        percent = Cell(between((run.trained_percent for run in row.runs), significant) if row.trains else "0")
        cells = [Cell(row.name), Cell(results.model), Cell("measured here"), percent]
        cells += [Cell(whole)] if whole_measured else []
        lines.append(cells + [Cell(points(row.scores[n].mean) if n in row.scores else NONE) for n in scores])
    measured = len(lines)
    for line in table.rows:
        if not beside(line, table, shared):
            continue
        percent = Cell(NONE if line.percent is None else f"{line.percent:g}")
        cells = [Cell(line.method), Cell(line.model), Cell("published"), percent]
        cells += [Cell(f"{line.average:.1f}")] if whole_measured else []
        lines.append(cells + [Cell(f"{line.scores[n]:.1f}" if n in line.scores else NONE) for n in scores])
    lacking = [name for name in table.tasks if name not in shared]
    notes = [f"Published: {SOURCE}.", *table.notes]
    notes.append("Models, training rows and test rows differ: the numbers do not check one another.")
    if lacking:
        notes.append(
            f"No average of measured scores: {', '.join(lacking)} of the {len(table.tasks)} were not measured."
        )
    quiet = frozenset(range(measured, len(lines)))
    return Table(columns, lines, f"{table.title}: {table.measure}, points of 100", notes, quiet)


def run_table(results: Results) -> Table:
    """A line for each run and task, as measured."""
    heads = ("Method", "Trained on", "Scored on")
    columns = [Column(head, number=False) for head in heads]
    columns += [Column("Seed"), Column("Score"), Column("95 % interval"), Column("Rows"), Column("No answer")]
    columns += [Column("Scoring", "s"), Column("Parameters"), Column("Steps"), Column("Epochs")]
    columns += [
        Column("Training", "s"),
        Column("Preparation", "s"),
        Column("CPU time", "s"),
        Column("Peak memory", "MB"),
        Column("Disk", "bytes"),
        Column("What it trained", number=False),
    ]
    lines = [line for run in results.done for line in _run_lines(results, run)]
    return Table(columns, lines, f"Runs: {len(results.done)}")


def _run_lines(results: Results, run: Run) -> list[list[Cell]]:
    def shown(value: float | None) -> Cell:
        return Cell(NONE if value is None else significant(value))

    costs = [Cell(count(run.trained_parameters)), Cell(count(run.steps))]
    costs += map(shown, (run.epochs, run.train_seconds, run.prepare_seconds, run.cpu_seconds, run.peak_memory_mb))
    costs += [Cell(count(run.adapter_bytes)), Cell(run.trained or NONE)]
    start = [Cell(run.label), Cell(_title(results, run.train_task) if run.trains else NONE)]
    seed = Cell(NONE if run.seed is None or not run.trains else str(run.seed))
    lines = []
    for task, score in run.scores.items():
        ends = Cell(interval(score.low, score.high) or NONE)
        scored = [Cell(points(score.score)), ends, Cell(count(score.n)), Cell(count(score.unreadable))]
        lines.append([*start, Cell(_title(results, task)), seed, *scored, shown(score.seconds), *costs])
    return lines or [[*start, Cell(NONE), seed, *[Cell(NONE)] * 5, *costs]]
