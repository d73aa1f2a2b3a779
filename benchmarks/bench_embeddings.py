"""Embeddings of all-MiniLM-L6-v2 tuned on STS-B: base, ReFT, LoRA; Spearman correlation of cosines, three seeds.

    REFTUNE_DATA=DIR python benchmarks/bench_embeddings.py --output results/embeddings/results.json

Each method gets as many learning rates, chosen on training rows that are held out; told are the development rows, which
neither training nor choice has seen (the labels of the test rows are not public).

Must not know: causal models.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from transformers import set_seed

from reftune import ReftConfig
from reftune.models import resolve_model
from reftune.reporting.machine import hardware, versions

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
SEEDS = (42, 43, 44)
HELD_OUT = 500
TASK = "FEATURE_EXTRACTION"
METHODS: dict[str, Any] = {
    "LoReFT r 8, all tokens": lambda: ReftConfig(r=8, positions="all", task_type=TASK),
    "LoRA r 8, all linear layers": lambda: LoraConfig(
        r=8, lora_alpha=16, target_modules=["query", "key", "value", "dense"], task_type=TASK
    ),
}


def rows(part: str, data: Path) -> Dataset:
    """Pairs of sentences with their similarity from 0 to 1."""
    with gzip.open(data / "glue" / f"STS-B.{part}.jsonl.gz", "rt", encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    # train and dev rows name their columns otherwise
    names = ("text_a", "text_b", "label") if "label" in found[0] else ("sentence1", "sentence2", "score")
    one, two, score = ([row[name] for row in found] for name in names)
    return Dataset.from_dict({"sentence1": one, "sentence2": two, "score": [float(value) / 5 for value in score]})


def spearman(model: SentenceTransformer, scored: Dataset) -> float:
    """× 100, of the cosines of the embeddings with what people said."""
    evaluator = EmbeddingSimilarityEvaluator(
        scored["sentence1"], scored["sentence2"], scored["score"], main_similarity="cosine", write_csv=False
    )
    return 100 * evaluator(model)[evaluator.primary_metric]


def run(method: str, rate: float, seed: int, given: argparse.Namespace, parts: dict[str, Dataset]) -> dict[str, Any]:
    """One training: scores on held-out and on development rows, CPU seconds, trained parameters."""
    set_seed(seed)
    model = SentenceTransformer(resolve_model("minilm"), device="cpu")
    model.add_adapter(METHODS[method]())
    arguments = SentenceTransformerTrainingArguments(
        given.folder,
        num_train_epochs=given.epochs,
        per_device_train_batch_size=32,
        learning_rate=rate,
        warmup_steps=0.1,
        seed=seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    begin = time.process_time()
    SentenceTransformerTrainer(model, arguments, train_dataset=parts["train"], loss=CosineSimilarityLoss(model)).train()
    seconds = time.process_time() - begin
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    scores = {name: spearman(model, parts[name]) for name in ("held_out", "dev")}
    return {**scores, "cpu_seconds": seconds, "trained_parameters": parameters}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("REFTUNE_DATA"))
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--folder", default="embeddings-out", help="Of the trainer, which saves nothing.")
    parser.add_argument("--output", type=Path, required=True, help="Goes on where it stopped.")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    train = rows("train", given.data_dir).shuffle(seed=0)
    parts = {
        "held_out": train.select(range(HELD_OUT)),
        "train": train.select(range(HELD_OUT, HELD_OUT + given.rows)),
        "dev": rows("dev", given.data_dir),
    }
    stamp = {"epochs": given.epochs, "rows": given.rows, "hardware": hardware(), "versions": versions()}
    done: dict[str, Any] = json.loads(given.output.read_text(encoding="utf-8"))["runs"] if given.output.exists() else {}

    def known(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if name not in done:
            done[name] = measure()
            given.output.write_text(json.dumps({**stamp, "runs": done}, indent=1) + "\n", encoding="utf-8")
        return done[name]

    base = SentenceTransformer(resolve_model("minilm"), device="cpu")
    before = known("base", lambda: {name: spearman(base, parts[name]) for name in ("held_out", "dev")})
    print(f"base: {before['dev']:.2f}", flush=True)
    for method in METHODS:

        def one(rate: float, seed: int, method: str = method) -> dict[str, Any]:
            return known(f"{method}, {rate}, seed {seed}", lambda: run(method, rate, seed, given, parts))

        best = max(RATES, key=lambda rate: one(rate, SEEDS[0])["held_out"])
        runs = [one(best, seed) for seed in SEEDS]
        scores = [each["dev"] for each in runs]
        print(
            f"{method}: {np.mean(scores):.2f} ± {np.std(scores, ddof=1):.2f} at {best}, "
            f"{runs[0]['trained_parameters']:,} parameters, {np.mean([r['cpu_seconds'] for r in runs]):.0f} CPU s",
            flush=True,
        )


if __name__ == "__main__":
    main()
