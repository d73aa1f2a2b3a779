"""What a composition comes to: `composition.json` with every answer, and `composition.md` with the table and examples.

Must not know: how it was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...files import write_json, write_text
from ...reporting.machine import hardware, versions
from .compose import CASES, Ability, Composed

__all__ = ["examples", "results_of", "told", "write_composed"]

EXAMPLES = 4


def results_of(found: Composed, *, command: str = "") -> dict[str, Any]:
    """All that is told, as JSON holds it."""
    columns = [found.first.name, found.second.name]
    cases = [
        {
            "case": case.name,
            "subspaces": CASES[case.name],
            "first": case.mean(case.scores[:, 0]),
            "second": case.mean(case.scores[:, 1]),
            "both": case.mean(case.both),
        }
        for case in found.cases
    ]
    return {
        "adapter": str(found.run.adapter_path),
        "first": _ability(found.first),
        "second": _ability(found.second),
        "prompts": len(found.prompts),
        "cases": cases,
        "paired": {"beside": found.best_other.name, **found.test.values()},
        "verdict": told(found),
        "final_loss": round(found.run.final_loss, 6),
        "seconds": round(found.run.seconds, 1),
        "trainable_parameters": found.run.trainable_parameters,
        "examples": examples(found, len(found.prompts)),
        "names": columns,
        "command": command,
        "hardware": hardware(),
        "versions": versions(),
    }


def _ability(own: Ability) -> dict[str, Any]:
    names = {"name": own.name, "rows": len(own.rows), "rule": own.rule.name}
    return {**names, "guessed": own.guessed, "of_data": round(own.of_data, 4)}


def examples(found: Composed, count: int = EXAMPLES) -> list[dict[str, Any]]:
    """The first prompts with the answers of all cases."""
    return [
        {"prompt": prompt, **{case.name: case.answers[i] for case in found.cases}}
        for i, prompt in enumerate(found.prompts[:count])
    ]


def told(found: Composed) -> str:
    """Whether the two parts do together what each does, in a sentence or two."""
    none, first, second, both = found.cases
    sides = [
        (own.name, 100 * alone.scores[:, i].mean(), 100 * both.scores[:, i].mean(), 100 * none.scores[:, i].mean())
        for i, (own, alone) in enumerate(((found.first, first), (found.second, second)))
    ]
    parts = [
        f"{name} {base:.0f} without, {alone:.0f} alone, {with_both:.0f} with both"
        for name, alone, with_both, base in sides
    ]
    test, other = found.test, found.best_other
    more = "more than" if test.difference > 0 else "less than"
    verdict = more if test.told_apart else "no more than chance apart from"
    ends = f"95 % interval {100 * test.low:+.0f} to {100 * test.high:+.0f}"
    return (
        f"{'; '.join(parts)}. Both rules at once: {100 * both.both.mean():.0f} with both on, {verdict} the "
        f"{100 * other.both.mean():.0f} with {other.name} (difference {100 * test.difference:+.0f} points, {ends})."
    )


def write_composed(found: Composed, output: Path, *, command: str = "") -> Path:
    """Write both files; returns the path of the page."""
    results = results_of(found, command=command)
    write_json(output / "composition.json", results)
    page = output / "composition.md"
    write_text(page, markdown(results))
    return page


def markdown(results: dict[str, Any]) -> str:
    """The table, the rules, examples, and how it was made."""
    first, second = results["first"], results["second"]
    lines = [
        "# Two abilities in one adapter",
        f"One LoReFT, {results['trainable_parameters']:,} parameters, in two parts: the first trained on "
        f"{first['rows']:,} rows of {first['name']}, the second on {second['rows']:,} of {second['name']}, in one run. "
        f"Mean scores of {results['prompts']} prompts that were not trained on, in percent, with 95 % intervals.",
        "\n".join(_table(results)),
        results["verdict"],
        "## Examples",
    ]
    for example in results["examples"][:EXAMPLES]:
        asked = " ".join(example["prompt"].split())
        lines.append("\n".join([f"**{_cell(asked)}**", "", *(f"- {name}: {_cell(example[name])}" for name in CASES)]))
    made = f"```sh\n{results['command']}\n```" if results["command"] else ""
    lines += ["## How it was made", made, f"{results['hardware']}, {results['seconds']:,.0f} s of training."]
    return "\n\n".join(line for line in lines if line) + "\n"


def _table(results: dict[str, Any]) -> list[str]:
    first, second = results["first"], results["second"]
    heads = [f"{own['name']} ({own['rule']})" for own in (first, second)]
    of_data = " | ".join(f"{100 * own['of_data']:.0f}" for own in (first, second))
    return [
        f"| switched on | {heads[0]} | {heads[1]} | both at once |",
        "|---|---:|---:|---:|",
        *(
            f"| {case['case']} | {' | '.join(_shown(case[name]) for name in ('first', 'second', 'both'))} |"
            for case in results["cases"]
        ),
        f"| answers of the data | {of_data} | |",
    ]


def _shown(values: tuple[float, float, float]) -> str:
    mean, low, high = (100 * value for value in values)
    return f"{mean:.0f} ({low:.0f} to {high:.0f})"


def _cell(text: str) -> str:
    """In one line, without what Markdown would read."""
    flat = " ".join(text.split())
    short = flat if len(flat) <= 240 else f"{flat[:240]} …"
    return "`" + (short.replace("`", "'") or " ") + "`"
