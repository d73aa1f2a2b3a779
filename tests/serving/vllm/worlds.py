"""A tiny model, adapters of every kind for it, mixed requests, and what transformers with reftune answers to them.

LoRAs beside them are PEFT's own.

Must not know: vLLM.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model

from reftune import ReftConfig

Ranges = tuple[tuple[int, int], ...]

VOCAB, WIDTH, LAYERS = 256, 64, 4
NEW = 8
CHUNK = 16
BLOCK = 32

# every linear Φ
KINDS = ("loreft", "direft", "direft_orthonormal", "noreft", "consreft", "lobireft", "red", "steer")
POSITIONS = ("f1", "l1", "f2+l3", "f7+l7", "prompt", "all", "response")


def tiny_llama(**more: Any) -> Any:
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "intermediate_size": 128,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 512,
            "initializer_range": 0.2,
            "tie_word_embeddings": False,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 0,
            **more,
        }
    )
    return tf.LlamaForCausalLM(config).eval()


def configs() -> dict[str, ReftConfig]:
    """Names → adapters: every Φ at every kind of positions, ties, subsets of layers, and groups."""
    found: dict[str, dict[str, Any]] = {}
    layers: tuple[Any, ...] = ("all", [1], [0, 3], [1, 2], [-1])
    number = 0
    for kind in KINDS:
        for j in range(4):
            positions = POSITIONS[(number + j) % len(POSITIONS)]
            found[f"{kind}-{positions}"] = {
                "intervention": kind,
                "positions": positions,
                "layers": layers[number % len(layers)],
                "r": 1 + number % 4,
            }
            number += 1
    found["ties-none"] = {"positions": "f2+l2", "tie": "none", "layers": [0, 2], "r": 2}
    found["ties-group"] = {"positions": "f7+l7", "tie": "group", "r": 2}
    found["groups"] = {
        "groups": [
            {"positions": "l1", "layers": [1], "r": 3},
            {"positions": "f7+l7", "layers": [2, 3], "intervention": "direft"},
            {"positions": "f2", "layers": [1]},
        ],
    }
    some = ",".join(map(str, range(2, VOCAB, 5)))
    found["terms-first-answers"] = {"positions": "l4+g3", "tie": "group", "r": 2}
    found["terms-slots"] = {"positions": "p[1:4]+p[-3:]+g2", "tie": "none", "layers": [0, 2], "r": 1}
    found["terms-ids"] = {"positions": f"id({some})", "intervention": "red"}
    found["terms-left-out"] = {"positions": f"all-p[2:-2]-id({some})-g1", "r": 2, "layers": [0, 3]}
    found["terms-turns"] = {"positions": f"turn({some}):f1+l2+g1", "tie": "group", "r": 2}
    found["terms-turns-left-out"] = {"positions": f"turn({some}):prompt-f1-l2", "layers": [0, 1], "intervention": "red"}
    found["terms-groups"] = {
        "groups": [{"positions": f"f2+id({some})", "tie": "group"}, {"positions": f"prompt-p[:2]-id({some})"}],
        "r": 2,
    }
    found["marked-spans"] = {"positions": "span+l1", "tie": "group", "r": 2}
    found["marked-rest"] = {"positions": f"prompt-span-id({some})", "r": 2, "layers": [0, 2]}
    found["subspaces"] = {"r": 4, "subspaces": [[0, 1], [2, 3]], "active_subspaces": [1], "positions": "l3"}
    unless_said: dict[str, Any] = {"r": 4, "positions": "f7+l7", "init": "random", "task_type": "CAUSAL_LM"}
    return {name: ReftConfig(**{**unless_said, **values}) for name, values in found.items()}


@dataclass
class World:
    """A base model in `folder`/base and adapters beside it."""

    folder: Path
    model: Any
    names: list[str]
    marked: list[str] = field(default_factory=list)
    """Adapters whose prompts must mark tokens."""
    loras: dict[str, Any] = field(default_factory=dict)
    """Name → the base model with this LoRA alone."""
    known: dict[tuple[Any, ...], list[int]] = field(default_factory=dict)

    @property
    def base(self) -> str:
        return str(self.folder / "base")

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def answers(self, requests: list[tuple[tuple[int, ...], str | None]], new: int = NEW) -> list[list[int]]:
        """Greedy tokens of transformers with reftune, or with PEFT's LoRA, each request alone."""
        return [self.answer(prompt, name, new=new) for prompt, name in requests]

    @torch.inference_mode()
    def answer(self, prompt: tuple[int, ...], name: str | None, spans: Ranges = (), *, new: int = NEW) -> list[int]:
        """The same of one request, in whose prompt `spans` are marked."""
        key = (prompt, name, spans, new)
        if key not in self.known:
            lora = self.loras.get(name or "")
            chosen: dict[str, Any] = {"adapter_names": [name or "__base__"]} if lora is None else {}
            if name in self.marked:
                chosen["spans"] = torch.tensor([[int(any(a <= i < b for a, b in spans)) for i in range(len(prompt))]])
            out = (lora or self.model).generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                **chosen,
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            self.known[key] = out[0, len(prompt) :].tolist()
        return self.known[key]


def make_world(folder: Path, base: Any = None, chosen: dict[str, ReftConfig] | None = None, seed: int = 1) -> World:
    """Save a base model and adapters that visibly change it."""
    base = tiny_llama() if base is None else base
    base.save_pretrained(folder / "base")
    found = configs() if chosen is None else chosen
    torch.manual_seed(seed)
    model: Any = None
    for name, config in found.items():
        if model is None:
            model = get_peft_model(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        strengthen(model, name)
        model.save_pretrained(str(folder), selected_adapters=[name])
    assert isinstance(model, PeftModel)
    marked = [name for name in found if name.startswith("marked-")]
    return World(folder, model.eval(), [name for name in found if name not in marked], marked)


def add_loras(world: World, names: Sequence[str], *, seed: int = 2) -> None:
    """Save LoRAs of all linear layers beside the other adapters."""
    torch.manual_seed(seed)
    for number, name in enumerate(names):
        base = tf.AutoModelForCausalLM.from_pretrained(world.base)
        # random: that of PEFT changes nothing
        config = LoraConfig(r=2 + number, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(base, config)
        model.save_pretrained(world.path(name))
        world.loras[name] = model.eval()


@torch.no_grad()
def strengthen(model: Any, name: str) -> None:
    """Edits as large as the states of a model whose weights are random."""
    for key, parameter in [*model.named_parameters(), *model.named_buffers()]:
        scale = {"b": 4.0, "v": 4.0, "W": 0.5, "W1": 0.5, "s": 0.5}.get(key.rsplit(".", 1)[-1])
        if f".{name}." in f"{key}." and scale is not None:
            parameter.add_(scale * torch.randn_like(parameter))


def mixed_requests(names: list[str], *, count: int, seed: int = 0) -> list[tuple[tuple[int, ...], str | None]]:
    """Prompts of 1 to 100 tokens, many of which begin alike, for all adapters and for the base model between."""
    rng = random.Random(seed)
    stem = [rng.randrange(2, VOCAB) for _ in range(100)]
    found: list[tuple[tuple[int, ...], str | None]] = []
    turns = itertools.cycle(names)  # the base model takes nobody's turn: else its name might never come
    for i in range(count):
        shared = rng.choice((0, 5, 32, 33, 64, 80, 100))
        tail = [rng.randrange(2, VOCAB) for _ in range(rng.choice((0, 1, 2, 7, 20)))]
        prompt = tuple((stem[:shared] + tail) or [rng.randrange(2, VOCAB)])
        found.append((prompt, None if i % 6 == 5 else next(turns)))
    rng.shuffle(found)
    return found
