"""TRL's own scripts `sft`, `dpo` and `grpo` with a ReFT adapter: `reftune trl sft --config run.yaml`.

Arguments and configuration are TRL's, with one more, `reft`: the fields of `ReftConfig`.  The script of TRL runs as it
is; what it makes its trainer from passes through here.

    accelerate launch -m reftune.integrations.trl sft --config run.yaml

Must not know: how trainers train.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import islice
from typing import Any

import torch

from ..config import ReftConfig
from ..data import PromptStyle
from ..data.kinds import is_conversation
from ..data.turns import split_record
from ..errors import DataError, MissingExtraError, ReftuneError
from ..models import load_tokenizer, resolve_model
from .block import reft_config
from .told import CardCallback, keep_card

__all__ = ["TRAINERS", "main"]

TRAINERS = {"sft": "SFTTrainer", "dpo": "DPOTrainer", "grpo": "GRPOTrainer"}
# of the rows, when it is asked how their prompts are written
LOOKED_AT = 1000


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of TRL's scripts; the first argument is its name, the others are its own.

    Raises:
        ReftuneError: no such script, TRL is not installed, or something cannot be trained with ReFT.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words.pop(0) if words else ""
    own, config = parsed(name, words)
    refuse(own)
    model = own[2]
    model.model_name_or_path = resolve_model(model.model_name_or_path)
    if config.has_texts:
        config.resolve_texts(load_tokenizer(model.model_name_or_path))
    with _adapted(TRAINERS[name], config, own[0].dataset_name):
        script_of(name).main(*own)


def script_of(name: str) -> Any:
    """TRL's module.

    Raises:
        ReftuneError: there is none of this name, or TRL is not installed.
    """
    if name not in TRAINERS:
        raise ReftuneError(f"{name!r} is no script; use one of {', '.join(TRAINERS)}, then its arguments")
    try:
        return importlib.import_module(f"trl.scripts.{name}")
    except ModuleNotFoundError as error:
        raise MissingExtraError("trl", extra="trl") from error


def parsed(name: str, words: Sequence[str]) -> tuple[tuple[Any, ...], ReftConfig]:
    """Arguments of the script, of the trainer, of the model and of the data; and the block `reft`.

    Raises:
        ReftuneError: no such script, or a value that cannot be read.
    """
    parser = script_of(name).make_parser(prog=f"reftune trl {name}")
    parser.add_argument("--reft", default=None, help="Fields of ReftConfig: a block of the file, or JSON.")
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        # what is asked for wins; without it TRL's own choice of bfloat16 is refused where there is no accelerator
        parser.set_defaults(use_cpu=True)
    with _told_of_files():
        *own, more = parser.parse_args_and_config(words, fail_with_unknown_args=True)
    return tuple(own), reft_config(more.reft)


@contextmanager
def _told_of_files() -> Iterator[None]:
    """TRL's parser raises `ValueError`s that say what is wrong, and errors of YAML that do not."""
    import yaml  # noqa: PLC0415 — TRL brings it

    try:
        yield
    except yaml.YAMLError as error:
        raise ReftuneError(f"the file of --config is not YAML: {error}") from error


def refuse(own: Sequence[Any]) -> None:
    """What cannot be had with ReFT; `own` are the script's, the trainer's and the model's arguments.

    Raises:
        ReftuneError: one of them is asked for.
    """
    _, training, model, *_ = own
    if not model.model_name_or_path:
        raise ReftuneError("model_name_or_path is missing: name a folder or a model of the Hub")
    usual = {f.name: f.default for f in fields(model)}
    for field in ("use_peft", "use_rslora", "use_dora", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"):
        if field in usual and getattr(model, field) != usual[field]:
            raise ReftuneError(
                f"{field} is of LoRA, and reftune trl trains ReFT: leave it out, and put the fields of the adapter "
                "into the block reft:"
            )
    if getattr(training, "use_vllm", False):
        raise ReftuneError(
            "use_vllm: TRL merges the adapter into the weights for vLLM, and a ReFT adapter cannot be merged; leave it "
            "out, and the trainer's own model answers"
        )


@contextmanager
def _adapted(trainer: str, config: ReftConfig, data: str | None) -> Iterator[None]:
    """The script, which looks its trainer up when it runs, makes it with our configuration."""
    import trl  # noqa: PLC0415 — an optional extra

    real = getattr(trl, trainer)

    def made(**given: Any) -> Any:
        given["peft_config"] = config
        if trainer == "SFTTrainer":
            settings = given["args"]
            for which in ("train_dataset", "eval_dataset"):
                given[which] = with_prompts(given[which], assistant_only=settings.assistant_only_loss)
            if "messages" not in names_of(given["train_dataset"]):
                settings.assistant_only_loss = False
        config.prompt_style = style_of(given["train_dataset"])
        found = real(**given, callbacks=[CardCallback(given["train_dataset"], data)])
        keep_card(found)
        return found

    setattr(trl, trainer, made)
    try:
        yield
    finally:
        setattr(trl, trainer, real)


def names_of(dataset: Any) -> list[str]:
    """Of its columns; none of no data set."""
    return list(getattr(dataset, "column_names", None) or ())


def with_prompts(dataset: Any, *, assistant_only: bool) -> Any:
    """Rows of `messages` as one row of `prompt` and `completion` for each answer; other rows as they are.

    Then each answer is trained behind all that came before it, as it is given later.  `assistant_only` says whether
    answers alone are to be trained; TRL's argument for it is of rows of `messages`, and has nothing to do any more.

    Raises:
        ReftuneError: the loss would be of whole conversations, so that nothing of them is prompt.
    """
    names = names_of(dataset)
    if "messages" not in names or "prompt" in names:
        return dataset
    if not assistant_only:
        raise ReftuneError(
            "rows of messages, and the loss is of all turns, so that nothing of a row is prompt: set "
            "assistant_only_loss: true (each answer is then a row of its own), or give rows of prompt and completion"
        )

    def split(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        found = [row for record in rows for row in split_record({k: v for k, v in record.items() if v is not None})]
        kept = [name for name in batch if name != "messages"]
        return {
            **{name: [row.get(name) for row in found] for name in kept},
            "prompt": [row["messages"][:-1] for row in found],
            "completion": [row["messages"][-1:] for row in found],
        }

    return dataset.map(split, batched=True, remove_columns=names)


def style_of(dataset: Any) -> PromptStyle | None:
    """How the prompts of the first rows are written, None if they differ or are of no known kind."""
    try:
        return PromptStyle.of_records(_record(row) for row in islice(dataset, LOOKED_AT))
    except DataError:
        return None


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt of a row of TRL's, be it of SFT, DPO or GRPO."""
    prompt = row.get("prompt")
    if prompt is None and is_conversation(row.get("chosen")):
        prompt = row["chosen"][:-1]
    return {"prompt": prompt}


if __name__ == "__main__":
    try:
        main()
    except ReftuneError as error:
        raise SystemExit(f"reftune: {error}") from error
