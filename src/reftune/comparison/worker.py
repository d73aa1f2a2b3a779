"""One run of a comparison, in a process of its own, so that its memory can be measured and its end ends nothing else.

    python -m reftune.comparison.worker SETTINGS.json FOLDER [ENGINE]

Settings are those of `study.Run`; `REFTUNE_DATA` names the data folder.  What the folder gets: `adapter/` (or
`trained.safetensors` where the method is no adapter), `fit.json` once it is trained, a JSON line per scored row in
`<task>.jsonl`, and at the end `result.json`.  Started again it goes on after the last of these that is there.

Must not know: other runs, reports.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils import release_memory
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from ..adapter_files import is_adapter
from ..evaluation.engines import choose_engine, close_engine, vllm_engine
from ..evaluation.own import task_of
from ..evaluation.runner import evaluate_rows
from ..files import read_json, write_json
from ..models import fingerprint, load_base
from .classify import run_classes
from .fit import fit
from .methods import METHODS
from .rows import RunRows, refuse_others, rows_of_run
from .trained import ADAPTER, load_trained, save_trained, size_of

__all__ = ["WITH_PARENT", "run", "run_text"]

logger = logging.getLogger("reftune")

WITH_PARENT = "--with-parent"
"""Last argument of this module: the process ends when the one that started it does."""


def run(
    settings: dict[str, Any], folder: Path, *, data_dir: str | None = None, engine: str = "transformers"
) -> dict[str, Any]:
    """Train and score as the settings say; the run's part of `results.json`, which is also in `result.json`.

    `engine` is what answers when it is scored, see `evaluation.engines`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of_run(settings, data_dir)
    # what it depends on beside its settings, kept with what it finds
    made_from = {"rows": rows.key, "model_files": fingerprint(settings["model"])}
    refuse_others(folder, made_from)
    if settings["kind"] == "text":
        found = run_text(settings, folder, rows, made_from, engine)
    else:
        found = run_classes(settings, folder, rows)
    result = {**found, **made_from}
    write_json(folder / "result.json", result)
    return result


def run_text(
    settings: dict[str, Any], folder: Path, rows: RunRows, made_from: dict[str, Any], engine: str = "transformers"
) -> dict[str, Any]:
    """A causal model that answers in words; `made_from` is kept with what was trained."""
    tasks = [task_of(entry) for entry in settings["tasks"]]
    method = METHODS[settings["method"]]
    set_seed(settings["seed"])
    base, tokenizer = load_base(settings["model"], dtype=settings["dtype"])
    model = method.apply(base, settings["config"], "CAUSAL_LM")
    fitted = folder / "fit.json"
    if not method.trains:
        write_json(fitted, made_from)
    elif fitted.is_file():
        load_trained(model, folder)
    else:
        records = [task.record(row) for task in tasks for row in rows.train.get(task.name, ())]
        measured = fit(model, tokenizer, records, settings, folder / "checkpoints")
        save_trained(model, folder)
        write_json(fitted, {**asdict(measured), **made_from})
    # before the scoring, which may freeze or cast
    size = size_of(model, folder)
    scores = {}
    answering: Any = model
    if is_adapter(folder / ADAPTER) or not method.trains:
        adapter = str(folder / ADAPTER) if method.trains else None
        arguments = [{**task.generation, **settings["generation"]} for task in tasks]
        chosen, note = choose_engine(engine, settings["model"], adapter, arguments)
        if note is not None:
            logger.info("%s", note)
        if chosen == "vllm":
            # its memory is vLLM's from now on
            answering = model = base = None
            release_memory()
            answering = vllm_engine(settings["model"], adapter, dtype=settings["dtype"])
    for task in tasks:
        found = evaluate_rows(
            answering,
            tokenizer,
            task,
            rows.test[task.name],
            batch_size=settings["eval_batch_size"],
            file=folder / f"{task.name}.jsonl",
            **settings["generation"],
        )
        scores[task.name] = found.summary()
    close_engine(answering)
    counts = {name: len(found) for name, found in rows.train.items()}
    return {**size, **read_json(fitted), "train_rows": counts, "scores": scores}


def main() -> None:
    """The command of this module."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    transformers_logging.disable_progress_bar()
    if WITH_PARENT in sys.argv:
        threading.Thread(target=end_with_parent, daemon=True).start()
    given = [argument for argument in sys.argv[3:] if argument != WITH_PARENT]
    run(read_json(Path(sys.argv[1])), Path(sys.argv[2]), engine=given[0] if given else "transformers")


def end_with_parent() -> None:
    """End this process when nobody holds the other end of its standard input any more.

    Else a comparison that was killed and started again would have two processes in one run's folder.
    """
    # not by sys.stdin, whose lock would be missed at the end
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
