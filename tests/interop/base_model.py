"""The tiny Llama that fixtures of other libraries were made on, the same weights in every version of transformers.

Must not know: anything of reftune; scripts/interop_fixtures.py runs it in the environments of other libraries.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

WIDTH, LAYERS, VOCAB = 16, 3, 31
IDS = ((3, 1, 4, 1, 5, 9, 2, 6), (5, 3, 5, 8, 9, 7, 9, 3))


def base_model() -> LlamaForCausalLM:
    """Weights are drawn by name, so that no order of drawing matters."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        parameter.data.copy_(1 + 0.1 * drawn if parameter.ndim == 1 else 0.3 * drawn)
    return model


def save_base(folder: Path) -> Path:
    """As a folder that a base model can be named by."""
    base_model().save_pretrained(folder)
    return folder
