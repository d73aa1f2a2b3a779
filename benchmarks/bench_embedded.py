"""The server on transformers, its engine in this process: tokens per CPU second beside plain `generate` of the base.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_embedded --adapters 0,1,8,64 --positions prompt --rounds 7

A batch of random prompts; the answers are of full length.  Each way comes once a round, there and back; ratios are
taken within a round.  CPU seconds are those of the whole process, so that what else runs on the machine does not count.
The model `tiny` is random, with 30 narrow layers: of it, next to all is what Python costs.

Must not know: HTTP.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import pstats
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from benchmarks.stats import Spread, ratios
from reftune import ReftConfig
from reftune.models import load_base, load_tokenizer
from reftune.reporting.machine import hardware, versions
from reftune.serving.adapters import read_adapter
from reftune.serving.embedded.engine import Engine, EngineOptions
from reftune.serving.embedded.rows import Piece, Row, RowRequest
from reftune.serving.embedded.sampling import SamplingOptions

PATIENCE = 600.0


def load(name: str, dtype: torch.dtype) -> Any:
    if name != "tiny":
        return load_base(name, dtype=dtype)[0].eval()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=30,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model: Any = LlamaForCausalLM(config)
    return model.to(dtype).eval()


class Ways:
    """The engine with adapters, the base with none, and what is asked of both."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        dtype = getattr(torch, given.dtype)
        self.tokenizer = load_tokenizer("smollm2" if given.model == "tiny" else given.model)
        self.bare = load(given.model, dtype)
        vocabulary = self.bare.config.vocab_size
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(20, vocabulary, (given.batch, given.prompt), generator=generator)
        options = EngineOptions(max_batch_size=given.batch, batch_wait=PATIENCE)
        self.engine = Engine(load(given.model, dtype), options=options)
        self.engine.start()
        self.offset = 0

    def load_adapters(self, count: int) -> None:
        config = ReftConfig(
            task_type="CAUSAL_LM", positions=self.given.positions, layers="all", init="random", r=self.given.r
        )
        for i in range(count):
            with tempfile.TemporaryDirectory() as folder:
                torch.manual_seed(i)
                model = get_peft_model(self.bare, config)
                model.save_pretrained(folder)
                model.unload()
                self.engine.load(f"adapter-{i}", read_adapter(Path(folder))).result()

    def generate(self) -> None:
        config = GenerationConfig(max_new_tokens=self.given.new, min_new_tokens=self.given.new, do_sample=False)
        with torch.inference_mode():
            self.bare.generate(self.ids, attention_mask=torch.ones_like(self.ids), generation_config=config)

    def serve(self, count: int) -> None:
        """One batch, its rows with `count` adapters by turns; of more than there are rows, others each time."""
        ended = threading.Semaphore(0)

        def on_piece(piece: Piece) -> None:
            if piece.finish is not None:
                assert piece.finish == "length" and piece.made == self.given.new, piece
                ended.release()

        sampling = SamplingOptions(temperature=self.given.temperature, top_p=self.given.top_p)
        asked = [RowRequest(ids, self.given.new, sampling) for ids in self.ids.tolist()]
        rows = [Row(one, self.tokenizer, on_piece, streams=self.given.stream) for one in asked]
        for i, row in enumerate(rows):
            self.engine.submit([row], f"adapter-{(self.offset + i) % count}" if count else None)
        self.offset += len(rows)
        for _ in rows:
            assert ended.acquire(timeout=PATIENCE)


def cpu_seconds(run: Callable[[], None]) -> float:
    gc.collect()
    begin = time.process_time()
    run()
    return time.process_time() - begin


def measure(given: argparse.Namespace) -> dict[str, list[float]]:
    ways = Ways(given)
    counts = [int(count) for count in given.adapters.split(",")]
    ways.load_adapters(max(counts))
    runs: dict[str, Callable[[], None]] = {"generate": ways.generate}
    runs |= {f"{count} adapters": lambda count=count: ways.serve(count) for count in counts}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(given.rounds + 1):
        for name in runs if number % 2 else reversed(runs):
            took = cpu_seconds(runs[name])
            if number:  # the first warms up
                seconds[name].append(took)
    ways.engine.stop()
    return seconds


def told(given: argparse.Namespace, seconds: dict[str, list[float]]) -> list[str]:
    """Tokens per CPU second, beside the engine without adapters and beside `generate`."""
    made = given.batch * given.new
    lines = []
    for name, found in seconds.items():
        rate = Spread.of([made / one for one in found])
        to = {other: ratios(seconds[other], found).text() for other in ("0 adapters", "generate") if other in seconds}
        beside = ", ".join(f"{text} of {other}" for other, text in to.items())
        lines.append(f"{name}: {rate.text()} tokens per CPU second; {beside}")
    return lines


def profile(given: argparse.Namespace) -> None:
    """Where the time goes in the engine's thread, and in `generate`."""
    ways = Ways(given)
    count = int(given.profile)
    ways.load_adapters(count)
    work = ways.engine._run
    watch = cProfile.Profile()
    ways.serve(count)

    def watched(rows: Any) -> None:
        watch.enable()
        work(rows)
        watch.disable()

    ways.engine._run = watched
    for _ in range(given.rounds):
        ways.serve(count)
    ways.engine.stop()
    pstats.Stats(watch).sort_stats(given.sort).print_stats(45)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a name or folder, or tiny")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--adapters", default="0,1,8,64")
    parser.add_argument("--positions", default="prompt")
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--profile", help="in place of measuring: the profile of so many adapters")
    parser.add_argument("--sort", default="tottime")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.profile is not None:
        profile(given)
        return
    seconds = measure(given)
    print(*told(given, seconds), sep="\n")
    if given.output:
        asked = {name: value for name, value in vars(given).items() if name not in ("output", "profile", "sort")}
        result = {**asked, "hardware": hardware(), "versions": versions(), "cpu_seconds": seconds}
        given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
