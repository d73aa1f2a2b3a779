"""`python plot.py step.json out.svg`: seconds of a step of each method ÷ ours, by case and prompt length.

Runs in the environment `plot`.  Must not know: anything else of this folder.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

# ratios beyond this are drawn on a logarithmic scale
LOG_FROM = 3
COLOURS = {
    "floor, response logits": "#bdbdbd",
    "floor, all logits": "#8c8c8c",
    "pyreft": "#d95f02",
    "AdapterHub": "#7570b3",
    "LoRA all linear": "#1b9e77",
    "LoRA o_proj": "#a6d854",
    "ours, reuse off": "#6baed6",
}


def relative(methods: dict[str, Any]) -> dict[str, float]:
    """Median over the rounds of seconds ÷ ours."""
    ours = methods.get("ours", {}).get("seconds", [])
    return {
        name: statistics.median(a / b for a, b in zip(row["seconds"], ours, strict=True))
        for name, row in methods.items()
        if name != "ours" and row.get("seconds") and "error" not in row and len(row["seconds"]) == len(ours)
    }


def draw(axes: Any, title: str, bars: dict[int, dict[str, float]]) -> None:
    names = list(dict.fromkeys(name for values in bars.values() for name in values))
    width = 0.8 / max(1, len(names))
    for index, name in enumerate(names):
        places = [i + index * width for i, values in enumerate(bars.values()) if name in values]
        heights = [values[name] for values in bars.values() if name in values]
        drawn = axes.bar(places, heights, width, label=name, color=COLOURS.get(name, "#444444"))
        axes.bar_label(drawn, fmt="%.2g", fontsize=6)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(bars))], [f"{prompt} tokens" for prompt in bars])
    axes.set_title(title, fontsize=9)
    if max((value for values in bars.values() for value in values.values()), default=1) > LOG_FROM:
        axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.1)


def main(source: str, target: str) -> None:
    measurements = json.loads(Path(source).read_text(encoding="utf-8"))["measurements"].values()
    cases: dict[str, dict[int, dict[str, float]]] = {}
    for measurement in measurements:
        cases.setdefault(measurement["case"], {})[measurement["prompt"]] = relative(measurement["methods"])
    # text as text: a picture of a few kilobytes
    plt.rcParams.update({"svg.fonttype": "none", "font.size": 8, "svg.hashsalt": "reftune"})
    figure, axes = plt.subplots(1, len(cases), figsize=(4 * len(cases), 3), squeeze=False)
    for place, (case, bars) in zip(axes[0], cases.items(), strict=True):
        draw(place, case, bars)
    axes[0][0].set_ylabel("seconds of a step ÷ ours")
    handles = {
        label: handle for place in axes[0] for handle, label in zip(*place.get_legend_handles_labels(), strict=True)
    }
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(handles), fontsize=7, frameon=False)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
