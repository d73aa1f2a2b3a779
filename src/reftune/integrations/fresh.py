"""A fresh adapter as a folder, for programs that can only go on with one that is there.

Of the base model the configuration is read, and no weights.

Must not know: those programs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from transformers import set_seed

from ..data import PromptStyle
from ..errors import ReftuneError
from ..interop.parts import check_output, on_no_weights
from ..models import load_tokenizer, refuse_encoder, save_adapter
from .block import reft_config

__all__ = ["fresh_adapter"]


def fresh_adapter(
    model: str, output: str | Path, block: Any = None, *, style: str | None = None, seed: int = 42
) -> PeftModel:
    """Save an untrained adapter of a causal language model; returns it, on a base without weights.

    `block` are the fields of `ReftConfig`; `style` says how its prompts will be written, as in `PromptStyle`.

    Raises:
        ReftuneError: there is no such model, it cannot be edited so, or the folder holds an adapter already.
    """
    folder = check_output(output)
    config = reft_config(block)
    config.prompt_style = None if style is None else PromptStyle(style)
    base, own = on_no_weights(model)
    refuse_encoder(model, own)
    set_seed(seed)
    try:
        if config.has_texts:
            config.resolve_texts(load_tokenizer(model))
        made: Any = get_peft_model(base, config)
    except ValueError as error:
        raise ReftuneError(f"no adapter of {model!r} can be made of this: {error}") from error
    save_adapter(made, folder)
    return made
