"""What a search has found, as `results.json` holds it: trials, the Pareto front, the best again, what mattered.

Must not know: how it is shown.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import read_json
from ..reporting.machine import hardware, versions
from .gated import FILE as GATED
from .rows import SearchRows
from .settings import SearchConfig
from .space import training_of

if TYPE_CHECKING:
    from .bench import Bench
    from .study import SearchStudy

__all__ = ["RESULTS", "finalists", "front", "results_of", "standard_error"]

RESULTS = "results.json"
# Trials from which the importance of choices can be told at all.
ENOUGH = 8

Entry = dict[str, Any]


def results_of(
    config: SearchConfig,
    study: SearchStudy,
    bench: Bench,
    rows: SearchRows,
    output: Path,
    *,
    data_dir: str | None = None,
    command: str = "",
) -> dict[str, Any]:
    """All of it, as JSON can hold it."""
    # one that another process has just begun has no choices yet
    trials = [_trial(t, study) for t in study.trials() if "chosen" in t.user_attrs]
    for entry in trials:
        # what `reftune train` takes
        entry["reft"], entry["training"] = bench.reft(entry["chosen"]), training_of(entry["chosen"])
    return {
        "title": config.title or f"Search on {bench.task.title}",
        "command": command,
        "date": date.today().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
        "config": asdict(config),
        "data_dir": data_dir,
        "task": {
            "called": bench.task.called,
            "title": bench.task.title,
            "metric": "" if bench.task.metric is None else bench.task.metric.name,
            "notes": list(bench.task.notes),
        },
        "rows": {"train": len(rows.train), "choose": len(rows.chooses), "tell": len(rows.tells), "apart": rows.apart},
        "scored": "forced" if bench.is_forced else "generated",
        "layers": bench.count,
        "seconds": study.seconds(),
        "trials": trials,
        "front": [entry["number"] for entry in front(trials)],
        "importance": importance(study, trials),
        "untried": study.space.untried([entry["chosen"] for entry in trials]),
        "gates": dict(read_json(output / GATED)) if config.gates else None,
        "space": {name: list(value) for name, value in asdict(study.space).items()},
        "finals": finals_in(output, trials, finalists(trials, config.finalists)),
    }


def _trial(trial: Any, study: SearchStudy) -> dict[str, Any]:
    known = trial.user_attrs
    states = study.states
    names = {states.COMPLETE: "done", states.PRUNED: "stopped", states.FAIL: "failed", states.RUNNING: "running"}
    return {
        "number": trial.number,
        "state": names[trial.state],
        "score": None if trial.values is None else trial.values[0],
        "parameters": known.get("parameters"),
        "loss": known.get("loss"),
        "rungs": [known[name] for name in sorted(known) if name.startswith("rung ")],
        "seconds": known.get("seconds"),
        "steps": known.get("steps"),
        "chosen": known["chosen"],
        **({"error": known["error"]} if "error" in known else {}),
        "worker": known.get("worker"),
    }


def scored(trials: Sequence[Entry]) -> list[Entry]:
    """Those with a score, the best first: of equal scores the one with the lower loss."""
    found = [entry for entry in trials if entry["score"] is not None]
    return sorted(found, key=lambda entry: (-entry["score"], entry["loss"], entry["number"]))


def front(trials: Sequence[Entry]) -> list[Entry]:
    """Trials that no other beats in score with as few parameters, the smallest first (the Pareto front)."""
    found: list[Entry] = []
    best = -math.inf
    for entry in sorted(scored(trials), key=lambda entry: (entry["parameters"], -entry["score"], entry["loss"])):
        if entry["score"] > best:
            best = entry["score"]
            found.append(entry)
    return found


def finalists(trials: Sequence[Entry], count: int) -> list[int]:
    """Numbers of the best by score."""
    return [entry["number"] for entry in scored(trials)[:count]]


def standard_error(score: float, rows: int) -> float:
    """Of a share of right answers among so many rows."""
    return math.sqrt(max(score * (1 - score), 0.25 / rows) / rows)


def finals_in(output: Path, trials: Sequence[Entry], numbers: Sequence[int]) -> list[dict[str, Any]]:
    """What the trainings of the finalists found that are done, the best mean first."""
    found: list[dict[str, Any]] = []
    for entry in trials:
        files = sorted(output.glob(f"finals/trial-{entry['number']}-seed-*/result.json"))
        if entry["number"] not in numbers or not files:
            continue
        runs = [
            {"seed": int(file.parent.name.rpartition("-")[2]), "folder": str(file.parent.relative_to(output))}
            | read_json(file)
            for file in files
        ]
        scores = [run["score"] for run in runs]
        found.append(
            {
                "number": entry["number"],
                "parameters": entry["parameters"],
                "score": statistics.fmean(scores),
                "spread": statistics.stdev(scores) if len(scores) > 1 else None,
                # rows are the same for all seeds, so that more seeds do not narrow what rows leave open
                "low": statistics.fmean(run["low"] for run in runs),
                "high": statistics.fmean(run["high"] for run in runs),
                "runs": runs,
            }
        )
    return sorted(found, key=lambda one: (-one["score"], one["parameters"]))


def importance(study: SearchStudy, trials: Sequence[Entry]) -> dict[str, float]:
    """Share of the score's variance that each choice explains alone (fANOVA, Hutter et al. 2014); none of too few."""
    scores = [entry["score"] for entry in trials if entry["score"] is not None]
    if len(scores) < ENOUGH or len(set(scores)) < 2:
        return {}
    # scikit-learn, which comes with the extra
    import optuna  # noqa: PLC0415

    found = optuna.importance.get_param_importances(
        study.study,
        evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
        target=lambda trial: trial.values[0],
    )
    return {name: float(value) for name, value in found.items()}
