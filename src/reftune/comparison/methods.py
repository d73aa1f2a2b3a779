"""Ways to finetune a model that a comparison sets side by side: a dict `METHODS`, one entry each.

Must not know: tasks, how training runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import peft
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from ..config import ReftConfig
from ..errors import ReftuneError

__all__ = ["METHODS", "Method", "trained_state"]

# What `ReftConfig` and `reftune train` do unless told otherwise; measured in results/recipes.
OURS: Mapping[str, Any] = {"r": 8, "positions": "prompt"}
# The recipe for commonsense and arithmetic of the paper (Wu et al. 2024, tables 5 to 8).
PUBLISHED: Mapping[str, Any] = {"r": 8, "positions": "f7+l7", "init": "paper"}
# Rank and modules are as peers compare with.  The learning rate 1e-3 was measured (MNLI 61.8, QQP 75.8 on 1,000 rows);
# the 3e-4 of Hu et al. 2023 (LLM-Adapters) learns little from a few dozen rows.
LORA: Mapping[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}

Apply = Callable[[Any, Mapping[str, Any], str], Any]


@dataclass(frozen=True)
class Method:
    """How a model is made trainable, with what settings unless a comparison gives others."""

    label: str
    apply: Apply
    """(model, settings, task type of PEFT) → the model to train."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the method's configuration."""
    learning_rate: float = 1e-3
    trains: bool = True
    config_class: Any = None
    """The class of the configuration; none: there is nothing to set."""

    def check(self, settings: Mapping[str, Any]) -> None:
        """Look at the names of settings.

        Raises:
            ReftuneError: the method's configuration has no such field.
        """
        if self.config_class is None:
            if settings:
                raise ReftuneError(f"{self.label} has no settings; {', '.join(map(repr, settings))} are given")
            return
        valid = set(self.config_class.__dataclass_fields__)
        unknown = sorted(set(settings) - valid)
        if unknown:
            raise ReftuneError(
                f"{self.config_class.__name__} has no fields {', '.join(map(repr, unknown))}; it has "
                f"{', '.join(sorted(valid))}"
            )


def of_peft(label: str, config_class: Any, config: Mapping[str, Any] | None = None, **more: Any) -> Method:
    """A method of PEFT, of which ReFT is one here."""

    def apply(model: Any, settings: Mapping[str, Any], task_type: str) -> PeftModel:
        adapted = get_peft_model(model, config_class(**{"task_type": task_type, **settings}))
        assert isinstance(adapted, PeftModel)
        return adapted

    return Method(label, apply, config or {}, config_class=config_class, **more)


def by_name(model: Any, task_type: str, trained: Callable[[str], bool]) -> int:
    """Train parameters of the model itself, chosen by their names, and the head of a classification.

    How many are chosen, the head left aside.
    """
    head = _head_names(model) if task_type == "SEQ_CLS" else ()
    found = 0
    for name, parameter in model.named_parameters():
        in_head = name.startswith(head)
        parameter.requires_grad_(in_head or trained(name))
        found += not in_head and parameter.requires_grad
    return found


def bitfit(model: Any, settings: Mapping[str, Any], task_type: str) -> Any:
    """All biases, and nothing else (Ben Zaken et al. 2022)."""
    if not by_name(model, task_type, lambda name: name.endswith(".bias")):
        raise ReftuneError(
            f"BitFit trains biases, and {type(model).__name__} has none; take it out of the methods for this model"
        )
    return model


def full(model: Any, settings: Mapping[str, Any], task_type: str) -> Any:
    """All parameters."""
    by_name(model, task_type, lambda name: True)
    return model


def head_only(model: Any, settings: Mapping[str, Any], task_type: str) -> Any:
    """The classification head on the frozen model."""
    if task_type != "SEQ_CLS":
        raise ReftuneError("head_only trains a classification head, and this task has none; it is for encoders")
    by_name(model, task_type, lambda name: False)
    return model


def base(model: Any, settings: Mapping[str, Any], task_type: str) -> Any:
    """Nothing."""
    return model.requires_grad_(False)


METHODS: dict[str, Method] = {
    "base": Method("base model", base, trains=False),
    "loreft": of_peft("LoReFT", ReftConfig, {**OURS, "intervention": "loreft"}),
    "direft": of_peft("DiReFT", ReftConfig, {**OURS, "intervention": "direft"}),
    "noreft": of_peft("NoReFT", ReftConfig, {**OURS, "intervention": "noreft"}),
    "loreft_published": of_peft(
        "LoReFT as published", ReftConfig, {**PUBLISHED, "intervention": "loreft"}, learning_rate=9e-4
    ),
    "prefill_only": of_peft(
        "prefill-only LoReFT", ReftConfig, {**PUBLISHED, "positions": "prompt"}, learning_rate=9e-4
    ),
    "lora": of_peft("LoRA", peft.LoraConfig, LORA, learning_rate=1e-3),
    "dora": of_peft("DoRA", peft.LoraConfig, {**LORA, "use_dora": True}, learning_rate=1e-3),
    "prefix_tuning": of_peft("prefix tuning", peft.PrefixTuningConfig, {"num_virtual_tokens": 16}, learning_rate=1e-2),
    "ia3": of_peft("(IA)³", peft.IA3Config, learning_rate=3e-3),
    "bitfit": Method("BitFit", bitfit, learning_rate=1e-3),
    "full": Method("full finetuning", full, learning_rate=2e-5),
    "head_only": Method("head only", head_only, learning_rate=1e-3),
}


def _head_names(model: Any) -> tuple[str, ...]:
    """Beginnings of the names of what a classification model has beside its encoder."""
    return tuple(name for name, _ in model.named_children() if name != model.base_model_prefix)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters of any of these models, contiguous and on the CPU, to be saved."""
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
