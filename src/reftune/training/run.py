"""One training run from a configuration: model, data, adapter, Trainer's arguments → a saved adapter.

Must not know: the command line, tasks.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..config import ReftConfig, ReftGroup
from ..data import build_dataset
from ..data.passes import passes
from ..data.records import read_records
from ..data.turns import TRAIN_ON
from ..errors import ReftuneError
from ..files import check_writable
from ..models import SAVING, load_base, save_adapter
from .checkpoints import checkpoints_in, last_whole, only_run
from .groups import check_factors
from .prepare import OnFill
from .shared import SharedPrefix, adapted
from .trainer import REUSE, ReftTrainer

__all__ = ["RunConfig", "RunResult", "number", "refuse_unknown", "train_run"]

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
# Checkpoints that are being removed.
OVERWRITTEN = ".overwritten."
# enough for two digits, and a small part of the time that training on many more took
FINAL_LOSS_ROWS = 512
TRAINING_DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 8,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.0,
    "logging_steps": 10,
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "report_to": "none",
}


# output_dir and seed are told by the configuration itself
TRAINING_FIELDS = {f.name for f in fields(TrainingArguments) if f.init} - {"output_dir", "seed"}


@dataclass
class RunConfig:
    """What `reftune train` reads from YAML.  Unknown keys are refused, at every level."""

    model: str
    """Folder or Hub name of the base model, or `smollm2`."""
    data: str | list[dict[str, Any]]
    """File or Hub name of the training records."""
    output: str
    """Folder for the adapter; checkpoints go below it."""
    eval_data: str | list[dict[str, Any]] | None = None
    """Records to evaluate the loss on."""
    max_length: int | None = 512
    """Longer rows are cut from the left of the prompt."""
    seed: int = 42
    dtype: str = "auto"
    """Of the base model: auto, float32, bfloat16, float16.  The adapter is float32 in any case."""
    reuse: str = "auto"
    """auto or off: keep what training cannot change of an example and replay it in every epoch (`ReftTrainer`)."""
    reuse_limit_gb: float | None = None
    """The most memory that this may take; what is larger goes to disk.  By default half of what is free."""
    packing: bool = False
    """Lay the rows of a batch end to end, without padding."""
    lr_groups: dict[str, Any] = field(default_factory=dict)
    """Tensors of the interventions, or modules beside them, and what multiplies their learning rate: {b: 10}."""
    train_on: str = "last"
    """Of conversations: the last answer, or all of them, each as a row of its own."""
    best: bool = False
    """Keep the epoch with the lowest loss on `eval_data`, and not the last."""
    reft: dict[str, Any] = field(default_factory=dict)
    """Fields of `ReftConfig`."""
    training: dict[str, Any] = field(default_factory=dict)
    """Fields of `transformers.TrainingArguments`; those not given are as in `TRAINING_DEFAULTS`."""

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ReftuneError(f"dtype={self.dtype!r} is not valid; use auto, float32, bfloat16 or float16")
        for name in ("model", "output"):
            if not isinstance(getattr(self, name), str):
                raise ReftuneError(f"{name}={getattr(self, name)!r} is not valid; it is a text")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ReftuneError(f"seed={self.seed!r} is not valid; use a whole number from 0")
        if self.max_length is not None and (not isinstance(self.max_length, int) or self.max_length < 2):
            raise ReftuneError(f"max_length={self.max_length!r} is not valid; use a number of tokens, or null for any")
        self._check_speed()
        self._check_best()
        refuse_unknown("reft", self.reft, {f.name for f in fields(ReftConfig)})
        refuse_unknown("training", self.training, TRAINING_FIELDS)
        self.reft = keys_and_values("reft", self.reft)
        self.training = keys_and_values("training", self.training)
        self.reft_config()

    def _check_speed(self) -> None:
        if self.reuse is False:
            # YAML reads a bare off as false
            self.reuse = "off"
        if self.reuse not in REUSE:
            raise ReftuneError(f"reuse={self.reuse!r} is not valid; use one of {', '.join(map(repr, REUSE))}")
        limit = self.reuse_limit_gb
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float)) or limit < 0):
            raise ReftuneError(f"reuse_limit_gb={limit!r} is not valid; use a number from 0, or null")
        if self.train_on not in TRAIN_ON:
            raise ReftuneError(f"train_on={self.train_on!r} is not valid; use one of {', '.join(map(repr, TRAIN_ON))}")
        if not isinstance(self.packing, bool):
            raise ReftuneError(f"packing={self.packing!r} is not valid; use true or false")
        self.lr_groups = keys_and_values("lr_groups", self.lr_groups)
        check_factors(self.lr_groups)

    def _check_best(self) -> None:
        if not isinstance(self.best, bool):
            raise ReftuneError(f"best={self.best!r} is not valid; use true or false")
        if self.best and self.eval_data is None:
            raise ReftuneError("best=True keeps the epoch with the lowest loss on eval_data; name eval_data too")
        saving = self.training.get("save_strategy", "epoch") if isinstance(self.training, Mapping) else "epoch"
        if self.best and saving not in ("epoch", "steps"):
            raise ReftuneError(f"best=True needs checkpoints, and save_strategy={saving!r}; use 'epoch' or 'steps'")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> RunConfig:
        """From the content of a YAML file.

        Raises:
            ReftuneError: a key that is unknown or missing.
        """
        return cls(**given_of("the configuration", cls, values, needed=("model", "data", "output")))

    def reft_config(self) -> ReftConfig:
        """A fresh configuration of the adapter."""
        return ReftConfig(**{"task_type": "CAUSAL_LM", **self.reft})

    def training_arguments(self, rows: int | None = None) -> TrainingArguments:
        """Trainer's arguments, with ours where none are given; of few `rows` there are smaller batches and more passes.

        Raises:
            ReftuneError: they contradict each other, or one has a value that transformers does not know.
        """
        given = {**TRAINING_DEFAULTS, **({} if rows is None else self._passes(rows)), **self.training}
        if self.eval_data is not None:
            known = given["save_strategy"] in ("no", "steps", "epoch")
            given.setdefault("eval_strategy", given["save_strategy"] if known else "epoch")
        if self.best:
            given.setdefault("load_best_model_at_end", True)
        given.setdefault("use_cpu", not torch.cuda.is_available() and not torch.backends.mps.is_available())
        try:
            return TrainingArguments(output_dir=str(Path(self.output) / CHECKPOINTS), seed=self.seed, **given)
        except (TypeError, ValueError, ImportError) as error:
            raise ReftuneError(f"training is not valid: {error}") from error

    def _passes(self, rows: int) -> dict[str, Any]:
        """Rows a step and passes, if neither passes nor steps are given."""
        if {"num_train_epochs", "max_steps"} & set(self.training):
            return {}
        processes = int(os.environ.get("WORLD_SIZE", 1))
        times = processes * int(self.training.get("gradient_accumulation_steps", 1))
        batch, epochs = passes(rows, batch=self.training.get("per_device_train_batch_size"), steps_of=times)
        return {"per_device_train_batch_size": batch, "num_train_epochs": epochs}


@dataclass
class RunResult:
    """What a run has to show."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    adapter_path: Path
    final_loss: float
    """After training, on the training data (its first `FINAL_LOSS_ROWS` rows)."""
    seconds: float
    trainable_parameters: int
    trainable_percent: float
    steps: int
    losses: Sequence[tuple[float, float]]
    """(step, mean loss since the last entry)"""
    eval_loss: float | None = None
    best_epoch: float | None = None
    """Which epoch is kept, where the best was asked for."""

    @property
    def adapter_bytes(self) -> int:
        """Size of the weights on disk."""
        return (self.adapter_path / "adapter_model.safetensors").stat().st_size


def train_run(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: list[TrainerCallback] | None = None,
    on_fill: OnFill | None = None,
) -> RunResult:
    """Train and save.  With `resume` it goes on from the last checkpoint of the output folder.

    `on_fill(done, total)` is told how many examples are prepared for reuse (`ReftTrainer`).

    Raises:
        ReftuneError: the output folder has a run already and neither `resume` nor `overwrite` is given; or the data
            or the model cannot be had.
    """
    output = Path(config.output)
    check_writable(output)
    arguments = config.training_arguments()
    # of several processes one holds the folder for all
    with only_run(output) if arguments.process_index == 0 else nullcontext():
        return do_run(config, arguments, resume=resume, overwrite=overwrite, callbacks=callbacks, on_fill=on_fill)


def do_run(
    config: RunConfig,
    arguments: TrainingArguments,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: list[TrainerCallback] | None = None,
    on_fill: OnFill | None = None,
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    shared: SharedPrefix | None = None,
) -> RunResult:
    """`train_run` by whoever holds the folder; `loaded` are base model and tokenizer that are there already."""
    output = Path(config.output)
    checkpoint = _checkpoint(output, resume=resume, overwrite=overwrite, quiet=arguments.process_index != 0)
    wanted = config.reft_config()
    chosen = [f.name for f in fields(ReftGroup)] + ["groups"]
    # the ids of positions by text are known with the tokenizer only
    early = chosen if not wanted.has_texts else [name for name in chosen if name not in ("positions", "groups")]
    if checkpoint is not None:
        _check_same_adapter(checkpoint, wanted, early)
    # data first: it is what is most often wrong, and a model takes longer to load
    read_records(config.data)
    if config.eval_data is not None:
        read_records(config.eval_data)
    set_seed(config.seed)
    base, tokenizer = loaded or load_base(config.model, dtype=config.dtype)
    dataset, eval_dataset = datasets_of(config, tokenizer)
    arguments = config.training_arguments(len(dataset))
    if arguments.process_index == 0 and arguments.num_train_epochs > config.training_arguments().num_train_epochs:
        logger.warning(
            "few rows (%d): %g passes over them in batches of %d; num_train_epochs (--epochs) says otherwise",
            len(dataset),
            arguments.num_train_epochs,
            arguments.per_device_train_batch_size,
        )
    try:
        wanted.resolve_texts(tokenizer)
    except ValueError as error:
        raise ReftuneError(str(error)) from error
    with adapted(base, wanted, keep=loaded is None) as model:
        if checkpoint is not None:
            _check_same_adapter(checkpoint, wanted, ["positions", "groups"])
            # what the fields above come down to in this model is known only now
            made: Any = model.peft_config["default"]
            _check_same_adapter(checkpoint, made, ["target_modules", "exclude_modules", "modules_to_save"])
        trainer = ReftTrainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            reuse=config.reuse,
            reuse_limit_gb=config.reuse_limit_gb,
            shared=shared,
            packing=config.packing,
            lr_groups=config.lr_groups,
            on_fill=on_fill,
        )
        if callbacks:
            # Trainer's own two write to stdout and over each other
            trainer.remove_callback(PrinterCallback)
            trainer.remove_callback(ProgressCallback)
        if trainer.is_world_process_zero():
            # only now, when nothing is wrong with the run that takes its place
            _clear(output, overwrite=overwrite)
        start = time.perf_counter()
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        seconds = time.perf_counter() - start
        if trainer.is_world_process_zero():
            trainer.tell_card(config.data if isinstance(config.data, str) else None)
            _save(model, output)
        return _result(trainer, model, tokenizer, output, seconds)


def datasets_of(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Any, Any]:
    """The examples to train on, and those for the evaluation, or None."""
    dataset = build_dataset(config.data, tokenizer, max_length=config.max_length, train_on=config.train_on)
    if config.eval_data is None:
        return dataset, None
    return dataset, build_dataset(config.eval_data, tokenizer, max_length=config.max_length)


def _result(
    trainer: ReftTrainer, model: PeftModel, tokenizer: PreTrainedTokenizerBase, output: Path, seconds: float
) -> RunResult:
    model.eval()
    dataset: Any = trainer.train_dataset
    head = dataset.select(range(min(len(dataset), FINAL_LOSS_ROWS)))
    final_loss = trainer.evaluate(head, metric_key_prefix="train")["train_loss"]
    eval_loss = trainer.evaluate()["eval_loss"] if trainer.eval_dataset is not None else None
    trained, total = model.get_nb_trainable_parameters()
    log = trainer.state.log_history
    history = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    kept = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    epochs = [entry["epoch"] for entry in log if entry["step"] == kept and "eval_loss" in entry]
    return RunResult(
        model=model,
        tokenizer=tokenizer,
        adapter_path=output,
        final_loss=final_loss,
        seconds=seconds,
        trainable_parameters=trained,
        trainable_percent=100 * trained / total,
        steps=trainer.state.global_step,
        losses=history,
        eval_loss=eval_loss,
        best_epoch=epochs[0] if epochs else None,
    )


def _checkpoint(output: Path, *, resume: bool, overwrite: bool, quiet: bool) -> Path | None:
    """The checkpoint to go on from; makes sure that nothing is overwritten unasked."""
    if resume and overwrite:
        raise ReftuneError("resume and overwrite contradict each other; use one of them")
    if resume:
        return last_whole(output / CHECKPOINTS, quiet=quiet)
    has_run = checkpoints_in(output / CHECKPOINTS) or (output / "adapter_config.json").exists()
    if has_run and not overwrite:
        raise ReftuneError(
            f"{str(output)!r} holds a run already; use --resume to go on with it, --overwrite to start anew, "
            "or another --output"
        )
    return None


def _clear(output: Path, *, overwrite: bool) -> None:
    """Remove what processes that were killed left half, and if asked the checkpoints of an earlier run."""
    if overwrite and (output / CHECKPOINTS).is_dir():
        # at once: what is left of them when this is killed must not be resumed from
        os.replace(output / CHECKPOINTS, Path(tempfile.mkdtemp(dir=output, prefix=OVERWRITTEN)) / CHECKPOINTS)
    for left in [*output.glob(f"{OVERWRITTEN}*"), *output.glob(f"{SAVING}*")]:
        shutil.rmtree(left, ignore_errors=True)


def _save(model: PeftModel, output: Path) -> None:
    try:
        save_adapter(model, output)
    except ReftuneError as error:
        left = checkpoints_in(output / CHECKPOINTS)
        stands = f"{left[-1].name} stands: mend that, and --resume" if left else "there is no checkpoint"
        raise ReftuneError(f"{error}; {stands}") from error


def _check_same_adapter(checkpoint: Path, wanted: ReftConfig, names: Sequence[str]) -> None:
    """A checkpoint goes on with the adapter that it holds; another one would load in part, or in silence."""
    saved: Any = ReftConfig.from_pretrained(str(checkpoint))
    changed = [
        f"{name}={getattr(saved, name)!r}, not {getattr(wanted, name)!r}"
        for name in names
        # layers that are not named are all of them
        if (getattr(saved, name) or "all") != (getattr(wanted, name) or "all")
    ]
    if changed:
        raise ReftuneError(
            f"the checkpoint to resume from has another adapter ({'; '.join(changed)}); resume with the same, or use "
            "--overwrite to start anew"
        )


def given_of(what: str, cls: type, values: Mapping[str, Any], *, needed: Sequence[str]) -> dict[str, Any]:
    """What a file gives of the fields of a configuration; where it leaves one empty, the field's own value stands.

    Raises:
        ReftuneError: a key that is unknown or missing.
    """
    refuse_unknown(what, values, {f.name for f in fields(cls)})
    missing = [name for name in needed if values.get(name) is None]
    if missing:
        raise ReftuneError(f"{what} lacks {', '.join(missing)}")
    # null is a length of its own: any
    return {k: v for k, v in values.items() if v is not None or k == "max_length"}


def refuse_unknown(where: str, values: Mapping[str, Any], valid: set[str]) -> None:
    """Check the keys of a part of a configuration.

    Raises:
        ReftuneError: there are others than the valid ones, or no keys at all.
    """
    unknown = sorted(set(keys_and_values(where, values)) - valid)
    if unknown:
        raise ReftuneError(
            f"{where} has unknown keys {', '.join(map(repr, unknown))}; valid are {', '.join(sorted(valid))}"
        )


def keys_and_values(where: str, values: Any) -> dict[str, Any]:
    """A part of a configuration, with numbers where YAML had texts.

    Raises:
        ReftuneError: it is something else.
    """
    if not isinstance(values, Mapping):
        raise ReftuneError(f"{where} is {values!r}; it must be keys and values")
    return {key: number(value) for key, value in values.items()}


def number(value: Any) -> Any:
    """YAML reads 9e-4 and 1e3 as texts; as numbers they are what was meant.  Other texts stay as they are."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+", value):
        read = float(value)
        return int(read) if read.is_integer() else read
    return value
