"""An adapter made of single Φ that come from elsewhere: the base model's configuration is enough for that.

Must not know: the files of any library.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from ..adapter_files import adapter_config, brief
from ..config import ReftConfig
from ..data import PromptStyle
from ..errors import ReftuneError
from ..files import check_writable
from ..interventions import INTERVENTIONS, orthonormal_rows
from ..models import check_model, put_adapter, resolve_model, save_adapter
from ..tuner import ReftLayer
from ..tuner.parts import Group, Part, config_of, fill, taken_apart
from ..values import ranges, shown

__all__ = ["assemble", "base_of", "check_output", "groups_in", "identity_of", "on_no_weights", "write"]


def identity_of(part: Part) -> Part:
    """The Φ of the same kind that edits nothing.

    Raises:
        ReftuneError: there is none.
    """
    phi, act = INTERVENTIONS[part.intervention], part.act_fn
    if not (phi.supports_identity(act) or phi.supports_zero(act)):
        raise ReftuneError(
            f"{part.intervention} with act_fn={act!r} has no Φ that edits nothing, which these positions need"
        )
    changed = {name: torch.zeros_like(tensor) for name, tensor in part.tensors.items() if name != "R"}
    if part.intervention == "loreft":
        changed["W"] = orthonormal_rows(part.tensors["R"])
    return Part(part.intervention, {**part.tensors, **changed}, act)


def on_no_weights(base: str) -> tuple[Any, Any]:
    """A model of the base's configuration without weights, and that configuration.

    Raises:
        ReftuneError: there is no such model, or none of it writes text.
    """
    config: Any = check_model(base)
    kinds: tuple[Any, ...] = (AutoModelForCausalLM, AutoModelForImageTextToText)
    kind = next((kind for kind in kinds if type(config) in kind._model_mapping), AutoModelForCausalLM)
    try:
        with torch.device("meta"):
            model: Any = kind.from_config(config)
    except ValueError as error:
        raise ReftuneError(f"{base!r} is no causal language model: {brief(error)}") from error
    model.name_or_path = resolve_model(base)
    return model, config


def assemble(groups: Sequence[Group], *, base: str, of: str = "") -> PeftModel:
    """The adapter of these groups on a base model of which only the configuration is read: it has no weights.

    `of` is the `model_type` that they were trained on, where that is known.

    Raises:
        ReftuneError: the base is of another type, has other layers or another width, or two groups collide.
    """
    model, config = on_no_weights(base)
    if of and config.get_text_config().model_type != of and config.model_type != of:
        raise ReftuneError(f"the adapter was trained on a model of type {of}, but {base!r} is a {config.model_type}")
    _check_layers(groups, config, base)
    try:
        with warnings.catch_warnings():
            # starts that do not matter, as all is filled in
            warnings.simplefilter("ignore")
            reft = config_of(groups, task_type="CAUSAL_LM", inference_mode=True)
            adapted = get_peft_model(model, reft)
        layers = [module for module in adapted.modules() if isinstance(module, ReftLayer)]
        fill(layers, "default", reft, groups)
    except ValueError as error:
        raise ReftuneError(f"no adapter of {base!r} can be made of this: {error}") from error
    assert isinstance(adapted, PeftModel)
    return adapted


def _check_layers(groups: Sequence[Group], config: Any, base: str) -> None:
    count = config.get_text_config().num_hidden_layers
    beyond = {layer for group in groups for layer in group.phis if not 0 <= layer < count}
    if beyond:
        raise ReftuneError(
            f"the adapter edits layers {ranges(beyond)}, but {base!r} has 0 to {count - 1}: it is of another model"
        )


def write(
    groups: Sequence[Group], *, base: str, output: str | Path, of: str = "", style: PromptStyle | None = None
) -> Path:
    """`assemble`, and save, with how its prompts are put.  The folder may be there, but hold no adapter.

    Raises:
        ReftuneError: as `assemble`, or the folder cannot be written to; nothing is written then.
    """
    folder = check_output(output)
    model = assemble(groups, base=base, of=of)
    config: Any = model.peft_config["default"]
    config.prompt_style = style
    return save_adapter(model, folder)


def check_output(output: str | Path) -> Path:
    """A folder for a new adapter.

    Raises:
        ReftuneError: it cannot be written to, or holds an adapter.
    """
    folder = Path(output)
    check_writable(folder)
    if (folder / "adapter_config.json").exists():
        raise ReftuneError(f"{str(folder)!r} holds an adapter already; name another folder, or delete it first")
    return folder


def groups_in(adapter: str, *, base: str) -> list[Group]:
    """The Φ of an adapter in a folder or on the Hub, by groups; no weights of its base are needed.

    Raises:
        ReftuneError: it is none, not of this base, or trained with modules of the model.
    """
    config = adapter_config(adapter)
    if not isinstance(config, ReftConfig):
        raise ReftuneError(f"{adapter!r} is no ReFT adapter")
    if config.modules_to_save:
        raise ReftuneError(f"{adapter!r} was trained with modules of the model: {shown(config.modules_to_save)}")
    model = put_adapter(on_no_weights(base)[0], adapter, config, name=base)
    try:
        return taken_apart([layer for layer in model.modules() if isinstance(layer, ReftLayer)], "default")
    except ValueError as error:
        raise ReftuneError(f"{adapter!r}: {error}") from error


def base_of(labels: Sequence[str]) -> str:
    """The base model that all of them name.

    Raises:
        ReftuneError: they name different ones, or none.
    """
    named = {label: adapter_config(label).base_model_name_or_path for label in labels}
    found = {resolve_model(name) if name else None for name in named.values()}
    if len(found) > 1 or None in found:
        told = ", ".join(f"{label!r} of {name!r}" for label, name in named.items())
        raise ReftuneError(f"the adapters are not of one base model: {told}; if it is one, name it with --base")
    return str(next(iter(named.values())))
