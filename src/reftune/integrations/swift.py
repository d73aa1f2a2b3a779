"""`--tuner_type reft` of ms-swift (4.6), in the place of its own, which needs pyreft and edits other tokens.

    swift sft --tuner_type reft --external_plugins "$(reftune plugin ms-swift)" --reft_rank 4 \\
        --reft_args '{"positions": "f7+l7"}' …

ms-swift runs this file by its path, so it imports reftune by name.

Must not know: how ms-swift trains.
"""

from __future__ import annotations

from typing import Any

from peft import get_peft_model
from swift.tuner_plugin import PeftTuner, tuners_map

from reftune.errors import ReftuneError
from reftune.integrations.block import read_block, reft_config
from reftune.interop.pyreft import CLASSES

__all__ = ["ReftTuner", "config_of", "refuse"]

QUANTISED = "it was not tried with ReFT; ms-swift's quantised bases are made for LoRA"
NO_LABELS = "it takes the labels away before the model is called, so nothing would say where a prompt ends"
REFUSED = {
    "rlhf_type": "ms-swift's trainers of preferences and rewards take the labels away; reftune trl dpo and grpo do not",
    "reft_layer_key": "it is of pyreft; name modules by target_modules in --reft_args",
    "label_smoothing_factor": NO_LABELS,
    "enable_dft_loss": NO_LABELS,
    "enable_channel_loss": NO_LABELS,
    "sequence_parallel_size": "it was not tried with ReFT",
    "deepspeed": "it was not tried with ReFT",
    "fsdp": "it was not tried with ReFT",
    "quant_method": QUANTISED,
    "quant_bits": QUANTISED,
}
ONE = "sequence_parallel_size"
TASKS = ("causal_lm", "seq_cls")


class ReftTuner(PeftTuner):
    """Makes a model with an adapter; its base saves it, and loads it with `--adapters`."""

    @staticmethod
    def prepare_model(args: Any, model: Any) -> Any:
        refuse(args)
        config = config_of(args)
        if config.has_texts:
            config.resolve_texts(args.tokenizer)
        return get_peft_model(model, config)


def config_of(args: Any) -> Any:
    """The adapter, from ms-swift's flags and the fields in `--reft_args`, which win.

    Raises:
        ReftuneError: a value that is not valid.
    """
    named = str(getattr(args, "reft_intervention_type", "loreft"))
    flags = {
        "r": getattr(args, "reft_rank", None),
        "layers": getattr(args, "reft_layers", None),
        "intervention": CLASSES.get(named, named),
    }
    return reft_config(
        {**read_block(flags), **read_block(getattr(args, "reft_args", None))}, task=task_of(args).upper()
    )


def refuse(args: Any) -> None:
    """What cannot be had with ReFT.

    Raises:
        ReftuneError: it is asked for.
    """
    for name, why in REFUSED.items():
        value = getattr(args, name, None)
        if value and not (name == ONE and value == 1):
            raise ReftuneError(f"--tuner_type reft with --{name}: {why}")
    task = task_of(args)
    if task not in TASKS:
        raise ReftuneError(f"--tuner_type reft with --task_type {task}: use one of {', '.join(TASKS)}")


def task_of(args: Any) -> str:
    """What kind of model is trained."""
    return getattr(args, "task_type", None) or TASKS[0]


tuners_map["reft"] = ReftTuner
