"""Embeddings of all-MiniLM-L6-v2 tuned on STS-B: base, ReFT, LoRA; Spearman correlation of cosines, three seeds.

    REFTUNE_DATA=DIR python benchmarks/bench_embeddings.py --output results/embeddings.json

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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.evaluation import EmbeddingSimilarityEvaluator
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


def trained(method: str, rate: float, seed: int, train: Dataset, given: argparse.Namespace) -> tuple[Any, float, int]:
    """The tuned model, the CPU seconds of its training, its trained parameters."""
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
    SentenceTransformerTrainer(model, arguments, train_dataset=train, loss=CosineSimilarityLoss(model)).train()
    return model, time.process_time() - begin, sum(p.numel() for p in model.parameters() if p.requires_grad)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("REFTUNE_DATA"))
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--folder", default="embeddings-out", help="Of the trainer, which saves nothing.")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    train, test = rows("train", given.data_dir).shuffle(seed=0), rows("dev", given.data_dir)
    held_out, train = train.select(range(HELD_OUT)), train.select(range(HELD_OUT, HELD_OUT + given.rows))
    base = SentenceTransformer(resolve_model("minilm"), device="cpu")
    found: dict[str, Any] = {"base": {"score": spearman(base, test)}}
    print(f"base: {found['base']['score']:.2f}", flush=True)
    for method in METHODS:
        chosen = {}
        for rate in RATES:
            chosen[rate] = spearman(trained(method, rate, SEEDS[0], train, given)[0], held_out)
            print(f"{method}, {rate=}: {chosen[rate]:.2f} on held-out rows", flush=True)
        rate = max(chosen, key=lambda one: chosen[one])
        runs = []
        for seed in SEEDS:
            model, seconds, parameters = trained(method, rate, seed, train, given)
            runs.append({"seed": seed, "score": spearman(model, test), "cpu_seconds": seconds})
        scores = [run["score"] for run in runs]
        found[method] = {
            "learning_rate": rate,
            "held_out": {str(one): score for one, score in chosen.items()},
            "trained_parameters": parameters,
            "score": float(np.mean(scores)),
            "spread": float(np.std(scores, ddof=1)),
            "runs": runs,
        }
        print(f"{method}: {np.mean(scores):.2f} ± {np.std(scores, ddof=1):.2f}, {rate=}, {parameters=}", flush=True)
        stamp = {"epochs": given.epochs, "rows": given.rows, "hardware": hardware(), "versions": versions()}
        given.output.write_text(json.dumps({**stamp, "found": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
