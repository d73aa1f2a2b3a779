"""Tiny random models of many architectures, for tests: seeded, without dropout, in eval mode, built in milliseconds.

Must not know: anything of reftune.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as tf
from transformers import PretrainedConfig, PreTrainedModel

VOCAB = 97
HIDDEN = 32
HEADS = 4
PAD = 0

CAUSAL = (
    "llama",
    "mistral",
    "qwen3",
    "gemma3",
    "gpt2",
    "opt",
    "gpt_neox",
    "phi",
    "mixtral",
    "bloom",
    "falcon",
)
ENCODER = ("bert", "roberta")
SEQ2SEQ = ("t5",)
KINDS = CAUSAL + ENCODER + SEQ2SEQ

# Large enough that an edit of one position moves the logits far beyond rounding, and that greedy decoding has no ties.
_INIT_STD = 0.1


def _llama_like(layers: int) -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "attention_dropout": 0.0,
    }


def _full_heads(layers: int) -> dict[str, Any]:
    """Llama-like names, one key-value head for each query head, and a dropout on the hidden states to switch off."""
    common = _llama_like(layers)
    del common["num_key_value_heads"]
    return {**common, "hidden_dropout": 0.0}


def _gemma3(layers: int) -> dict[str, Any]:
    # A window of 4 and a mix of both kinds of layer, so that a wrong mask or position shows in a short sequence.
    kinds = ["sliding_attention" if index % 2 == 0 else "full_attention" for index in range(layers)]
    return {**_llama_like(layers), "head_dim": HIDDEN // HEADS, "sliding_window": 4, "layer_types": kinds}


def _gpt2(layers: int) -> dict[str, Any]:
    dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return {"n_embd": HIDDEN, "n_layer": layers, "n_head": HEADS, "n_positions": 128, **dropouts}


def _opt(layers: int) -> dict[str, Any]:
    sizes = {"hidden_size": HIDDEN, "ffn_dim": 2 * HIDDEN, "word_embed_proj_dim": HIDDEN}
    rest = {"num_hidden_layers": layers, "num_attention_heads": HEADS, "max_position_embeddings": 128}
    return {**sizes, **rest, "dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0}


def _phi(layers: int) -> dict[str, Any]:
    return {**_llama_like(layers), "resid_pdrop": 0.0, "embd_pdrop": 0.0}


def _bloom(layers: int) -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN,
        "n_layer": layers,
        "n_head": HEADS,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }


def _falcon(layers: int) -> dict[str, Any]:
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": layers, "num_attention_heads": HEADS}
    return {**sizes, "hidden_dropout": 0.0, "attention_dropout": 0.0, "max_position_embeddings": 128}


def _bert(layers: int) -> dict[str, Any]:
    common = _full_heads(layers)
    del common["hidden_dropout"], common["attention_dropout"]
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    return {**common, **dropouts, "num_labels": 3}


def _t5(layers: int) -> dict[str, Any]:
    sizes = {"d_model": HIDDEN, "d_kv": HIDDEN // HEADS, "d_ff": 2 * HIDDEN, "num_heads": HEADS}
    return {**sizes, "num_layers": layers, "num_decoder_layers": layers, "dropout_rate": 0.0, "classifier_dropout": 0.0}


_Recipe = tuple[type[PretrainedConfig], type[PreTrainedModel], Callable[[int], dict[str, Any]], Mapping[str, Any]]

_RECIPES: Mapping[str, _Recipe] = {
    "llama": (tf.LlamaConfig, tf.LlamaForCausalLM, _llama_like, {}),
    "mistral": (tf.MistralConfig, tf.MistralForCausalLM, _llama_like, {"sliding_window": None}),
    "qwen3": (tf.Qwen3Config, tf.Qwen3ForCausalLM, _llama_like, {"head_dim": HIDDEN // HEADS}),
    "gemma3": (tf.Gemma3TextConfig, tf.Gemma3ForCausalLM, _gemma3, {}),
    "gpt2": (tf.GPT2Config, tf.GPT2LMHeadModel, _gpt2, {}),
    "opt": (tf.OPTConfig, tf.OPTForCausalLM, _opt, {}),
    "gpt_neox": (tf.GPTNeoXConfig, tf.GPTNeoXForCausalLM, _full_heads, {}),
    "phi": (tf.PhiConfig, tf.PhiForCausalLM, _phi, {}),
    "mixtral": (
        tf.MixtralConfig,
        tf.MixtralForCausalLM,
        _llama_like,
        {"sliding_window": None, "num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.0},
    ),
    "bloom": (tf.BloomConfig, tf.BloomForCausalLM, _bloom, {}),
    "falcon": (tf.FalconConfig, tf.FalconForCausalLM, _falcon, {}),
    "bert": (tf.BertConfig, tf.BertForSequenceClassification, _bert, {}),
    # RoBERTa numbers its positions from pad_token_id + 1.
    "roberta": (tf.RobertaConfig, tf.RobertaForSequenceClassification, _bert, {"max_position_embeddings": 130}),
    "t5": (tf.T5Config, tf.T5ForConditionalGeneration, _t5, {"decoder_start_token_id": PAD}),
}


def tiny_config(kind: str, *, layers: int = 4, overrides: Mapping[str, Any] | None = None) -> PretrainedConfig:
    """The config of `tiny_model`; `overrides` are fields of the architecture's own config, and win."""
    if kind not in _RECIPES:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    config_class, _, sizes, extra = _RECIPES[kind]
    tokens = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}
    spread = {} if kind == "t5" else {"initializer_range": _INIT_STD}
    return config_class(**{**tokens, **spread, **sizes(layers), **extra, **(overrides or {})})


def tiny_model(
    kind: str,
    *,
    layers: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    """A tiny random model of one of `KINDS`: the same weights for the same arguments, the global seed left alone.

    Generation does not stop at an end token, so that lengths are known; a test that wants it to passes `eos_token_id`.
    """
    config = tiny_config(kind, layers=layers, overrides=overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _RECIPES[kind][1](config)
    if kind not in ENCODER:
        model.generation_config.eos_token_id = None
    return model.to(dtype).eval()


def random_tokens(batch: int, length: int, *, seed: int = 0) -> torch.Tensor:
    """Token ids `[batch, length]` without pad, begin and end tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (batch, length), generator=generator)
