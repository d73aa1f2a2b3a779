"""Part 2, training steps on random weights: ours beside the floor and LoRA; time, memory, and where time is lost.

A step of ours is a real step of `ReftTrainer.train()`, those of the others bare loops, as in `benchmarks.peers`.  One
base is in memory; the methods are put on it one after the other, and the floor is measured again at the end.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from reftune import ReftConfig, ReftTrainer

from ..cases import random_rows, write_rows
from ..peers.bases import load_base, tokenizer_of, training_arguments
from ..peers.floor import Floor
from ..peers.lora import Lora
from ..peers.protocol import Case, Memory, StepWorker
from ..stats import Spread
from .common import Part
from .shapes import shapes, step_flops

RESPONSE = 32
# steps that are timed, behind those that warm up
STEPS, WARM = 6, 2
# a step slower than this many times the floor is looked into
SLOW = 1.05
FLOOR, FLOOR_AGAIN, OURS, LORA = "floor", "floor again", "ours, all layers f7+l7", "LoRA r 8, all linear"
CHECKPOINTED = ", checkpointed"
TOP_KERNELS = 12
# of a shape: those of the others would leave no time for the next one
PROFILES = 2
FLASH = ("flash_attention_2", "flash_attn")


@dataclass(frozen=True)
class Variant:
    """One row: a method on the base."""

    name: str
    method: str
    reft: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    checkpointed: bool = False
    attention: tuple[str, str] | None = None
    """Another implementation of attention than the usual one, and the package that it needs."""


def variants(layers: int, *, tiny: bool) -> list[Variant]:
    """In the order of their worth: there may not be time for all."""
    packed = ("sdpa", "torch") if tiny else FLASH
    off = {"reuse": "off"}
    return [
        Variant(FLOOR, "floor"),
        Variant(OURS, "ours", {"positions": "f7+l7"}, off),
        Variant(LORA, "lora"),
        Variant("ours, l7 with reuse", "ours", {"positions": "l7"}),
        Variant("ours, middle layer l1 with reuse", "ours", {"positions": "l1", "layers": [layers // 2]}),
        Variant("ours, prompt", "ours", {"positions": "prompt"}, off),
        Variant(FLOOR + CHECKPOINTED, "floor", checkpointed=True),
        Variant(OURS + CHECKPOINTED, "ours", {"positions": "f7+l7"}, off, checkpointed=True),
        Variant(LORA + CHECKPOINTED, "lora", checkpointed=True),
        Variant("ours, f7+l7, packing", "ours", {"positions": "f7+l7"}, {**off, "packing": True}, attention=packed),
        Variant(FLOOR_AGAIN, "floor"),
    ]


class Recorder(TrainerCallback):
    """Seconds of each step; at `action_at` something is begun, for the steps behind."""

    def __init__(self, part: Part, actions: dict[int, Callable[[], None]]) -> None:
        self.part, self.actions = part, actions
        self.seconds: list[float] = []
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.part.synchronise()
        self.seconds.append(time.perf_counter() - self.began)
        if (action := self.actions.get(state.global_step)) is not None:
            action()
        self.began = time.perf_counter()


class Heard(logging.Handler):
    """What reftune says of a training, such as whether anything is reused."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Shape:
    """A base of one shape, and the methods on it."""

    def __init__(self, part: Part, shape: dict[str, Any], rows: Path, batch: int) -> None:
        self.part, self.shape = part, shape
        self.case = Case.of(
            {
                "layers": list(range(shape["num_hidden_layers"])),
                "first": 7,
                "last": 7,
                "rank": 4,
                "rows": str(rows),
                "batch_size": batch,
                "model": {"llama": shape},
                "device": part.device,
                "dtype": "bfloat16" if part.cuda else "float32",
            }
        )
        self.base = load_base(self.case)
        self.length = len(self.case.rows[0][0])

    # --- one method ---------------------------------------------------------------------------------------------------

    def measure(self, variant: Variant, *, profiled: bool = False) -> dict[str, Any]:
        """Its steps; with `profiled` only what two of them did."""
        self.part.free()
        memory = Memory("cuda" if self.part.cuda else "cpu")
        memory.begin()
        run = self.trainer_steps if variant.method == "ours" else self.loop_steps
        profiler = Profiler(self.part) if profiled else None
        usual = self.base.config._attn_implementation
        try:
            if variant.attention is not None:
                self.base.set_attn_implementation(variant.attention[0])
            seconds, more = run(variant, profiler)
        finally:
            self.base.set_attn_implementation(usual)
            self.base.gradient_checkpointing_disable()
            self.base.requires_grad_(False)
        if profiler is not None:
            return profiler.read()
        kept = seconds[WARM:]
        median = Spread.of(kept).median
        tokens = self.case.batch_size * self.length
        flops = step_flops(self.shape, batch=self.case.batch_size, length=self.length, labelled=RESPONSE)
        return {
            "median_s": median,
            "tokens_s": tokens / median,
            "tflop_s": flops / median / 1e12,
            **memory.read(),
            "seconds": [round(s, 5) for s in kept],
            "first_s": sum(seconds[:WARM]),
            **more,
        }

    def loop_steps(self, variant: Variant, profiler: Profiler | None) -> tuple[list[float], dict[str, Any]]:
        worker: StepWorker = Lora("all-linear") if variant.method == "lora" else Floor(response_only=True)
        worker.base = self.base
        if variant.checkpointed:
            self.base.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            size = worker.prepare(self.case)["parameters"]
            worker.model.train()
            seconds = []
            for index in range(WARM + (2 if profiler else self.steps)):
                if profiler is not None and index == WARM:
                    profiler.begin()
                seconds.append(worker.step()["seconds"])
            if profiler is not None:
                profiler.end()
        finally:
            if variant.method == "lora" and hasattr(worker, "model"):
                worker.model.unload()
        return seconds, {"parameters": size}

    def trainer_steps(self, variant: Variant, profiler: Profiler | None) -> tuple[list[float], dict[str, Any]]:
        config = ReftConfig(r=self.case.rank, task_type="CAUSAL_LM", **variant.reft)
        model = get_peft_model(self.base, config)
        heard = Heard()
        logger = logging.getLogger("reftune")
        logger.addHandler(heard)
        try:
            actions = {WARM: profiler.begin, WARM + 2: profiler.end} if profiler else {}
            steps = WARM + (2 if profiler else self.steps)
            recorder = Recorder(self.part, actions)
            trainer = self.trainer(variant, model, recorder, steps=steps)
            size = sum(p.numel() for p in model.parameters() if p.requires_grad)
            recorder.began = time.perf_counter()
            trainer.train()
            trainer._drop_frozen()
        finally:
            logger.removeHandler(heard)
            model.unload()
        return recorder.seconds, {"parameters": size, "said": heard.lines}

    def trainer(self, variant: Variant, model: Any, recorder: Recorder, *, steps: int) -> ReftTrainer:
        more = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
        trainer = ReftTrainer(
            model=model,
            args=training_arguments(self.case, steps=steps, **(more if variant.checkpointed else {})),
            # a list, since the library of data sets may be missing
            train_dataset=[
                {"input_ids": ids, "labels": [-100] * n + ids[n:], "prompt_length": n} for ids, n in self.case.rows
            ],
            processing_class=tokenizer_of(self.case),
            callbacks=[recorder],
            **variant.trainer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        return trainer

    @property
    def steps(self) -> int:
        return 2 if self.part.tiny else STEPS


class Profiler:
    """What two steps did: the kernels that took most, how often the device was launched and how long it was idle."""

    def __init__(self, part: Part) -> None:
        self.part = part
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if part.cuda:
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self.profile = torch.profiler.profile(activities=kinds)
        self.seconds = 0.0

    def begin(self) -> None:
        self.part.synchronise()
        self.profile.start()
        self.seconds = -time.perf_counter()

    def end(self) -> None:
        self.part.synchronise()
        self.seconds += time.perf_counter()
        self.profile.stop()

    def read(self) -> dict[str, Any]:
        events = self.profile.key_averages()

        def took(event: Any) -> float:
            return event.self_device_time_total if self.part.cuda else event.self_cpu_time_total

        on_device = [
            event
            for event in events
            if took(event) > 0
            and (not self.part.cuda or "CUDA" in str(event.device_type).upper())
            # the optimiser marks its step on the device, over the kernels that are in it
            and not getattr(event, "is_user_annotation", False)
        ]
        total = sum(map(took, on_device)) / 1e6
        top = sorted(on_device, key=took, reverse=True)[:TOP_KERNELS]
        launches = sum(event.count for event in events if "aunchKernel" in event.key)
        host = sorted(events, key=lambda event: event.self_cpu_time_total, reverse=True)[:TOP_KERNELS]
        return {
            "steps": 2,
            "wall_s": self.seconds,
            "device_s": total,
            "idle_s": self.seconds - total,
            "launches": launches,
            "kernels": [[event.key[:90], event.count, round(took(event) / 1e3, 2)] for event in top],
            "host": [[event.key[:90], event.count, round(event.self_cpu_time_total / 1e3, 2)] for event in host],
        }


# --- the part ---------------------------------------------------------------------------------------------------------


def matrix_products(part: Part) -> dict[str, Any]:
    """The rate of large products in bfloat16, the ceiling of the steps."""
    size = 256 if part.tiny else 8192
    left, right = (torch.randn(size, size, device=part.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(8):
        part.synchronise()
        begin = time.perf_counter()
        for _ in range(4):
            left @ right
        part.synchronise()
        seconds.append((time.perf_counter() - begin) / 4)
    return {"tflop_s": 2 * size**3 / Spread.of(seconds[3:]).median / 1e12}


def measure_shape(part: Part, name: str, shape: dict[str, Any]) -> None:
    batch, length = (4, 64) if part.tiny else (16, 512)
    with tempfile.TemporaryDirectory() as folder:
        prompt = length - RESPONSE
        rows = random_rows(prompt, count=2 * batch, response=RESPONSE, vocabulary=shape["vocab_size"])
        file = write_rows(rows, Path(folder) / "rows.json")
        made = Shape(part, shape, file, batch)
    found: dict[str, dict[str, Any]] = {}
    slow: list[Variant] = []
    for variant in variants(shape["num_hidden_layers"], tiny=part.tiny):
        key = f"{name}: {variant.name}"
        if variant.attention is not None and importlib.util.find_spec(variant.attention[1]) is None:
            part.skip(key, f"{variant.attention[1]} is not installed")
            continue
        # warming up and the Trainer's own start are as long as some steps
        needs = 0 if part.tiny else 4 + 2 * STEPS * found.get(FLOOR, {}).get("median_s", 0.0)
        found[variant.name] = part.attempt(key, made.measure, variant, needs=needs)
        floor, took = (found.get(of, {}).get("median_s") for of in (FLOOR, variant.name))
        above = variant.name == OURS if part.tiny else bool(floor and took and took > SLOW * floor)
        if above and variant.method == "ours" and not variant.checkpointed:
            slow.append(variant)
    for variant in slow[:PROFILES]:
        measure = partial(made.measure, profiled=True)
        part.attempt(f"{name}: {variant.name}, profile", measure, variant, needs=0 if part.tiny else 12)


def main(given: list[str] | None = None) -> None:
    part = Part.of_command("steps", given)
    part.attempt("matrix products", matrix_products, part)
    for name, shape in shapes(tiny=part.tiny).items():
        part.free()
        try:
            measure_shape(part, name, shape)
        except (RuntimeError, ValueError, ImportError) as error:
            part.add(f"{name}: the base", {"error": f"{type(error).__name__}: {error}"})
    part.finish()


if __name__ == "__main__":
    main()
