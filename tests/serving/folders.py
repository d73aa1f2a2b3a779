"""A tiny base model and adapters of many kinds, as folders, and what plain transformers answers with them.

Must not know: servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model

from reftune import ReftConfig
from tests.models import tiny_model
from tests.training.text_models import SPECIAL, WORDS, word_tokenizer

BASE = "base"
CONTEXT = 2048

# Every kind of position, several Φ and components, one layer and all; each far from the identity.
KINDS: Mapping[str, dict[str, Any]] = {
    "loreft": {"r": 2, "positions": "f1+l2", "tie": "group"},
    "direft-all": {"r": 3, "positions": "all", "intervention": "direft", "layers": [0]},
    "noreft-response": {"r": 2, "positions": "response", "intervention": "noreft", "layers": [1]},
    "consreft-last": {"r": 2, "positions": "l1", "intervention": "consreft", "init": "paper"},
    "red-prompt": {"positions": "prompt", "intervention": "red"},
    "lobireft-first": {"r": 4, "positions": "f2", "intervention": "lobireft"},
    "steer": {"positions": "f7+l7", "intervention": "steer"},
    "head": {"r": 2, "positions": "l3", "component": "attention_head[1]"},
    "mlp": {"r": 2, "positions": "l3", "component": "mlp_output", "tie": "none"},
    "terms": {"r": 2, "positions": "p[1:3]+g3-id(4,5,6,7)", "tie": "none"},
    "ids": {"r": 2, "positions": "id(5,8,9,12,15,20,21,22)+l1", "tie": "group"},
    "two": {
        "r": 2,
        "form": "delta",
        "alpha": 1.5,
        "groups": [{"layers": [0], "positions": "f2"}, {"layers": [1], "positions": "l1"}],
    },
}


def text_model(*, hidden: int = 32) -> Any:
    """With room for long answers."""
    sizes = {"vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": CONTEXT, "hidden_size": hidden}
    return tiny_model("llama", layers=2, overrides=sizes)


def save_text_base(folder: Path, *, hidden: int = 32) -> Path:
    text_model(hidden=hidden).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def adapted(config: Mapping[str, Any], *, seed: int, model: Any = None) -> PeftModel:
    """The text model with an adapter that changes its answers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = get_peft_model(model or text_model(), ReftConfig(**{"init": "random", **config}))
        with torch.no_grad():
            for name, parameter in found.named_parameters():
                # scales of RED start at 1, and steering vectors are short
                if name.endswith((".s", ".v", ".b")) and "intervention_" in name:
                    parameter.add_(torch.randn_like(parameter))
    return found.eval()


def save_adapters(folder: Path, kinds: Mapping[str, Mapping[str, Any]], *, seed: int = 0) -> dict[str, Path]:
    found = {}
    for number, (name, config) in enumerate(kinds.items()):
        adapted(config, seed=seed + number).save_pretrained(folder / name)
        found[name] = folder / name
    return found


def plain_answer(model: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens of transformers alone, one row without padding."""
    made = model.generate(
        input_ids=torch.tensor([prompt]), max_new_tokens=count, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    return made[0, len(prompt) :].tolist()


def plain_models(adapters: Mapping[str, Path]) -> dict[str | None, Any]:
    """The base, under None, and each adapter on a base of its own, as PEFT loads it."""
    found: dict[str | None, Any] = {None: text_model()}
    for name, folder in adapters.items():
        found[name] = PeftModel.from_pretrained(text_model(), str(folder)).eval()
    return found
