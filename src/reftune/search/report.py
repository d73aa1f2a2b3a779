"""The report of a search: the best, what it cost, the Pareto front, what mattered, what was not tried.

Must not know: HTML, Markdown, Optuna.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..reporting import check_report, write_page
from ..reporting.blocks import Block, Cell, Code, Column, Facts, Items, Picture, Pictures, Section, Table, Text
from ..reporting.numbers import NONE, count, points, time_unit
from .picks import command_for, pick
from .summary import scored

__all__ = ["write_report"]

LISTED = 10

Entry = Mapping[str, Any]


def write_report(found: Mapping[str, Any], output: Path) -> tuple[Path, Path]:
    """The files of `write_page`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_report()
    sections = [
        Section("Results", _results(found, output)),
        Section("Score against trained parameters", _pictures(found)),
        Section("The ten best trials", _trials(found, output)),
        Section("What mattered", _importance(found)),
        Section("What was not tried", _untried(found)),
        Section("How this was made", _made(found)),
    ]
    return write_page(found["title"], [section for section in sections if section.blocks], output)


def _results(found: Mapping[str, Any], output: Path) -> list[Block]:
    rows, trials = found["rows"], found["trials"]
    names = ("done", "stopped", "failed", "running")
    states = {name: sum(entry["state"] == name for entry in trials) for name in names}
    unit = time_unit([found["seconds"]])
    blocks: list[Block] = [
        Facts(
            [
                ("Model", found["config"]["model"]),
                ("Task", found["task"]["title"]),
                ("Trials", ", ".join(f"{number} {name}" for name, number in states.items() if number)),
                ("Time", f"{unit.show(found['seconds'])} {unit.name} of all processes"),
                ("Rows", f"{count(rows['train'])} trained on, {count(rows['choose'])} chose{_told_by(rows)}"),
            ]
        )
    ]
    if not scored(trials):
        return [*blocks, Text("No trial has a score yet.")]
    if not found["finals"]:
        best = scored(trials)[0]
        text = f"The best trial is {best['number']}, with {points(best['score'])}. As the best of many it is flattered."
        return [*blocks, Text(text), Code(_train(output, "best"))]
    small = pick(found, "smallest")
    return [
        *blocks,
        _finals(found),
        Text(
            f"The smallest trial within one standard error of the best on the rows that chose is {small['number']}, "
            f"with {count(small['parameters'])} parameters and {points(small['score'])}."
        ),
        Code("\n".join(_train(output, which) for which in ("best", "smallest"))),
    ]


def _told_by(rows: Mapping[str, Any]) -> str:
    return f", {count(rows['tell'])} others told of the best" if rows["apart"] else " and told of the best"


def _finals(found: Mapping[str, Any]) -> Table:
    trials = {entry["number"]: entry for entry in found["trials"]}
    notes = [
        "Answers are generated and read as reftune eval does; the mean over the trainings, ± their standard deviation. "
        "The interval is of the rows (bootstrap, mean over the trainings)."
    ]
    if not found["rows"]["apart"]:
        notes.append("Too few rows to tell of the best by others than those that chose: scores are flattered.")
    return Table(
        [Column("trial", number=False), Column("score", "points"), Column("95 % interval"), *_choice_columns()],
        [
            [
                Cell(str(one["number"]), strong=place == 0),
                Cell(points(one["score"]), "" if one["spread"] is None else f"± {points(one['spread'])}"),
                Cell(f"{points(one['low'])} to {points(one['high'])}"),
                *_choices(trials[one["number"]]),
            ]
            for place, one in enumerate(found["finals"])
        ],
        f"The best, trained again with {len(found['finals'][0]['runs'])} seeds.",
        notes,
    )


def _choice_columns() -> list[Column]:
    names = ("intervention", "positions", "layers")
    return [Column("parameters"), *(Column(name, number=False) for name in names), Column("r"), Column("rate")]


def _choices(entry: Entry) -> list[Cell]:
    chosen = entry["chosen"]
    more = [f"tie {chosen['tie']}"] if chosen.get("tie", "all") != "all" else []
    more += [f"{name} {chosen[name]:g}" for name in ("warmup", "dropout") if chosen.get(name)]
    return [
        Cell(count(entry["parameters"])),
        Cell(chosen["intervention"]),
        Cell(chosen["positions"], ", ".join(more)),
        Cell(str(chosen["layers"])),
        Cell(str(chosen["r"])),
        Cell(f"{chosen['learning_rate']:.1e}"),
    ]


def _pictures(found: Mapping[str, Any]) -> list[Block]:
    if len(scored(found["trials"])) < 2:
        return []
    # the extra `report`
    from .pictures import history, pareto, side_by_side  # noqa: PLC0415

    trials, numbers = found["trials"], ", ".join(map(str, found["front"]))
    three = [
        Picture("pareto", "Score against trained parameters", pareto(trials, found["front"])),
        Picture("history", "Score by trial", history(trials)),
        Picture("choices", "Choices of each trial", side_by_side(trials, found["space"])),
    ]
    caption = (
        f"Blue: trials that no other beats with as few parameters (the Pareto front: {numbers}). Choices: a line a "
        "trial with a score, the better, the stronger."
    )
    return [Pictures(three, caption)]


def _trials(found: Mapping[str, Any], output: Path) -> list[Block]:
    best = scored(found["trials"])[:LISTED]
    if not best:
        return []
    unit = time_unit([entry["seconds"] for entry in best])
    how = (
        "Score: answers of which every token is the likeliest, of the rows that choose."
        if found["scored"] == "forced"
        else "Score: generated answers to the rows that choose."
    )
    table = Table(
        [
            Column("trial", number=False),
            Column("score", "points"),
            Column("loss"),
            Column("time", unit.name),
            *_choice_columns(),
        ],
        [
            [
                Cell(str(entry["number"]), "on the front" if entry["number"] in found["front"] else ""),
                Cell(points(entry["score"])),
                Cell(f"{entry['loss']:.3f}"),
                Cell(unit.show(entry["seconds"])),
                *_choices(entry),
            ]
            for entry in best
        ],
        "One training each.",
        [how],
    )
    return [table, Code("\n".join(_train(output, str(entry["number"])) for entry in best))]


def _importance(found: Mapping[str, Any]) -> list[Block]:
    if not found["importance"]:
        return [Text("Too few trials with different scores came to their end to tell which choices mattered.")]
    ranked = sorted(found["importance"].items(), key=lambda item: -item[1])
    return [
        Table(
            [Column("choice", number=False), Column("importance", "%")],
            [[Cell(name.replace("_", " ")), Cell(f"{100 * value:.0f}")] for name, value in ranked],
            "Share of the differences in score that each choice explains alone.",
            [
                "fANOVA (Hutter et al. 2014) over the trials that came to their end. A choice that was hardly varied, "
                "or with few trials, can look important by chance."
            ],
        )
    ]


def _untried(found: Mapping[str, Any]) -> list[Block]:
    left = [f"{name.replace('_', ' ')}: {', '.join(map(str, values))}" for name, values in found["untried"].items()]
    failed = [f"trial {e['number']} failed: {e['error']}" for e in found["trials"] if e["state"] == "failed"]
    always = (
        "No trial had groups of positions with layers of their own, other components than the blocks' outputs, other "
        "Φ than those named in the space, another batch size or more epochs."
    )
    return [Items([*left, *failed, always])]


def _made(found: Mapping[str, Any]) -> list[Block]:
    config = found["config"]
    trial = f"{config['epochs']:g} epochs or less, batch size {config['batch_size']}, seed {config['seeds'][0]}"
    facts = [
        ("Command", found["command"] or NONE),
        ("Date", found["date"]),
        ("Machine", found["hardware"]),
        ("Versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items())),
        ("Sampler", config["sampler"]),
        ("A trial", trial),
    ]
    notes: Sequence[str] = found["task"]["notes"]
    text = (
        "Only rows to train on were looked at. A trial is stopped at a ninth or a third of its steps where its loss on "
        "the rows that choose is not among the best third of the trials with no more parameters that came there."
    )
    return [Facts(facts), Text(text), *([Items(notes)] if notes else [])]


def _train(output: Path, which: str) -> str:
    return f"reftune {command_for(output, which)}"
