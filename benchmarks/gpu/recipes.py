"""Part 2, which start, positions, rank and learning rate are good by default: the stages of results/recipes.

A model of 135M leaves most of a large GPU idle, so that many runs go beside each other, in processes that stay.  Each
stage is a comparison as `reftune compare` knows it, its runs kept by their settings, its `results.json` written there.
What the next stage is follows from held-out training rows by the rules below, never from test rows.  Rows come from the
folder that REFTUNE_DATA names.  Runs that are in the folder of results are not done again, so it also goes on alone:

    REFTUNE_DATA=DIR python -m benchmarks.gpu.recipes --device cpu --workers 1 --until 9e9 --results results/recipes

On a GPU products are of TF32 (`scripts/gpu.sh` sets it), for all methods alike.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reftune.comparison.compare import results_of
from reftune.comparison.study import Run, StudyConfig, runs_of
from reftune.errors import ReftuneError
from reftune.files import read_json, write_json
from reftune.models import load_base

from ..settings import DATA_DIR
from .common import Part
from .quality import toy_model

RATES = (1e-3, 2e-3, 5e-4, 4e-3)
POSITIONS = ("prompt", "f7+l7", "l7", "all")
PHI: dict[str, tuple[str, dict[str, Any]]] = {
    "LoReFT delta": ("loreft", {"init": "zero", "form": "delta"}),
    "LoReFT identity": ("loreft", {"init": "identity", "form": "direct"}),
    "DiReFT zero": ("direft", {"init": "zero"}),
}
# rank 1 on these has about as many parameters as ours at rank 8
SMALL = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
LORAS: dict[str, dict[str, Any]] = {
    "LoRA r 8": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
    "LoRA r 1": {"r": 1, "lora_alpha": 2, "target_modules": SMALL},
}
COMMON: dict[str, Any] = {
    "train_rows": 1000,
    "test_rows": 500,
    "epochs": 2,
    "batch_size": 16,
    "eval_batch_size": 125,
    "seeds": [42],
    "generation": {"max_new_tokens": 4},
}
LONG = "qnli-long"
TESTED = ["sst2", "mnli", "qqp"]
SEEDS = [42, 43, 44]
# CPU seconds of LoRA r 8 over those of LoReFT r 8 at the prompt, two epochs, one core: 1,009/830 (MNLI), 816/668 (QQP)
SAME_TIME = 1.22


@dataclass(frozen=True)
class Choice:
    """A method with one setting of everything; `rate` is its learning rate."""

    name: str
    positions: str | None
    rank: int
    rate: float

    @property
    def form(self) -> tuple[str, str | None]:
        return self.name, self.positions

    def entry(self, label: str = "", **more: Any) -> dict[str, Any]:
        """As a line of `methods` in a comparison."""
        if self.name in LORAS:
            method, config = "lora", LORAS[self.name]
        else:
            method, start = PHI[self.name]
            config = {**start, "positions": self.positions, "r": self.rank}
        place = "" if self.positions is None else f" {self.positions} r {self.rank}"
        label = label or f"{self.name}{place}, lr {self.rate:g}"
        return {"method": method, "label": label, "config": config, "training": {"learning_rate": self.rate}, **more}


@dataclass
class Stage:
    """A comparison, in a folder of its own."""

    name: str
    config: StudyConfig
    folder: Path
    runs: list[Run] = field(init=False)

    def __post_init__(self) -> None:
        self.runs = runs_of(self.config)

    def scores(self) -> dict[str, dict[str, float]]:
        """label → task → score, of the runs that are done."""
        found: dict[str, dict[str, float]] = {}
        for run in self.runs:
            file = self.folder / "runs" / run.key / "result.json"
            if file.is_file():
                for task, score in read_json(file)["scores"].items():
                    found.setdefault(run.label, {})[task] = score["score"]
        return found

    def write(self) -> None:
        command = "python -m benchmarks.gpu.recipes"
        write_json(self.folder / "results.json", results_of(self.config, self.folder, command=command))


class Runner:
    """Runs in processes that stay, what matters most first, until the time is over."""

    def __init__(self, part: Part, workers: int, data: str) -> None:
        self.part, self.workers, self.data = part, workers, data
        self.waiting: list[tuple[int, int, Run, Path]] = []
        self.running: dict[Future[str], Run] = {}
        self.added: set[str] = set()
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(workers, mp_context=context) if workers > 1 else None

    @property
    def late(self) -> bool:
        return self.part.left <= 0

    def add(self, stage: Stage, priority: int) -> None:
        for run in stage.runs:
            done = (stage.folder / "runs" / run.key / "result.json").is_file()
            if run.key not in self.added and not done:
                self.added.add(run.key)
                self.waiting.append((priority, len(self.added), run, stage.folder))
        self.waiting.sort(key=lambda item: item[:2])

    def finish(self, *stages: Stage) -> bool:
        """Go on until the runs of these are done; whether they are."""
        wanted = {run.key for stage in stages for run in stage.runs}
        while self.waiting or self.running:
            open_runs = {run.key for _, _, run, _ in self.waiting} | {run.key for run in self.running.values()}
            if self.late or not wanted & open_runs:
                break
            self.step()
        for stage in stages:
            if scores := stage.scores():
                stage.write()
                self.part.add(stage.name, {"title": stage.config.title, "scores": scores})
        return not self.late

    def step(self) -> None:
        while self.waiting and len(self.running) < self.workers:
            _, _, run, folder = self.waiting.pop(0)
            given = (run.settings, str(folder / "runs" / run.key), self.data)
            if self.pool is None:
                future: Future[str] = Future()
                try:
                    future.set_result(work(*given))
                except Exception as error:  # noqa: BLE001 - whatever it is, the other runs are still worth having
                    future.set_exception(error)
            else:
                future = self.pool.submit(work, *given)
            self.running[future] = run
        done, _ = wait(self.running, timeout=1.0, return_when=FIRST_COMPLETED)
        for future in done:
            run = self.running.pop(future)
            error = future.exception()
            said = f"failed: {error}"[:300] if error else future.result()
            print(f"  recipes {run.train_task} {run.label} seed {run.seed}: {said}", flush=True)

    def end(self) -> None:
        """Nobody waits for what is still going on."""
        if self.pool is not None:
            for process in list(getattr(self.pool, "_processes", None) or {}):
                os.kill(process, 9)
            self.pool.shutdown(wait=False, cancel_futures=True)


def work(settings: dict[str, Any], folder: str, data: str) -> str:
    """One run, in whatever process."""
    import gc  # noqa: PLC0415 - of the process that stays

    import torch  # noqa: PLC0415 - as above
    from transformers.utils import logging  # noqa: PLC0415 - as above

    from reftune.comparison.worker import run  # noqa: PLC0415 - as above

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "settings.json", settings)
    try:
        found = run(settings, path, data_dir=data or None)
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    scores = ", ".join(f"{task} {score['score']:.3f}" for task, score in found["scores"].items())
    return f"{scores}, {found.get('train_seconds', 0.0):.1f} s, {found.get('steps', 0)} steps"


# --- the stages -------------------------------------------------------------------------------------------------------


class Stages:
    """What is compared with what, and what follows from it."""

    def __init__(self, runner: Runner, out: Path, common: dict[str, Any], long_rows: Path | None) -> None:
        self.runner, self.out, self.common, self.long_rows = runner, out, common, long_rows
        self.chosen: dict[str, Any] = {}

    def stage(self, name: str, title: str, tasks: Any, methods: Iterable[dict[str, Any]], **more: Any) -> Stage:
        given = {**self.common, "title": title, "tasks": tasks, "methods": list(methods), **more}
        return Stage(name, StudyConfig.from_mapping(given), self.out / name)

    def held_out(
        self, name: str, title: str, choices: Sequence[Choice], tasks: Sequence[str] = ("mnli",), **more: Any
    ) -> Stage:
        return self.stage(name, title, list(tasks), [choice.entry() for choice in choices], held_out=True, **more)

    def narrowed(self, name: str, title: str, choices: Sequence[Choice]) -> Stage:
        """MNLI with half of the rows: most of what is tried is out after it."""
        rows = self.common["train_rows"] // 2
        return self.held_out(name, f"MNLI, held-out rows, {rows} trained on: {title}", choices, train_rows=rows)

    def note(self, **more: Any) -> None:
        self.chosen.update(more)
        write_json(self.out / "chosen.json", self.chosen)

    def run(self) -> None:
        """All, as far as the time goes."""
        first = [Choice(name, at, 8, rate) for rate in RATES[:2] for at in POSITIONS for name in PHI]
        loras = [Choice(name, None, 0, rate) for rate in RATES for name in LORAS]
        # what has been tried so far says more when every rate is complete before the next
        in_order = sorted([*first, *loras], key=lambda choice: RATES.index(choice.rate))
        one = self.narrowed("1-starts", "starts and positions at rank 8", in_order)
        published = {"method": "loreft_published", "label": "LoReFT as published"}
        known = self.test("5-published", [published])
        self.runner.add(one, 0)
        self.runner.add(known, 5)
        if not self.runner.finish(one):
            return
        found = means(one)
        lora = [best(found, [c for c in loras if c.name == name]) for name in LORAS]
        self.note(loras=[choice.entry() for choice in lora])
        early = self.test("5-loras", [choice.entry(choice.name) for choice in lora])
        self.runner.add(early, 4)
        forms = ranked(found, first)[:4]
        more = [Choice(*form, 8, rate) for form in forms for rate in RATES[2:]]
        two = self.narrowed("2-rates", "the best four with two more learning rates", more)
        self.runner.add(two, 0)
        if not self.runner.finish(two):
            return
        found |= means(two)
        four = [best(found, [c for c in (*first, *more) if c.form == form]) for form in forms]
        self.note(four=[choice.entry() for choice in four])
        self.narrow(found, first, more, four, lora)

    def narrow(
        self,
        found: dict[str, float],
        first: list[Choice],
        more: list[Choice],
        four: list[Choice],
        lora: list[Choice],
    ) -> None:
        """Other ranks, other tasks; then the table on test rows."""
        leading = sorted(four, key=lambda c: -found.get(c.entry()["label"], 0.0))[:2]
        ranks = []
        for choice in leading:
            tried = sorted(
                (c for c in (*first, *more) if c.form == choice.form), key=lambda c: -found.get(c.entry()["label"], 0.0)
            )
            ranks += [Choice(*choice.form, rank, c.rate) for c in tried[:2] for rank in (4, 32)]
        three = self.narrowed("3-ranks", "the best two with other ranks", ranks)
        others = [task for task in TESTED if task != "mnli"]
        over = self.held_out("4-tasks", "QQP and SST-2, held-out rows: the best four and LoRA", [*four, *lora], others)
        self.runner.add(over, 0)
        self.runner.add(three, 1)
        if not self.runner.finish(over, three):
            return
        found |= means(three)
        total = {c: sum(over.scores().get(c.entry()["label"], {}).values()) + found[c.entry()["label"]] for c in four}
        # what edits generated tokens too costs something at each of them
        free = [c for c in four if c.positions != "all"] or four
        winner = max(free, key=lambda c: total[c])
        small = (
            best(found, [c for c in ranks if c.rank == 4 and c.form == winner.form])
            if any(c.form == winner.form for c in ranks)
            else Choice(*winner.form, 4, winner.rate)
        )
        direft = [c for c in (*first, *more) if c.name == "DiReFT zero" and c.positions == winner.positions]
        other = best(found, direft) if winner.name != "DiReFT zero" else best(found, [c for c in four if c != winner])
        last = [c for c in (*first, *more) if c.positions == "l7"]
        self.note(winner=winner.entry(), small=small.entry(), other=other.entry())
        final = self.test(
            "5-test",
            [
                winner.entry(f"{winner.name} {winner.positions} r 8"),
                small.entry(f"{small.name} {small.positions} r 4"),
                other.entry(f"{other.name} {other.positions} r {other.rank}"),
                winner.entry("the first in LoRA's CPU time", epochs=2 * SAME_TIME),
            ],
        )
        self.runner.add(final, 2)
        stages = [final]
        if self.long_rows is not None:
            stages.append(self.long(best(found, last), lora[0]))
            self.runner.add(stages[-1], 3)
        self.runner.finish(*stages)

    def test(self, name: str, methods: list[dict[str, Any]]) -> Stage:
        return self.stage(name, "Test rows, three seeds", TESTED, methods, seeds=SEEDS)

    def long(self, last: Choice, lora: Choice) -> Stage:
        assert self.long_rows is not None
        task = {
            "file": str(self.long_rows / f"{LONG}.test.jsonl"),
            "train": str(self.long_rows / f"{LONG}.train.jsonl"),
        }
        methods = [
            last.entry(f"{last.name} l7 r 8, six epochs with reuse", epochs=6),
            lora.entry("LoRA r 8, two epochs"),
        ]
        return self.stage("6-long", "QNLI, prompts of more than 100 tokens", [task], methods, seeds=SEEDS)


def means(stage: Stage) -> dict[str, float]:
    return {label: sum(scores.values()) / len(scores) for label, scores in stage.scores().items()}


def best(found: dict[str, float], choices: Sequence[Choice]) -> Choice:
    """Of these the one with the highest held-out score."""
    return max(choices, key=lambda choice: found.get(choice.entry()["label"], -1.0))


def ranked(found: dict[str, float], choices: Sequence[Choice]) -> list[tuple[str, Any]]:
    """Forms (Φ and positions) by the best of their rates."""
    forms = dict.fromkeys(choice.form for choice in choices)
    score: Callable[[Any], float] = lambda form: max(  # noqa: E731 - a key
        found.get(c.entry()["label"], -1.0) for c in choices if c.form == form
    )
    return sorted(forms, key=score, reverse=True)


TINY: dict[str, Any] = {"train_rows": 8, "test_rows": 4, "epochs": 1, "eval_batch_size": 4}


def packed(folder: Path, file: Path) -> None:
    """All of a folder but what was trained, as one file."""
    with tarfile.open(file, "w:gz") as archive:
        for path in sorted(folder.rglob("*.json*")):
            if path.is_file() and not {"adapter", "checkpoints"} & set(path.parts):
                archive.add(path, path.relative_to(folder.parent))


def problem(data: Path, model: str) -> str | None:
    """In words, why there is nothing to measure."""
    if not (data / "glue").is_dir():
        return f"REFTUNE_DATA={os.environ.get('REFTUNE_DATA', '')!r} has no folder glue/"
    try:
        load_base(model)
    except (ReftuneError, ImportError, OSError, ValueError) as error:
        return f"{model} is not here: {error}"
    return None


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.recipes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, as far as a quarter of a minute goes")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="folder of recipes.json and recipes.tgz")
    parser.add_argument("--until", type=float, default=time.time() + 300, help="seconds since 1970")
    parser.add_argument("--results", type=Path, help="folder of the stages; else one that is packed and removed")
    parser.add_argument("--workers", type=int, default=16)
    options = parser.parse_args(given)
    until = min(options.until, time.time() + 15) if options.tiny else options.until
    part = Part("recipes", out=options.out, device=options.device, tiny=options.tiny, until=until)
    with tempfile.TemporaryDirectory() as folder:
        results, model, data = options.results or Path(folder) / "recipes", "smollm2", DATA_DIR
        if options.tiny:
            model = f"{folder}/model"
            toy_model(Path(model))
        if (why := problem(data, model)) is not None:
            part.skip("recipes", why)
            return part.finish()
        runner = Runner(part, 1 if options.tiny else options.workers, str(data))
        common = {**COMMON, "model": model, **(TINY if options.tiny else {})}
        long_rows = data if (data / f"{LONG}.train.jsonl").is_file() else None
        try:
            Stages(runner, results, common, long_rows).run()
            # what is left has the rest of the time
            while (runner.waiting or runner.running) and not runner.late:
                runner.step()
        finally:
            runner.end()
        if options.results is None:
            packed(results, options.out / "recipes.tgz")
    part.finish()


if __name__ == "__main__":
    main()
