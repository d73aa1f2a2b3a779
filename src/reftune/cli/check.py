"""`reftune train --check`: what a run would train on and what it would cost, without training."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from ..errors import ReftuneError
from .output import has_colours, say

if TYPE_CHECKING:
    from ..training import RunConfig

__all__ = ["check_run", "print_check"]

SHOWN, MEASURED = 3, 2000
# the first step warms up
STEPS = 3
EDITED, ANSWER = "black on bright_yellow", "green"


def check_run(run: RunConfig) -> dict[str, Any]:
    """Three rows as they would be trained on, lengths of all, and the time and memory of a few steps at rate 0.

    Nothing is written below the run's output.

    Raises:
        ReftuneError: what would also keep the run from training.
    """
    from ..data.records import read_records
    from ..data.tokenize import tokenize_record
    from ..data.turns import split_record
    from ..models import load_base
    from ..serving.jobs.plan import Base
    from ..serving.jobs.preview import preview_rows
    from ..training.shared import adapted
    from ..tuner import find_stacks

    rows = read_records(run.data)
    if run.train_on == "all":
        rows = replace(rows, records=[one for record in rows.records for one in split_record(record)], numbers=None)
    base, tokenizer = load_base(run.model, dtype=run.dtype)
    try:
        config = run.reft_config().resolve_texts(tokenizer)
    except ValueError as error:
        raise ReftuneError(str(error)) from error
    blocks = len(find_stacks(base)[0].blocks)
    limit = run.max_length or math.inf
    place = Base(run.model, run.model, blocks, base.config.get_text_config().hidden_size, 0)
    reft = {**run.reft, "positions": config.positions, "groups": config.groups}
    lengths = [len(tokenize_record(row, tokenizer).input_ids) for row in list(rows.records)[:MEASURED]]
    longest = max(lengths) if run.max_length is None else run.max_length
    shown = preview_rows(rows, reft, place, tokenizer, first=0, limit=SHOWN, max_length=longest)
    with adapted(base, config) as model:
        trained, total = model.get_nb_trainable_parameters()
        cost = _cost(run, model, tokenizer)
    return {
        "rows": len(rows),
        "shown": [row.model_dump(exclude_none=True) for row in shown],
        "lengths": {
            "of_rows": len(lengths),
            "shortest": min(lengths),
            "median": int(statistics.median(lengths)),
            "longest": max(lengths),
            "cut": sum(length > limit for length in lengths),
        },
        "trainable_parameters": trained,
        "trainable_percent": round(100 * trained / total, 4),
        **cost,
    }


def _cost(run: RunConfig, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Steps of the run; seconds of one and memory, of a few that change nothing."""
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from ..comparison.fit import peak_memory_mb, reset_peak_memory
    from ..training import ReftTrainer
    from ..training.run import datasets_of

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.times.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.times[-1] = time.perf_counter() - self.times[-1]

    dataset, _ = datasets_of(run, tokenizer)
    arguments = run.training_arguments(len(dataset))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        short = {"max_steps": STEPS, "save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
        short |= {"per_device_train_batch_size": arguments.per_device_train_batch_size}
        short |= {"learning_rate": 0.0, "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}
        trial = replace(run, output=folder, eval_data=None, best=False, training={**run.training, **short})
        trainer = ReftTrainer(
            model=model,
            args=trial.training_arguments(),
            train_dataset=dataset,
            processing_class=tokenizer,
            packing=run.packing,
            reuse="off",
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        reset_peak_memory()
        trainer.train()
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps
    a_pass = math.ceil(len(dataset) / batch)
    steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * a_pass)
    a_step = statistics.median(clock.times[1:] or clock.times)
    return {
        "steps": steps,
        "seconds_a_step": round(a_step, 3),
        "seconds": round(a_step * steps, 1),
        "memory_bytes": round(peak_memory_mb() * 1e6),
        "reuse": run.reuse,
        "scores": run.eval_data is not None,
    }


def print_check(console: Console, found: dict[str, Any]) -> None:
    """What `check_run` found, for people."""
    legend = Text("prompt plain, ").append("answer", style=ANSWER).append(" in green or behind ▷, ")
    console.print(legend.append("edited tokens", style=EDITED).append(" marked" if has_colours(console) else " in ⟦⟧"))
    for row in found["shown"]:
        title = f"\n[bold]row {row['row']}[/bold]: "
        if "error" in row:
            console.print(title, Text(row["error"], style="red"), sep="")
            continue
        edited = sum(bool(groups) for groups in row["edits"])
        cut = f", {row['cut']} cut from the left" if row.get("cut") else ""
        console.print(f"{title}{len(row['ids'])} tokens, {row['prompt_length']} of them prompt{cut}; {edited} edited")
        console.print(_picture(row["tokens"], row["edits"], row["prompt_length"], colours=has_colours(console)))
    lengths = found["lengths"]
    of_all = "" if lengths["of_rows"] == found["rows"] else f" (of the first {lengths['of_rows']:,})"
    say(
        console,
        f"\n{found['rows']:,} rows{of_all}: {lengths['shortest']} to {lengths['longest']} tokens, half of them up to "
        f"{lengths['median']}; {lengths['cut']:,} are longer than max_length and are cut",
    )
    say(console, f"{found['trainable_parameters']:,} trained parameters, {found['trainable_percent']}% of the model")
    less = "; less where what cannot change is computed once" if found["reuse"] == "auto" else ""
    say(console, f"{found['steps']:,} steps of {found['seconds_a_step']:.2f} s: about {_time(found['seconds'])}{less}")
    if found["scores"]:
        say(console, "scoring comes on top: each row is answered twice, by the adapter and by the base model")
    say(console, f"memory: {found['memory_bytes'] / 1e9:.1f} GB at most in a few steps")
    say(console, "Nothing was trained or written. Without --check it trains.")


def _picture(tokens: Sequence[str], edits: Sequence[Any], prompt_length: int, *, colours: bool) -> Text:
    text = Text()
    for index, (token, groups) in enumerate(zip(tokens, edits, strict=True)):
        if index == prompt_length and not colours:
            text.append("▷")
        shown = token.replace("\n", "⏎" if groups else "⏎\n")
        style = EDITED if groups else ANSWER if index >= prompt_length else "dim"
        text.append(shown if colours or not groups else f"⟦{shown}⟧", style=style if colours else "")
    return text


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
