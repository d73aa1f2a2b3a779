"""What the parts found, as tables: on the terminal, in `benchmarks/results/`, and the targets in `docs/results.md`.

    python -m benchmarks.gpu.report table DIR     the tables, also in DIR/table.md
    python -m benchmarks.gpu.report report DIR    the same in benchmarks/results/<date>_<gpu>.md, the page, latest.json

Must not know: how things are measured.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..environments import ROOT
from ..files import write_whole
from ..raw import RESULTS
from ..stats import Spread, ratios, rounded
from ..tables import table
from ..wanted import Target, targets_table, write_latest
from . import PARTS

PAGE = ROOT / "docs/results.md"
Measurements = dict[str, dict[str, Any]]
BEGIN, END = "<!-- gpu: made by make gpu-report -->", "<!-- gpu: end -->"
TITLES = {
    "edit": "The Triton edit",
    "steps": "Training steps",
    "generate": "Prefill and decode with transformers",
    "recipes": "What is good by default: SmolLM2-135M on rows of GLUE as text",
    "quality": "Quality: SmolLM2-135M on the commonsense sets",
    "checks": "Tests on the device",
}
DECODE = re.compile(r"decode, batch (\d+), (\d+) adapters")
# of cells
LONGEST = 160
# the files have more of them
KERNELS = 6


def read_parts(folder: Path) -> dict[str, dict[str, Any]]:
    """What the parts left, those that left nothing not among them."""
    files = {name: folder / f"{name}.json" for name in PARTS}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}


def not_measured(row: dict[str, Any]) -> str | None:
    for kind, said in (("error", "failed"), ("skipped", "not measured")):
        if kind in row:
            return f"{said}: {row[kind]}"[:LONGEST].replace("\n", " ")
    return None


def left_out(found: Measurements) -> Iterator[str]:
    """A list of what there is no number of, and why."""
    lines = [f"- {key}: {why}" for key, row in found.items() if (why := not_measured(row))]
    if lines:
        yield "\n".join(lines)


# --- parts ------------------------------------------------------------------------------------------------------------


def edit_tables(found: Measurements) -> Iterator[str]:
    measured = {key: row for key, row in found.items() if not not_measured(row)}
    checked = {key: row for key, row in measured.items() if "right" in row}
    if checked:
        wrong = [key for key, row in checked.items() if not row["right"]]
        worst = max((row.get("worst_of_allowed", 0.0) for row in checked.values()), default=0.0)
        yield (
            f"{len(checked) - len(wrong)} of {len(checked)} checks are right; the largest deviation from float64 is "
            f"{worst:.2f} of what rounding allows." + (f" Wrong: {'; '.join(wrong)}." if wrong else "")
        )
    waits = measured.get("no waiting for the device")
    if waits:
        yield f"The host waits for the device in `apply`: {waits.get('apply')}; in `assign`: {waits.get('assign')}."
    copy = measured.get("copy")
    if copy:
        yield f"A copy on the device moves {copy['gb_s']:,.0f} GB/s."
    timed = {key: row for key, row in measured.items() if "us_a_layer" in row}
    grid = {tuple(map(int, m.groups())): row for key, row in timed.items() if (m := DECODE.fullmatch(key))}
    if grid:
        adapters = sorted({a for _, a in grid})
        yield "µs a layer of a decode step (d 4096, rank 8, bfloat16; in brackets GB/s of the bytes that must move):"
        rows = [
            [str(batch), *(cell(grid.get((batch, count))) for count in adapters)]
            for batch in sorted({b for b, _ in grid})
        ]
        yield table(("batch", *(f"{count} adapters" for count in adapters)), rows)
    others = [[key, f"{row['us_a_layer']:.2f}"] for key, row in timed.items() if not DECODE.fullmatch(key)]
    if others:
        yield table(("step", "µs a layer"), others)
    yield from left_out(found)


def cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    return f"{row['us_a_layer']:.2f}" + (f" ({row['gb_s']:,.0f})" if row["kb"] else "")


def steps_tables(found: Measurements) -> Iterator[str]:
    ceiling = found.get("matrix products", {}).get("tflop_s")
    if ceiling:
        yield f"Matrix products reach {ceiling:,.3g} TFLOP/s, which is what “FLOPs use” is a share of."
    for shape in dict.fromkeys(key.split(": ")[0] for key in found if ": " in key):
        rows = {key.split(": ", 1)[1]: row for key, row in found.items() if key.startswith(f"{shape}: ")}
        timed = {name: row for name, row in rows.items() if "median_s" in row}
        if timed:
            yield f"### {shape}"
            head = ("method", "s", "÷ floor", "tokens/s", "FLOPs use", "peak MB", "÷ LoRA", "trained")
            yield table(head, [step_row(name, row, timed, ceiling) for name, row in timed.items()])
        for name, row in rows.items():
            if "kernels" in row:
                yield from profile_texts(name, row)
    yield from left_out(found)


def step_row(name: str, row: dict[str, Any], timed: Measurements, ceiling: float | None) -> list[str]:
    after = ", checkpointed" if name.endswith(", checkpointed") else ""
    floor, lora = timed.get(f"floor{after}"), timed.get(f"LoRA r 8, all linear{after}")
    return [
        name,
        Spread.of(row["seconds"]).text(),
        f"{row['median_s'] / floor['median_s']:.3f}" if floor else "–",
        f"{row['tokens_s']:,.0f}",
        f"{row['tflop_s'] / ceiling:.1%}" if ceiling else "–",
        f"{row['peak_mb']:,.0f}",
        f"{row['peak_mb'] / lora['peak_mb']:.3f}" if lora else "–",
        f"{row['parameters']:,}",
    ]


def profile_texts(name: str, row: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{name}: of {row['wall_s']:.3f} s in {row['steps']} steps the device was idle for {row['idle_s']:.3f} s, "
        f"{row['launches']:,} launches. What took most:"
    )
    head = ("kernel", "calls", "ms")
    yield table(head, [[kernel, f"{calls:,}", f"{ms}"] for kernel, calls, ms in row["kernels"][:KERNELS]])


def generate_tables(found: Measurements) -> Iterator[str]:
    rows = []
    for key, row in found.items():
        for name, times in row.get("variants", {}).items():
            base = next(iter(row["variants"].values()))
            rows.append(
                [
                    key,
                    name,
                    *(f"{1e3 * Spread.of(times[f'{kind}_s']).median:.2f}" for kind in ("prefill", "decode")),
                    *(ratios(times[f"{kind}_s"], base[f"{kind}_s"]).text() for kind in ("prefill", "decode")),
                ]
            )
        if "waits" in key and not not_measured(row):
            counts = f"{row['base']} times without, {row['one adapter']} times with an adapter"
            yield f"{key}: the host waits for the device {counts}."
    if rows:
        yield "Milliseconds of a prefill and of a decoded token; ÷ base is the ratio within a round."
        yield table(("case", "model", "prefill", "decode", "prefill ÷ base", "decode ÷ base"), rows)
    yield from left_out(found)


def quality_tables(found: Measurements) -> Iterator[str]:
    scored = {name: row for name, row in found.items() if row.get("scores")}
    titles = list(dict.fromkeys(title for row in scored.values() for title in row["scores"]))
    if scored:
        yield "Equal time, one seed. Points of 100 with 95 % intervals over the rows scored."
        rows = [
            [
                name,
                f"{row.get('parameters', 0):,}",
                f"{row['learning_rate']:g}" if row.get("steps") else "–",
                f"{row['steps']:,}" if row.get("steps") else "–",
                *(score(row["scores"].get(title)) for title in titles),
                f"{100 * row['mean_score']:.1f}",
            ]
            for name, row in scored.items()
        ]
        yield table(("method", "trained", "rate", "steps", *titles, "mean"), rows)
    yield from left_out(found)


def score(row: dict[str, Any] | None) -> str:
    return "–" if row is None else f"{100 * row['score']:.1f} ({100 * row['low']:.1f}–{100 * row['high']:.1f})"


def recipes_tables(found: Measurements) -> Iterator[str]:
    for row in found.values():
        if row.get("scores"):
            tasks = list(dict.fromkeys(task for scores in row["scores"].values() for task in scores))
            yield f"{row['title']} (the mean over seeds, where there are several, is in the comparison's own report):"
            rows = [
                [label, *(f"{100 * scores[task]:.1f}" if task in scores else "–" for task in tasks)]
                for label, scores in row["scores"].items()
            ]
            yield table(("method", *tasks), rows)
    yield from left_out(found)


def checks_tables(found: Measurements) -> Iterator[str]:
    rows = [[key, not_measured(row) or "passed"] for key, row in found.items()]
    if rows:
        yield table(("test", "result"), rows)


TABLES = {
    "edit": edit_tables,
    "steps": steps_tables,
    "generate": generate_tables,
    "recipes": recipes_tables,
    "quality": quality_tables,
    "checks": checks_tables,
}


# --- targets ----------------------------------------------------------------------------------------------------------


def of_steps(parts: dict[str, Any], name: str) -> dict[str, Any]:
    stamp = parts["steps"]["stamp"]
    if stamp["tiny"] or not stamp["device"].startswith("cuda"):
        raise ValueError("not measured on an accelerator")
    return parts["steps"]["measurements"][f"8B: {name}"]


OURS, FLOOR, LORA = "ours, all layers f7+l7", "floor", "LoRA r 8, all linear"
TARGETS = (
    Target(
        "GPU, 8B shape: step ÷ floor with response logits",
        lambda parts: of_steps(parts, OURS)["median_s"] / of_steps(parts, FLOOR)["median_s"],
        1.05,
        at_most=True,
    ),
    Target(
        "GPU, 8B shape: peak memory ÷ LoRA all linear",
        lambda parts: of_steps(parts, OURS)["peak_mb"] / of_steps(parts, LORA)["peak_mb"],
        0.7,
        at_most=True,
    ),
)


# --- texts ------------------------------------------------------------------------------------------------------------


def stamp_of(parts: dict[str, Any]) -> dict[str, Any]:
    return next(iter(parts.values()))["stamp"]


def text_of(parts: dict[str, Any]) -> str:
    """All tables."""
    stamp = stamp_of(parts)
    versions = ", ".join(f"{name} {version}" for name, version in stamp["versions"].items())
    toy = " **Toy sizes: no measurement.**" if stamp["tiny"] else ""
    texts = [
        f"`scripts/gpu.sh`, {stamp['date']}, {stamp['machine']}. Python {stamp['python']}, CUDA {stamp['cuda']}; "
        f"{versions}.{toy}"
    ]
    for name in PARTS:
        texts.append(f"## {TITLES[name]}")
        if name not in parts:
            texts.append("Not run.")
            continue
        if not parts[name]["complete"]:
            texts.append(f"**Ended before it was done**, after {parts[name]['seconds']:.0f} s.")
        texts.extend(TABLES[name](parts[name]["measurements"]))
    return "\n\n".join(texts) + "\n"


def page_text(parts: dict[str, Any], report: str) -> str:
    """The page's table: the targets, and of the 8B shape each method."""
    stamp = stamp_of(parts)
    lines = [f"`make gpu`, {stamp['machine'].split(',')[0]}:", targets_table([t.measured(parts) for t in TARGETS])]
    steps = parts.get("steps", {}).get("measurements", {})
    timed = {key: row for key, row in steps.items() if "median_s" in row and not key.startswith("1B")}
    if timed:
        head = ("step of 16 × 512 tokens, bfloat16", "s", "tokens/s", "peak MB")
        lines.append(
            table(
                head,
                [
                    [key, rounded(row["median_s"]), f"{row['tokens_s']:,.0f}", f"{row['peak_mb']:,.0f}"]
                    for key, row in timed.items()
                ],
            )
        )
    lines.append(f"All tables are in [{report}](../benchmarks/results/{report}).")
    return "\n\n".join(lines)


def with_block(page: str, block: str) -> str:
    """The page with this between its marks.

    Raises:
        ValueError: it has no such marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} with {END} behind it, between which the table goes")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def device_slug(stamp: dict[str, Any]) -> str:
    """The hardware, for a file's name: h200."""
    name = stamp["machine"].split(",")[0].lower().replace("nvidia", "")
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def write_report(folder: Path, *, results: Path = RESULTS, page: Path = PAGE) -> Path:
    """Report, the page's table and the targets in `latest.json`, from the parts' files.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are of toy sizes, which are not for the repository's own report.
    """
    parts = read_parts(folder)
    if not parts:
        raise FileNotFoundError(f"{str(folder)!r} has none of {', '.join(f'{name}.json' for name in PARTS)}")
    stamp = stamp_of(parts)
    if stamp["tiny"] and results == RESULTS:
        raise ValueError("these are toy sizes: name other places with --results and --page")
    file = results / f"{stamp['date'][:10]}_{device_slug(stamp)}.md"
    targets = [target.measured(parts) for target in TARGETS]
    text = f"# On a GPU\n\n{targets_table(targets)}\n\n{text_of(parts)}"
    changed = with_block(page.read_text(encoding="utf-8"), page_text(parts, file.name))
    write_whole(file, text)
    write_latest(results / "latest.json", targets)
    write_whole(page, changed)
    return file


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.report")
    parser.add_argument("verb", choices=("table", "report"))
    parser.add_argument("folder", type=Path, help="holds the parts' JSON files")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the report")
    parser.add_argument("--page", type=Path, default=PAGE, help="has the marks between which the table goes")
    options = parser.parse_args(given)
    if options.verb == "table":
        text = text_of(read_parts(options.folder)) if read_parts(options.folder) else "No part left anything.\n"
        write_whole(options.folder / "table.md", text)
        print(text)
        return 0
    try:
        print(f"report: {write_report(options.folder, results=options.results, page=options.page).name}")
    except (FileNotFoundError, ValueError) as error:
        print(f"gpu-report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
