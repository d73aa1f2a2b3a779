"""Llama shapes of 1B and 8B, with random weights in bfloat16: time does not depend on weights.

Must not know: methods.
"""

from __future__ import annotations

from typing import Any

# as Llama 3's
COMMON = {"num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0}
SHAPES: dict[str, dict[str, Any]] = {
    "8B": {
        **COMMON,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "1B": {
        **COMMON,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
}
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}


def shapes(*, tiny: bool) -> dict[str, dict[str, Any]]:
    return {"tiny": TINY} if tiny else SHAPES


def step_flops(shape: dict[str, Any], *, batch: int, length: int, labelled: int) -> float:
    """Of a step of the floor: forward, and backward of the activations; logits of so many tokens a row."""
    width, layers, heads = shape["hidden_size"], shape["num_hidden_layers"], shape["num_attention_heads"]
    keys = width // heads * shape["num_key_value_heads"]
    weights = layers * (2 * width * width + 2 * width * keys + 3 * width * shape["intermediate_size"])
    # scores and their product with the values, half of them behind the causal mask
    attention = layers * 2 * batch * length * length * width
    forward = 2 * weights * batch * length + attention + 2 * batch * labelled * width * shape["vocab_size"]
    # of attention, the backward pass has twice the products
    return 2 * forward + attention
