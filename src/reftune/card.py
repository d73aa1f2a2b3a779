"""The model card of a saved adapter: its `README.md`, with the metadata that the Hub reads.

It is made from the adapter's files, and from what a trainer told of the training.  A card that somebody else wrote, or
that lost the line `MARK`, is left as it is.

Must not know: layers, data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import PeftModel
from peft import __version__ as peft_version
from safetensors import SafetensorError, safe_open

from .files import read_json, write_text
from .hub import HUB_NAME

__all__ = ["Training", "is_replaced", "tell", "write_card", "write_cards"]

CARD = "README.md"
MARK = "<!-- written by reftune; without this line the card is yours, and is not written anew -->"
# of the card that PEFT writes at every save
TEMPLATE = "<!-- Provide a quick summary of what the model is/does. -->"
STYLES = {"messages": "by the chat template", "instruction": "by the Alpaca template", "prompt": "as they are"}
BARS = "▁▂▃▄▅▆▇█"
PIPELINES = {"CAUSAL_LM": "text-generation", "SEQ_CLS": "text-classification", "SEQ_2_SEQ_LM": "text2text-generation"}
CLASSES = {
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
}
EDITED = ("intervention", "positions", "tie", "layers", "component", "r")
USE = """## How to use
`pip install` reftune beside PEFT and transformers; the line `import reftune` teaches PEFT the method.

```python
import reftune
from peft import {kind}
from transformers import AutoTokenizer

model = {kind}.from_pretrained("this-adapter")  # this folder, or its name on the Hub
tokenizer = AutoTokenizer.from_pretrained({base!r})
```

On the command line: `reftune chat this-adapter`, `reftune serve {base} --reft-modules name=this-adapter`.
"""


@dataclass(frozen=True)
class Training:
    """What a trainer knows of how an adapter came about."""

    settings: Mapping[str, Any]
    """Name → value, in the order in which they are shown."""
    losses: Sequence[float] = ()
    """As they were logged."""
    eval_loss: float | None = None
    share: float | None = None
    """Trained parameters ÷ all parameters."""
    data: str | None = None
    """The file or the name on the Hub of the training records."""


def write_cards(configs: Mapping[str, Any], folder: str | Path) -> None:
    """Beside adapters that PEFT saved in a folder, each by its name."""
    for name, config in configs.items():
        write_card(Path(folder) / ("" if name == "default" else name), getattr(config, "training", None))


def write_card(
    folder: str | Path, training: Training | None = None, *, origin: str | None = None, of: str | Path | None = None
) -> None:
    """Write the card of the ReFT adapter in a folder; without one there, or with a card of somebody else, nothing.

    Of one that was made of another, `origin` says how; what the card in the folder `of` says of the training of that
    one is taken over.

    Raises:
        ReftuneError: the disk is full, and the like.
    """
    path = Path(folder) / CARD
    config, weights = path.with_name("adapter_config.json"), path.with_name("adapter_model.safetensors")
    if not config.is_file() or not weights.is_file() or not is_replaced(path):
        return
    values = read_json(config)
    if isinstance(values, dict) and values.get("peft_type") == "REFT":
        data = _metadata(values, training, _fields(path))
        made = _training(training) if training is not None else _made(origin, of)
        text = _text(values, training, _parameters(weights), _style(path.with_name("reftune.json")), made)
        write_text(path, f"---\n{data.to_yaml()}\n---\n\n{text}")


def is_replaced(path: Path) -> bool:
    """Whether a card may be written there: there is none, or the one of PEFT or of reftune."""
    if not path.is_file():
        return True
    text = path.read_text(encoding="utf-8", errors="replace")
    return MARK in text or TEMPLATE in text


def _fields(path: Path) -> dict[str, Any]:
    """What the metadata of the card that is there say, such as a licence that somebody added."""
    try:
        return ModelCard.load(path, ignore_metadata_errors=True).data.to_dict() if path.is_file() else {}
    except ValueError:
        return {}


def _metadata(config: Mapping[str, Any], training: Training | None, kept: dict[str, Any]) -> ModelCardData:
    base, task = config.get("base_model_name_or_path"), config.get("task_type")
    groups = _groups(config)
    # model-index is made anew from the evaluation
    kept = {name: value for name, value in kept.items() if name not in ("base_model", "model-index", "tags")}
    tags = {"peft", "reft", "reftune", "transformers", *(group["intervention"] for group in groups)}
    values: dict[str, Any] = {**kept, "library_name": "peft"}
    if _is_public(base):
        values["base_model"] = base
        tags.add(f"base_model:adapter:{base}")
    if task in PIPELINES:
        values["pipeline_tag"] = PIPELINES[task]
    if training is not None and _is_public(training.data):
        values["datasets"] = [training.data]
    if training is not None and training.eval_loss is not None and math.isfinite(training.eval_loss):
        values |= {"metrics": ["loss"], "model_name": f"ReFT adapter of {named(base)}"}
        own = named(training.data) if training.data else "rows of one's own"
        values["eval_results"] = [
            EvalResult(PIPELINES.get(str(task), "text-generation"), "own", own, "loss", round(training.eval_loss, 4))
        ]
    return ModelCardData(**values, tags=sorted(tags))


def _text(
    config: Mapping[str, Any],
    training: Training | None,
    parameters: int | None,
    style: str | None,
    made: Sequence[str],
) -> str:
    base = config.get("base_model_name_or_path")
    groups = _groups(config)
    share = "" if training is None or training.share is None else f", {100 * training.share:.3g} % of the model"
    told = {
        "base model": named(base),
        **({"task": config["task_type"]} if config.get("task_type") else {}),
        **({} if parameters is None else {"parameters": f"{parameters:,}{share}"}),
        **({} if style is None else {"prompts are written": style}),
    }
    rows = [[_cell(group.get(name)) for name in EDITED] for group in groups]
    parts = [
        f"# ReFT adapter of {named(base)}\n",
        f"{MARK}\n",
        "Representation finetuning ([ReFT](https://arxiv.org/abs/2404.03592)): the base model is frozen, and small "
        "functions edit its hidden states at some tokens.\n",
        *_table(["", ""], [[name, _cell(value)] for name, value in told.items()]),
        "## What is edited\n",
        *_table([*EDITED[:-1], "rank"], rows),
        USE.format(kind=CLASSES.get(str(config.get("task_type")), "AutoPeftModel"), base=named(base)),
        *made,
        "## Licence\n\nNot stated here; that of the base model holds for its use with this adapter.\n",
        f"### Framework versions\n\n- PEFT {peft_version}",
    ]
    return "\n".join(parts) + "\n"


def _training(training: Training) -> list[str]:
    told = {"data": named(training.data)} if training.data else {}
    told |= dict(training.settings)
    losses = [loss for loss in training.losses if math.isfinite(loss)]
    if losses:
        told["training loss"] = f"{losses[0]:.4g} {_bars(losses)} {losses[-1]:.4g}"
    if training.eval_loss is not None:
        told["evaluation loss"] = f"{training.eval_loss:.4g}"
    return ["## Training\n", *_table(["", ""], [[name, _cell(value)] for name, value in told.items()])]


def _made(origin: str | None, of: str | Path | None) -> list[str]:
    """How an adapter was made of another, and how that one was trained."""
    if origin is None:
        return []
    path = Path(of or "") / CARD
    text = path.read_text(encoding="utf-8", errors="replace") if of is not None and path.is_file() else ""
    found = re.search(r"^## Training\n.*?(?=^## )", text, re.DOTALL | re.MULTILINE) if MARK in text else None
    trained = [] if found is None else [found[0].replace("## Training", "## Training of the whole adapter", 1).rstrip()]
    return ["## Where it comes from\n", f"{origin}\n", *(f"{part}\n" for part in trained)]


def _bars(losses: Sequence[float]) -> str:
    """A small picture of at most 24 of them."""
    shown = losses[:: max(1, -(-len(losses) // 24))]
    low, width = min(shown), max(shown) - min(shown) or 1.0
    return "".join(BARS[round((loss - low) / width * (len(BARS) - 1))] for loss in shown)


def _groups(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    own = {name: config.get(name) for name in EDITED}
    if own["layers"] is None:
        own["layers"] = config.get("target_modules")
    return [{**own, **group} for group in config.get("groups") or [{}]]


def _parameters(weights: Path) -> int | None:
    """How many numbers a file of weights holds, None if it cannot be read."""
    try:
        with safe_open(weights, framework="pt") as opened:
            return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def _style(path: Path) -> str | None:
    """How prompts are written, in words; None if no file says it."""
    values = read_json(path) if path.is_file() else {}
    system = " with the system turn of `reftune.json`" if values.get("system") else ""
    return f"{STYLES[values['style']]}{system}" if values.get("style") in STYLES else None


def _is_public(name: Any) -> bool:
    """Whether this is a name on the Hub, and not a folder or a file of this machine."""
    return isinstance(name, str) and bool(HUB_NAME.fullmatch(name)) and not Path(name).exists()


def named(name: Any) -> str:
    """A name as others may see it: of a folder or file its last part."""
    if not name:
        return "a model without a name"
    return str(name) if _is_public(name) else Path(str(name)).name


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(cells)} |" for cells in lines), ""]


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else f"{value}"
    return " ".join(text.split()).replace("|", "\\|")


def tell(model: PeftModel, settings: Any, state: Any, *, rows: Any, data: str | None = None) -> None:
    """Have the next save of the active adapters tell what the arguments and the state of transformers' Trainer say.

    Without `data` a name that was told before stays.
    """
    trained, total = model.get_nb_trainable_parameters()
    log = state.log_history
    evals = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    if settings.load_best_model_at_end and state.best_metric is not None:
        evals.append(state.best_metric)
    values: dict[str, Any] = {"rows": f"{len(rows):,}"} if isinstance(rows, Sized) else {}
    values |= {"epochs": f"{state.epoch or 0:.4g}", "steps": f"{state.global_step:,}"}
    values |= {"learning rate": f"{settings.learning_rate:g}", "schedule": str(settings.lr_scheduler_type.value)}
    values["batch"] = f"{settings.train_batch_size * settings.gradient_accumulation_steps * settings.world_size:,}"
    values |= {"weight decay": f"{settings.weight_decay:g}", "seed": settings.seed}
    losses = [entry["loss"] for entry in log if "loss" in entry]
    for active in model.active_adapters:
        config: Any = model.peft_config[active]
        before: Training | None = getattr(config, "training", None)
        name = named(data) if data else before.data if before is not None else None
        config.training = Training(values, losses, evals[-1] if evals else None, trained / total, name)
