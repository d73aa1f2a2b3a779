"""`adapter: reft` of axolotl (0.19), by its plug-ins.

    plugins: [reftune.integrations.axolotl.ReftPlugin]
    adapter: reft
    reft: {r: 4, layers: all, positions: f7+l7}

What cannot be trained so is refused when axolotl checks its configuration.  Conversations with several trained turns
become a row for each turn, before they are packed.

Must not know: how axolotl trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from axolotl.integrations.base import AdapterCapabilities, BasePlugin
from peft import PeftModel, get_peft_model
from pydantic import BaseModel, model_validator

from ..adapter_files import adapter_config
from ..config import ReftConfig, ReftGroup
from ..data import PromptStyle
from ..data.turns import IGNORE, split_turns
from ..errors import ReftuneError
from .block import read_block, reft_config
from .told import CardCallback, keep_card

__all__ = ["ReftArgs", "ReftPlugin"]

NOT_TRIED = "it was not tried with ReFT; train in one process or with DDP"
QUANTISED = "axolotl quantises for lora and qlora only, and would load the whole weights without a word; leave it out"
NO_LABELS = "it takes the labels away before the model is called, so nothing would say where a prompt ends"
# what is not had with ReFT, and why
REFUSED = {
    "merge_lora": "a ReFT adapter cannot be merged: it edits some tokens only; load it beside its base (reftune chat)",
    "load_in_8bit": QUANTISED,
    "load_in_4bit": QUANTISED,
    "gptq": QUANTISED,
    "relora": "it restarts LoRA by merging, and a ReFT adapter cannot be merged",
    "label_smoothing_factor": NO_LABELS,
    "kd_trainer": NO_LABELS,
    "use_eaft": NO_LABELS,
    "pretraining_dataset": "all of its tokens have labels, so that nothing is prompt",
    "streaming": "conversations could not be made a row for each answer; leave it out",
    "reward_model": "rewards were not tried with axolotl; TRL's RewardTrainer takes ReftConfig(task_type='SEQ_CLS')",
    "process_reward_model": "it was not tried with ReFT",
    "fsdp": NOT_TRIED,
    "fsdp_config": NOT_TRIED,
    "deepspeed": NOT_TRIED,
}
SHARDED = ("context_parallel_size", "sequence_parallel_degree", "tensor_parallel_size", "dp_shard_size")
# of LoRA's settings the one that names an adapter to go on with
GOING_ON = "lora_model_dir"
TRAINERS = (None, "dpo", "ipo")
# how axolotl names the chat template that the tokenizer brings
OWN_TEMPLATES = (None, "tokenizer_default")
ADDED = ("length", "position_ids")


def is_ours(cfg: Mapping[str, Any]) -> bool:
    """Whether this configuration asks for ReFT."""
    return cfg.get("adapter") == "reft"


class ReftArgs(BaseModel):
    """What the plug-in adds to axolotl's configuration: the block `reft:`."""

    reft: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def check(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and is_ours(data):
            try:
                refuse(data)
            except ReftuneError as error:
                raise ValueError(str(error)) from error
        return data


def refuse(cfg: Mapping[str, Any]) -> None:
    """What cannot be had with ReFT.

    Raises:
        ReftuneError: it is asked for, or the block `reft:` is not valid.
    """
    config = reft_config(cfg.get("reft"))
    for name, why in REFUSED.items():
        if cfg.get(name):
            raise ReftuneError(f"adapter: reft with {name}: {why}")
    for name in SHARDED:
        if (cfg.get(name) or 1) > 1:
            raise ReftuneError(f"adapter: reft with {name}: {NOT_TRIED}")
    other = [
        name for name in cfg if name.startswith(("lora_", "peft_", "loraplus_")) and name != GOING_ON and cfg[name]
    ]
    if other:
        raise ReftuneError(
            f"adapter: reft with {', '.join(sorted(other))}: that is of LoRA; ReFT's settings are in the block reft:"
        )
    trainer = getattr(cfg.get("rl"), "value", cfg.get("rl"))
    if trainer not in TRAINERS:
        raise ReftuneError(
            f"adapter: reft with rl: {trainer}: only dpo and ipo were tried; others call the model without labels, or "
            "sample with the adapter merged (reftune trl grpo samples without)"
        )
    if trainer is not None and _needs_end(config):
        raise ReftuneError(
            f"adapter: reft with rl: {trainer} and positions {config.positions!r}: the TRL that axolotl 0.19 pins "
            "calls the model without labels there, so nothing says where a prompt ends. Use positions 'all', 'f<p>' "
            "where prompts are no shorter, or `reftune trl dpo`"
        )
    if trainer is not None and cfg.get(GOING_ON):
        raise ReftuneError(f"adapter: reft with rl: {trainer} and {GOING_ON}: axolotl would begin with a fresh adapter")
    if cfg.get("train_on_inputs") and any(group.spec.needs_prompt for group in config.resolved_groups()):
        raise ReftuneError(
            f"adapter: reft with train_on_inputs: labels on everything leave no prompt, which positions "
            f"{config.positions!r} need; leave it out, or use positions 'all'"
        )


class ReftPlugin(BasePlugin):
    """Named in `plugins:`."""

    def get_input_args(self) -> str:
        return f"{__name__}.{ReftArgs.__name__}"

    def get_adapter_capabilities(self) -> list[AdapterCapabilities]:
        return [AdapterCapabilities(name="reft", lora_like=False, relora=False)]

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> Any:
        """A row for each answer where positions depend on the prompt's end; `axolotl preprocess` does not need to."""
        if not is_ours(cfg) or cfg.rl or preprocess or not _needs_end(reft_config(cfg.reft)):
            return None
        from axolotl.common.datasets import load_datasets  # noqa: PLC0415 — only now: it loads what trains
        from axolotl.utils.trainer import calculate_total_num_steps  # noqa: PLC0415

        found = load_datasets(cfg=cfg)
        before, found.train_dataset = found.train_dataset, one_answer_a_row(found.train_dataset)
        found.eval_dataset = one_answer_a_row(found.eval_dataset)
        if found.train_dataset is not before:
            cfg.total_num_tokens = cfg.total_supervised_tokens = None
            steps = calculate_total_num_steps(cfg, found.train_dataset)
            found.total_num_steps = min(steps, cfg.max_steps) if cfg.max_steps else steps
        return found

    def load_adapter(self, model: Any, cfg: Any, inference: bool = False, config_only: bool = False) -> Any:
        """(model with adapter, its configuration); with `config_only`, as for DPO, TRL's trainer puts it on."""
        if not is_ours(cfg):
            return None
        config = reft_config(cfg.reft)
        if config.has_texts:
            from axolotl.loaders import load_tokenizer  # noqa: PLC0415

            config.resolve_texts(load_tokenizer(cfg))
        config.prompt_style = style_of(cfg)
        if config_only:
            return None, config
        if cfg.lora_model_dir:
            check_same(cfg.lora_model_dir, cfg.reft)
            adapted: Any = PeftModel.from_pretrained(model, cfg.lora_model_dir, is_trainable=not inference)
            config = adapted.peft_config["default"]
        else:
            adapted = get_peft_model(model, config)
        adapted.print_trainable_parameters()
        return adapted, config

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        if is_ours(cfg):
            keep_card(trainer)

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Callable[..., Any]]:
        data = cfg.datasets[0]["path"] if cfg.datasets else None
        callbacks: Any = [CardCallback(trainer.train_dataset, data)] if is_ours(cfg) else []
        return callbacks


def _needs_end(config: ReftConfig) -> bool:
    return any(group.spec.needs_end for group in config.resolved_groups())


def one_answer_a_row(dataset: Any) -> Any:
    """Tokenised rows, those with several labelled stretches as one row for each; without labels as they are.

    Rows in which nothing is trained are left out.

    Raises:
        DataError: the first token of a row has a label, so that nothing of the row is prompt.
    """
    if dataset is None or "labels" not in (getattr(dataset, "column_names", None) or ()):
        return dataset
    trained = dataset.filter(lambda row: any(label != IGNORE for label in row["labels"]))
    made = split_turns(trained).remove_columns("prompt_length")
    if len(made) == len(dataset) == len(trained):
        return dataset
    lengths = {"length": lambda ids: len(ids), "position_ids": lambda ids: list(range(len(ids)))}
    anew = [name for name in lengths if name in made.column_names]
    return made.map(lambda row: {name: lengths[name](row["input_ids"]) for name in anew}) if anew else made


def check_same(folder: str, block: Any) -> None:
    """That what the block `reft:` says is what the adapter in a folder is.

    Raises:
        ReftuneError: it is not; or there is no adapter of reftune's.
    """
    saved, wanted = adapter_config(folder), reft_config(block)
    if not isinstance(saved, ReftConfig):
        raise ReftuneError(f"{GOING_ON}: {folder!r} is no ReFT adapter")
    known = {f.name for f in fields(ReftGroup)} | {"groups"}
    for name in sorted(known & set(read_block(block))):
        if name == "layers" or getattr(saved, name) == getattr(wanted, name):
            # layers are saved as the names of the blocks
            continue
        raise ReftuneError(
            f"the adapter in {folder!r} has {name}={getattr(saved, name)!r}, but the block reft: says "
            f"{getattr(wanted, name)!r}; to go on with it, leave out the block"
        )


def style_of(cfg: Any) -> PromptStyle | None:
    """How prompts are written, if it is by the chat template that the tokenizer brings; else nobody can say."""
    sets = [dict(one) for one in cfg.datasets or ()]
    templates = [one.get("chat_template") or cfg.chat_template for one in sets]
    is_chat = bool(sets) and all(str(one.get("type")).startswith("chat_template") for one in sets)
    return PromptStyle("messages") if is_chat and all(t in OWN_TEMPLATES for t in templates) else None
