"""What a report says, in order: results, pictures, published numbers, what to keep in mind, how it was made.

Must not know: HTML, Markdown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from ...reporting.blocks import Block, Code, Facts, Fold, Items, Picture, Pictures, Section, Text
from ...reporting.numbers import Unit, points, time_unit
from .answers import beside_the_best, label_tables, sample_answers
from .canvas import SHAPES, Style, styles
from .curves import Curve, curves
from .notes import budget_text, caveats, columns_of, findings, listing, title_of
from .results import Results, Run
from .scatter import Spot, levels_in, scatter
from .summary import AVERAGE, MethodRow, method_rows
from .tables import cost_table, main_table, published_tables, run_table

__all__ = ["sections"]

PERCENT = Unit("%", 1)
# A training that had less than this part of the processors of another was slowed by other work.
UNDISTURBED = 0.9


def sections(results: Results) -> list[Section]:
    """The report of a comparison."""
    rows = method_rows(results)
    looks = styles(rows)
    found = [
        Section("Results", _results(results, rows)),
        Section("Each method beside the best", beside_the_best(results)),
        Section("Sample answers", sample_answers(results)),
        Section("Score against trained parameters", _against_parameters(results, rows, looks)),
        Section("Score against training time", _against_time(results, rows, looks)),
        Section("Learning curves", _curves(results, looks)),
        Section("Published numbers beside the measured ones", _published(results, rows)),
        Section("What to keep in mind", [Items(caveats(results, rows))]),
        Section("How this was made", _made(results)),
    ]
    return [section for section in found if any(_holds(block) for block in section.blocks)]


def _holds(block: Block) -> bool:
    return bool(block.items) if isinstance(block, Items) else True


def _results(results: Results, rows: Sequence[MethodRow]) -> list[Block]:
    seeds = sorted({seed for row in rows for seed in row.seeds})
    facts = [("Model", results.model), ("Budget", budget_text(results))]
    facts += [("Seeds", listing(map(str, seeds)))] if seeds else []
    blocks: list[Block] = [Facts(facts)]
    if results.failed:
        count = len(results.failed)
        blocks.append(Text(f"{count} of {len(results.runs)} runs are missing: see “What to keep in mind”."))
    if not rows:
        return [*blocks, Text("No run has ended, so there is no score to show.")]
    blocks += [Items(findings(results, rows)), main_table(results, rows)]
    blocks += label_tables(results)
    costs = cost_table(results)
    return blocks if costs is None else [*blocks, Fold("Costs by training task", [costs])]


def _against_parameters(results: Results, rows: Sequence[MethodRow], looks: dict[str, Style]) -> list[Block]:
    return _scatters(
        results,
        rows,
        looks,
        field="trained_percent",
        name="trained parameters",
        logarithmic=True,
        unit=lambda _: PERCENT,
        label=lambda unit: "trained parameters, % of all (logarithmic)",
        caption="Up and to the left is better.",
    )


def _against_time(results: Results, rows: Sequence[MethodRow], looks: dict[str, Style]) -> list[Block]:
    if results.budget.kind == "seconds":
        return [Text("All methods had the same time to train: the table and the pictures above compare them at it.")]
    shares = clock_shares(results)
    disturbed = bool(shares) and min(shares) < UNDISTURBED * max(max(shares), 1.0)
    caption = (
        "Times are means over the trainings behind a score, by the clock on the wall, which other work on the machine "
        "slows; at equal epochs they differ."
    )
    if disturbed:
        caption = (
            "Times are CPU times, means over the trainings behind a score: other work disturbed the clock on the wall, "
            f"by which the trainings had {100 * min(shares):.0f} to {100 * max(shares):.0f} % of one processor."
        )
    return _scatters(
        results,
        rows,
        looks,
        field="cpu_seconds" if disturbed else "train_seconds",
        name="CPU time" if disturbed else "training time",
        logarithmic=False,
        unit=time_unit,
        label=lambda unit: f"{'CPU time of the training' if disturbed else 'training time'}, {unit.name}",
        caption=caption,
    )


def clock_shares(results: Results) -> list[float]:
    """Processors that each training had by the clock; nothing where a training's CPU time is not known."""
    trained = [run for run in results.done if run.trains and run.train_seconds]
    if any(run.cpu_seconds is None for run in trained):
        return []
    return [run.cpu_seconds / run.train_seconds for run in trained if run.cpu_seconds and run.train_seconds]


def _scatters(
    results: Results,
    rows: Sequence[MethodRow],
    looks: dict[str, Style],
    *,
    field: str,
    name: str,
    logarithmic: bool,
    unit: Callable[[Sequence[float | None]], Unit],
    label: Callable[[Unit], str],
    caption: str,
) -> list[Block]:
    """A picture for the average, if there is one, and for each task."""
    found: list[Picture] = []
    tasks = columns_of(results, rows)
    for number, task in enumerate([*tasks[-1:], *tasks[:-1]] if AVERAGE in tasks else tasks):
        scale = unit([row.mean_of(field, task) for row in rows if row.trains])
        spots = _spots(rows, task, field, looks, scale)
        if not spots:
            continue
        title = f"Average of {len(results.tasks)} tasks" if task == AVERAGE else title_of(results, task)
        levels = _levels(results, rows, task)
        near = levels_in(spots, levels)
        about = f"{title}: score by {label(scale)}, {len(spots)} methods"
        key = f"{name.split()[-1]}-{number}"
        measure = "" if task == AVERAGE else f": {results.tasks[task].metric}"
        labels = {"x_label": label(scale), "y_label": f"score{measure}, points of 100"}
        svg = scatter(
            spots,
            name=key,
            title=about,
            heading=f"{title}: score by {name}",
            **labels,
            levels=near,
            logarithmic=logarithmic,
        )
        beyond = ", ".join(f"{level} {points(value)}" for level, value in levels.items() if level not in near)
        found.append(Picture(key, title, svg, f"Outside the picture: {beyond}." if beyond else ""))
    if not found:
        return []
    text = f"Scores in points of 100, bars: 95 % intervals as in the table. {caption} {SHAPES} "
    text += "Points that would stand over one another stand side by side."
    return [Pictures(found, text)]


def _spots(rows: Sequence[MethodRow], task: str, field: str, looks: dict[str, Style], unit: Unit) -> list[Spot]:
    """Methods with a score on a task and a number to stand over."""
    found = []
    for row in rows:
        x = row.mean_of(field, task)
        # nothing trained, or no time: no place on such an axis
        if row.trains and task in row.scores and x is not None and x > 0:
            found.append(Spot(row.name, x * unit.factor, row.scores[task], looks[row.label]))
    return found


def _levels(results: Results, rows: Sequence[MethodRow], task: str) -> dict[str, float]:
    """Scores without training, drawn as lines."""
    found = {row.name: row.scores[task].mean for row in rows if not row.trains and task in row.scores}
    chance = None if task == AVERAGE else results.tasks[task].chance
    return found if chance is None else {**found, "guess": chance}


def _curves(results: Results, looks: dict[str, Style]) -> list[Block]:
    found: list[Picture] = []
    for number, task in enumerate(dict.fromkeys(run.train_task for run in results.done if run.trains)):
        runs: dict[str, list[Curve]] = {}
        for run in results.done:
            if run.trains and run.train_task == task and run.curve:
                runs.setdefault(run.label, []).append(run.curve)
        if not runs:
            continue
        name = title_of(results, task) if task else "Training"
        for by_time, what in ((False, "by step"), (True, "by time")):
            title, key = f"{name}, {what}", f"curve-{number}-{'time' if by_time else 'step'}"
            svg = curves(
                runs,
                looks,
                name=key,
                title=f"Training loss: {title}",
                heading=f"{name}: training loss",
                by_time=by_time,
            )
            found.append(Picture(key, title, svg))
    if not found:
        return []
    return [
        Pictures(found, "Training loss: mean over seeds as far as the shortest run goes, averaged over neighbours.")
    ]


def _published(results: Results, rows: Sequence[MethodRow]) -> list[Block]:
    return list(published_tables(results, rows))


def _made(results: Results) -> list[Block]:
    blocks: list[Block] = [Code(results.command)]
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    facts = [("Hardware", results.hardware), ("Date", results.date), ("Versions", versions)]
    blocks.append(Facts([fact for fact in facts if fact[1]]))
    if results.tried:
        blocks += [Text("What was tried:"), Items(results.tried)]
    if results.done:
        blocks.append(Fold("Every run", [run_table(results)]))
    if results.config:
        blocks.append(Fold("Settings of the comparison", [Code(_json(results.config))]))
    blocks.append(Fold("Settings and commands of every run", _settings(results)))
    return blocks


def _settings(results: Results) -> list[Block]:
    """Runs that differ in nothing but their seed and task share an entry."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in results.runs:
        groups.setdefault((run.label, _json(_shared(run))), []).append(run)
    blocks: list[Block] = []
    for (label, settings), runs in groups.items():
        tasks = dict.fromkeys(title_of(results, run.train_task) for run in runs if run.train_task)
        seeds = sorted({run.seed for run in runs if run.seed is not None and run.trains})
        parts_of_title = [label, ", ".join(tasks), f"seeds {', '.join(map(str, seeds))}" if seeds else ""]
        title = "; ".join(part for part in parts_of_title if part)
        commands = "\n".join(dict.fromkeys(run.command for run in runs if run.command))
        blocks_of_run: list[Block] = [Code(settings), *([Code(commands)] if commands else [])]
        blocks_of_run += [Code(run.error) for run in runs if run.error]
        blocks.append(Fold(title, blocks_of_run))
    return blocks


def _shared(run: Run) -> dict[str, object]:
    own = ("seed", "tasks", "train_task")
    return {key: value for key, value in run.settings.items() if key not in own}


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True, default=str)
