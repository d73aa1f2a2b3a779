"""A tiny random model of any class of transformers, from its configuration class by one recipe.

Fields are recognised by their names, in every part of a configuration that has parts.  What one class needs beside that
stands in `EXCEPTIONS`.

Must not know: anything of reftune.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import torch
import transformers as tf
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB = 97
WIDTH = 32
LAYERS = 2
MAX_PARAMETERS = 5_000_000
TASKS = {"CAUSAL_LM": "CAUSAL_LM", "SEQUENCE_CLASSIFICATION": "SEQ_CLS", "SEQ_TO_SEQ_CAUSAL_LM": "SEQ_2_SEQ_LM"}
TASKS |= {"SPEECH_SEQ_2_SEQ": "SEQ_2_SEQ_LM"}

# The first pattern that fits a field's whole name decides; only numbers that are there are replaced.
NUMBERS: tuple[tuple[str, Any], ...] = (
    (r".*vocab_size.*|unpadded_vocab_size", VOCAB),
    (r"num_nextn_predict_layers|num_mtp_layers|num_kv_shared_layers", 0),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (
        r"((encoder|decoder|text|num)_)*(hidden_)?layers|n_layers?|depth|num_blocks|(en|de)coder_num_hidden_layers",
        LAYERS,
    ),
    (r"(en|de)coder_num_key_value_heads", 4),
    (r".*(num_key_value_heads|num_kv_heads|kv_heads|num_key_heads)|multi_query_group_num", 2),
    (r".*(num_(attention_|value_)?heads|attention_heads|n_heads?|num_heads_ipa)", 4),
    (
        r"(.*_)?(hidden_size|d_model|n_embd|embedding_size|embedding_dim|embed_dim|word_embed_proj_dim|hidden_dims?)|dim",
        WIDTH,
    ),
    (r".*(intermediate_size|ffn_dim|d_ff|n_inner|ffn_hidden_size|feed_forward_size|hidden_dim|ffn_size)", 2 * WIDTH),
    (r"(.*_)?(head_dim|d_kv|d_head|dim_head|head_size|attention_head_size|key_length)", 8),
    (r"(moe_)?(num_|n_)(local_|routed_)?experts", 4),
    (r"num_experts_per_tok|moe_topk|moe_k|top_k_experts|top_k", 2),
    (r"n_group|topk_group|mamba_n_groups|n_groups|mamba_ngroups", 1),
    (r".*(max_.*position_embeddings|n_positions|max_seq_len|max_source_positions|max_target_positions)", 128),
    (r"(q|kv|o|qk|v)_lora_rank|.*lora_rank|laurel_rank|adapter_rank|.*_rank", 8),
    (r"qk_rope_head_dim|rotary_dim", 4),
    (r"sliding_window(_size)?|attention_window_size|window_size|local_radius", 4),
    (r".*chunk_size", 4),
    (r"mamba_d_state|state_size|ssm_state_size", 8),
    (r".*drop(out)?(_rate|_prob)?|.*_pdrop|.*layerdrop|.*jitter.*", 0.0),
    (r"initializer_range|init_std", 0.1),
    (r"image_size", 28),
    (r"patch_size", 14),
)
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
# Numbers that are set even where the default is None.
ALWAYS = ("head_dim", "num_key_value_heads")
FULL_ROPE = {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8}
NEMOTRON = {"mamba_num_heads": 8, "mamba_head_dim": 8}
ZAMBA = {"attention_hidden_size": 64, "attention_head_dim": 16}
# By model type, fields that win.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA2, "attn_layer_indices": [1]},
    "falcon_h1": {**MAMBA2, "mamba_d_ssm": 64},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "esm": {"vocab_size": VOCAB},
    "esmc": {"num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [8, 16],
        "num_buckets": 4,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
    },
    "xlm": {"emb_dim": WIDTH, "n_words": VOCAB},
    "flaubert": {"emb_dim": WIDTH, "n_words": VOCAB},
    "zamba": {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "hybrid"], **ZAMBA},
    "zaya": {"num_experts_per_tok": 1},
    "ctrl": {"dff": 64},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "num_hidden_layers": 2, "lru_width": WIDTH},
    "nemotron_h": {**NEMOTRON, "layers_block_type": ["mamba", "attention"]},
    "xmod": {"default_language": "en_XX"},
    "xlstm": {"chunk_size": 16, "hidden_size": 128, "embedding_dim": 128},
    "gemma4_text": {"global_head_dim": 8},
    "gemma4_unified_text": {"global_head_dim": 8},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "granitemoehybrid": {**MAMBA2, "layer_types": ["mamba", "attention"]},
    "lilt": {"hidden_size": 48},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "visual_embed": False},
    "led": {"attention_window": 16, "max_encoder_position_embeddings": 128, "max_decoder_position_embeddings": 128},
    "longformer": {"attention_window": 16},
    "dbrx": {"max_seq_len": 128, "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "cohere_compass_text": {"layer_types": ["full_attention"] * LAYERS, "rope_parameters": FULL_ROPE},
    "qwen4_exp_text": {
        "indexer_budget": 8,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 2,
        "indexer_head_dim": 8,
        "indexer_compress_ratio": 2,
    },
    "gemma3n_text": {"hidden_size_per_layer_input": 8, "laurel_rank": 4},
    "speecht5": {"conv_dim": [32] * 7, "num_conv_pos_embeddings": 16},
}


def classes() -> Iterator[tuple[str, str, str]]:
    """(task, model type, class) of all that transformers' mappings name, each class once."""
    seen = set()
    for mapping, task in TASKS.items():
        for model_type, names in getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES").items():
            for name in [names] if isinstance(names, str) else names:
                if name not in seen:
                    seen.add(name)
                    yield task, model_type, name


def tiny_config(model_type: str, config_class: type[PretrainedConfig] | None = None) -> PretrainedConfig:
    """The configuration of a tiny model."""
    config_class = config_class or CONFIG_MAPPING[model_type]
    default = _default(config_class)
    wanted: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        value = _value(default, field)
        if isinstance(value, bool):
            continue
        wanted |= _small(field.name, value)
    for name, part in (config_class.sub_configs or {}).items():
        value = getattr(default, name, None)
        if isinstance(value, PretrainedConfig):
            wanted[name] = tiny_config(value.model_type, type(value))
        elif dataclasses.is_dataclass(part):
            wanted[name] = tiny_config(getattr(part, "model_type", ""), part)
    if wanted.get("kv_lora_rank"):
        # latent attention has as many keys as queries
        wanted["num_key_value_heads"] = 4
    wanted |= EXCEPTIONS.get(config_class.model_type, {})
    return config_class(**wanted)


def _value(default: Any, field: Any) -> Any:
    try:
        return getattr(default, field.name, None)
    except Exception:  # noqa: BLE001
        # a field that differs from layer to layer
        return field.default


def _default(config_class: Any) -> Any:
    try:
        return config_class()
    except Exception:  # noqa: BLE001 — of those that need their parts, the declared values
        fields = {f.name: f.default for f in dataclasses.fields(config_class) if f.default is not dataclasses.MISSING}
        return type("Declared", (), fields)()


def _small(name: str, value: Any) -> dict[str, Any]:
    if name in SPECIAL:
        return {} if value is None and name == "decoder_start_token_id" else {name: SPECIAL[name]}
    if isinstance(value, int) and value >= VOCAB and re.search(r"token_(id|index)$|pad_id$|_index$", name):
        return {name: 40 + sum(map(ord, name)) % 50}
    if name.endswith(("layer_types", "layers_block_type", "indexer_types")) and isinstance(value, (list, tuple)):
        kinds = list(dict.fromkeys(value))
        return {name: [kinds[i % len(kinds)] for i in range(LAYERS)]}
    if name == "attn_pdrop" and isinstance(value, int):
        return {name: 0}
    if isinstance(value, (int, float)) or name in ALWAYS:
        for pattern, number in NUMBERS:
            if re.fullmatch(pattern, name):
                return {} if isinstance(number, float) and isinstance(value, int) and value else {name: number}
    return {}


def tiny_model(model_type: str, class_name: str, *, seed: int = 0) -> Any:
    """A tiny random model in eval mode.

    Raises:
        ValueError: the recipe makes it too large.
    """
    model_class = getattr(tf, class_name)
    config = tiny_config(model_type, model_class.config_class)
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class(config).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"the tiny model has {size:,} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    if config.is_encoder_decoder:
        model.config.decoder_start_token_id = 1
        if model.can_generate():
            model.generation_config.decoder_start_token_id = 1
    return model.eval()
