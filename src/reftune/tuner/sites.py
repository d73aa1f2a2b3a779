"""Where a model can be edited: its stacks of blocks and, within a block, the module that holds a component.

Must not know: adapters, interventions, positions.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ..config import ReftGroup, resolve_layers
from .context import Role

__all__ = ["Site", "Stack", "find_root", "find_sites", "find_stacks", "models_above", "module_width"]

# Names, relative to a block, of the module whose output is the component before the residual is added.  Bloom's
# attention and MLP add the residual themselves, so there it is their last projection.
ATTENTION = ("self_attention.dense", "self_attn", "attn", "attention.output.dense", "attention", "self_attention")
ATTENTION += ("layer.0.SelfAttention", "temporal_block")
MLP = ("mlp.dense_4h_to_h", "mlp", "block_sparse_moe", "feed_forward", "ffn", "fc2", "output.dense")
MLP += ("layer.2.DenseReluDense", "layer.1.DenseReluDense", "output")
OUTPUT_PROJECTION = (
    "self_attn.o_proj",
    "self_attn.out_proj",
    "self_attn.dense",
    "attn.c_proj",
    "attn.out_proj",
    "attention.dense",
    "attention.output.dense",
    "self_attention.dense",
    "layer.0.SelfAttention.o",
)


@dataclass(frozen=True)
class Stack:
    """A list of blocks that pass one residual stream on."""

    path: str
    """Of the module whose forward gets the tokens: the innermost `PreTrainedModel` around the blocks."""
    role: Role
    blocks: tuple[str, ...]
    """Paths of the blocks, in order."""
    config: Any
    """Of the stack: an encoder and its decoder may differ in width and heads."""

    @property
    def width(self) -> int:
        """Width d of the residual stream.

        Raises:
            ValueError: the configuration does not say.
        """
        width = getattr(self.config, "hidden_size", None)
        if not isinstance(width, int):
            raise ValueError(
                f"the width of the blocks of model type {self.config.model_type!r} cannot be told: its configuration "
                "has no hidden_size; name linear layers by target_modules instead of layers"
            )
        return width


@dataclass(frozen=True)
class Site:
    """One place to edit: the output of a module, or a slice of its input."""

    path: str
    layer: int
    width: int
    head: int | None = None

    @property
    def part(self) -> slice | None:
        """For an attention head, its slice of the input of the output projection."""
        return None if self.head is None else slice(self.head * self.width, (self.head + 1) * self.width)

    @property
    def child(self) -> str:
        """Name of the `ReftLayer` below the module.  It must not contain the prefix of the parameters."""
        return "hidden_edit" if self.head is None else f"head_edit_{self.head}"


def find_root(model: nn.Module) -> nn.Module:
    """The outermost transformers model, which may lie within PEFT's wrappers; else `model` itself."""
    return next((module for module in model.modules() if isinstance(module, PreTrainedModel)), model)


def find_stacks(model: nn.Module) -> list[Stack]:
    """Stacks of the text model, encoder before decoder; empty if the model is not one of transformers'.

    Blocks are what transformers checkpoints one by one; without such, the longest list of modules of one class.
    """
    root = find_root(model)
    if not isinstance(root, PreTrainedModel):
        return []
    models = {name: module for name, module in model.named_modules() if isinstance(module, PreTrainedModel)}
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    }
    found = {name: blocks for name, blocks in lists.items() if all(_is_block(b) for b in blocks)}
    if not found:
        found = {
            name: blocks for name, blocks in lists.items() if len({type(b) for b in blocks}) == 1 and len(blocks) > 1
        }
    if not found:
        return []

    def owner(name: str) -> str:
        return max((m for m in models if name == m or name.startswith(f"{m}." if m else "")), key=len)

    def stack(role: Role, names: list[str], text: Any) -> list[Stack]:
        """The longest list, of those that lie in a model of text where there are such."""
        of_text = [name for name in names if models[owner(name)].config.model_type == text.model_type]
        if not names:
            return []
        name = max(of_text or names, key=lambda candidate: len(found[candidate]))
        around = models[owner(name)]
        paths = tuple(f"{name}.{i}" for i in range(len(found[name])))
        return [Stack(owner(name), role, paths, around.config.get_text_config())]

    text = root.config.get_text_config()
    if not root.config.is_encoder_decoder:
        return stack("causal", list(found), text)
    encoder: Any = root.get_encoder()
    within = set(encoder.modules())
    encoding = [name for name in found if models[owner(name)] in within]
    decoding = [name for name in found if name not in encoding]
    return stack("encoder", encoding, encoder.config.get_text_config()) + stack("decoder", decoding, text)


def models_above(model: nn.Module, stacks: list[Stack]) -> list[nn.Module]:
    """The transformers models that hold a stack's model, outermost first: each may be called by itself."""
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, PreTrainedModel)
        and any(stack.path.startswith(f"{name}." if name else "") for stack in stacks)
    ]


def model_of_tokens(root: nn.Module) -> nn.Module | None:
    """The transformers model that gets the tokens, where blocks were not found and modules are named."""
    base = root.base_model if isinstance(root, PreTrainedModel) else None
    if base is None or root.config.is_encoder_decoder:  # type: ignore[union-attr]
        return None
    return base if "input_ids" in inspect.signature(type(base).forward).parameters else None


def _is_block(module: nn.Module) -> bool:
    module = getattr(module, "base_layer", module)
    # convolutions that make frames of sound are checkpointed too
    return isinstance(module, GradientCheckpointingLayer) and not isinstance(getattr(module, "conv", None), nn.Conv1d)


def find_sites(model: nn.Module, stacks: list[Stack], group: ReftGroup) -> list[Site]:
    """The places that a group edits.  Layers of an encoder-decoder are counted through: encoder first.

    Raises:
        ValueError: the layers, the component or the head do not exist in this model.
    """
    blocks = [(path, stack) for stack in stacks for path in stack.blocks]
    if not blocks:
        raise ValueError(
            f"the blocks of this model ({type(find_root(model)).__name__}) could not be found; name modules by "
            "target_modules instead of layers"
        )
    sites = []
    for layer in resolve_layers(group.layers if group.layers is not None else "all", len(blocks)):
        path, stack = blocks[layer]
        if group.head is not None:
            sites.append(_head_site(model, path, layer, group.head, stack))
        else:
            path = _component_path(model, path, group.component)
            sites.append(Site(path, layer, stack.width))
    return sites


def _component_path(model: nn.Module, block: str, component: str) -> str:
    if component == "block_output":
        return block
    names = ATTENTION if component == "attention_output" else MLP
    return f"{block}.{_first_child(model, block, component, names)}"


def _first_child(model: nn.Module, block: str, what: str, names: tuple[str, ...]) -> str:
    known = {name for name, _ in model.get_submodule(block).named_modules()}
    for name in names:
        if name in known:
            return name
    children = ", ".join(name for name, _ in model.get_submodule(block).named_children())
    raise ValueError(f"component={what!r} was not found in {block}, which has {children}; name it by target_modules")


def _head_site(model: nn.Module, block: str, layer: int, head: int, stack: Stack) -> Site:
    name = _first_child(model, block, f"attention_head[{head}]", OUTPUT_PROJECTION)
    path = f"{block}.{name}"
    heads = _heads(model.get_submodule(path.rpartition(".")[0]), stack)
    if head >= heads:
        raise ValueError(f"component='attention_head[{head}]' does not exist; this model has heads 0..{heads - 1}")
    width = _input_width(model.get_submodule(path)) // heads
    return Site(path, layer, width, head)


def _heads(attention: nn.Module, stack: Stack) -> int:
    """Number of heads: what the attention says itself, since a configuration may have one for encoder and decoder."""
    own = (getattr(attention, name, None) for name in ("num_heads", "num_attention_heads", "n_heads"))
    return next((heads for heads in own if isinstance(heads, int)), None) or stack.config.num_attention_heads


def _input_width(module: nn.Module) -> int:
    layer: Any = getattr(module, "base_layer", module)
    if hasattr(layer, "in_features"):
        return int(layer.in_features)
    return int(layer.weight.shape[0])  # transformers' Conv1D keeps its weight [in, out]


def module_width(model: nn.Module, path: str, stacks: list[Stack]) -> int:
    """Width of the last axis of what any named module returns.

    Raises:
        ValueError: it cannot be told from the module.
    """
    module = model.get_submodule(path)
    module = getattr(module, "base_layer", module)
    for attribute in ("out_features", "nf", "embedding_dim"):
        if isinstance(getattr(module, attribute, None), int):
            return getattr(module, attribute)
    shape = getattr(module, "normalized_shape", None)
    if shape is not None:
        return int(shape[-1])
    around = [stack for stack in stacks if not stack.path or path.startswith(f"{stack.path}.")]
    if stacks:
        return max(around or stacks[:1], key=lambda stack: len(stack.path)).width
    raise ValueError(
        f"the width of the output of {path!r} ({type(module).__name__}) cannot be told; valid targets are blocks of "
        "transformers models, linear layers, embeddings and layer norms"
    )


def layer_number(path: str) -> int:
    """Index of the block that a path lies in, −1 if it has none; for messages."""
    numbers = re.findall(r"\.(\d+)(?:\.|$)", f".{path}")
    return int(numbers[0]) if numbers else -1
