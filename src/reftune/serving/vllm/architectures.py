"""Where vLLM's models have their blocks, and in which form a block returns its output.  Others are refused by name.

vLLM fuses the addition of the residual stream into the next norm, so most of its blocks return two tensors whose sum
is what the same block of transformers returns.

Must not know: adapters, requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

__all__ = ["ARCHITECTURES", "Architecture", "blocks_of"]

# sum: (hidden, residual), the output is their sum; first: a tensor, or a tuple whose first element is the output
Form = Literal["sum", "first"]


@dataclass(frozen=True)
class Architecture:
    """One of vLLM's model classes."""

    path: str
    """Of the list of blocks, in vLLM as in transformers."""
    block: str
    """Class of a block."""
    form: Form


def _models(form: Form, names: str, path: str = "model.layers") -> dict[str, Architecture]:
    pairs = (name.split(":") for name in names.split())
    return {model: Architecture(path, block, form) for model, block in pairs}


ARCHITECTURES: dict[str, Architecture] = {
    **_models(
        "sum",
        "LlamaForCausalLM:LlamaDecoderLayer MistralForCausalLM:MistralDecoderLayer Phi3ForCausalLM:LlamaDecoderLayer "
        "Qwen2ForCausalLM:Qwen2DecoderLayer Qwen3ForCausalLM:Qwen3DecoderLayer "
        "GemmaForCausalLM:GemmaDecoderLayer Gemma2ForCausalLM:Gemma2DecoderLayer Gemma3ForCausalLM:Gemma3DecoderLayer "
        "MixtralForCausalLM:MixtralDecoderLayer Qwen3MoeForCausalLM:Qwen3MoeDecoderLayer "
        "OlmoeForCausalLM:OlmoeDecoderLayer Glm4ForCausalLM:Glm4DecoderLayer NemotronForCausalLM:NemotronDecoderLayer",
    ),
    **_models(
        "first",
        "CohereForCausalLM:CohereDecoderLayer Cohere2ForCausalLM:CohereDecoderLayer "
        "StableLmForCausalLM:StablelmDecoderLayer GraniteForCausalLM:GraniteDecoderLayer",
    ),
    **_models(
        "first",
        "GPT2LMHeadModel:GPT2Block GPTJForCausalLM:GPTJBlock FalconForCausalLM:FalconDecoderLayer "
        "BloomForCausalLM:BloomBlock",
        path="transformer.h",
    ),
    **_models("first", "OPTForCausalLM:OPTDecoderLayer", path="model.decoder.layers"),
}


def blocks_of(model: nn.Module, architecture: str, count: int) -> dict[int, nn.Module]:
    """Number → block, of those that this process holds: with pipeline parallelism, a part of the `count`.

    Raises:
        ValueError: the model is not built as the table says.
    """
    known = ARCHITECTURES[architecture]
    found: Any = model.get_submodule(known.path)
    if len(found) != count:
        raise ValueError(f"{architecture} has {len(found)} blocks at {known.path!r}, where {count} were expected")
    blocks = {i: block for i, block in enumerate(found) if type(block).__name__ != "PPMissingLayer"}
    others = {type(block).__name__ for block in blocks.values()} - {known.block}
    if others:
        raise ValueError(
            f"{architecture} has blocks {sorted(others)} at {known.path!r}, where {known.block} was expected"
        )
    return blocks
