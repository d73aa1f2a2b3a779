"""Every architecture of the table: vLLM with the plug-in gives the tokens of transformers with reftune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from reftune import ReftConfig
from reftune.serving.vllm.architectures import ARCHITECTURES
from tests.serving.vllm.engines import ask, close, engine, prepare
from tests.serving.vllm.worlds import VOCAB, make_world, mixed_requests

pytestmark = pytest.mark.vllm

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
OLD = {"n_embd": 64, "n_layer": 3, "n_head": 2, "n_positions": 512}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
# class of the configuration, and what it has besides or instead of the sizes
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("LlamaConfig", {}),
    "MistralForCausalLM": ("MistralConfig", {"sliding_window": None}),
    "Phi3ForCausalLM": ("Phi3Config", {}),
    "Qwen2ForCausalLM": ("Qwen2Config", {}),
    "Qwen3ForCausalLM": ("Qwen3Config", {}),
    "GemmaForCausalLM": ("GemmaConfig", {}),
    "Gemma2ForCausalLM": ("Gemma2Config", {"query_pre_attn_scalar": 32, "sliding_window": 64}),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", {"query_pre_attn_scalar": 32, "sliding_window": 64}),
    "MixtralForCausalLM": ("MixtralConfig", EXPERTS),
    "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", EXPERTS),
    "OlmoeForCausalLM": ("OlmoeConfig", {**EXPERTS, "num_key_value_heads": 2}),
    "Glm4ForCausalLM": ("Glm4Config", {}),
    "NemotronForCausalLM": ("NemotronConfig", {}),
    "CohereForCausalLM": ("CohereConfig", {}),
    # with shorter windows vLLM and transformers differ on the base model too
    "Cohere2ForCausalLM": ("Cohere2Config", {"sliding_window": 512}),
    "StableLmForCausalLM": ("StableLmConfig", {}),
    "GraniteForCausalLM": ("GraniteConfig", {"residual_multiplier": 0.5, "embedding_multiplier": 2.0}),
    "GPT2LMHeadModel": ("GPT2Config", OLD),
    "GPTJForCausalLM": ("GPTJConfig", {**OLD, "rotary_dim": 16}),
    "FalconForCausalLM": ("FalconConfig", {"new_decoder_architecture": False, "multi_query": True, "alibi": False}),
    "BloomForCausalLM": ("BloomConfig", {"n_layer": 3, "n_head": 2}),
    "OPTForCausalLM": ("OPTConfig", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
}
# one of each form in every run, Llama being in all other tests; the others take ten minutes
QUICK = ("GPT2LMHeadModel", "CohereForCausalLM")
POSITIONS = {"all-layers": "f2+l3", "prompt": "prompt", "all": "all"}


def test_the_table_is_tested() -> None:
    assert set(MODELS) == set(ARCHITECTURES)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in MODELS])
def test_architecture(name: str, tmp_path: Path) -> None:
    prepare()
    kind, more = MODELS[name]
    torch.manual_seed(0)
    # Falcon works its own out
    sizes = {key: value for key, value in SIZES.items() if (name, key) != ("FalconForCausalLM", "head_dim")}
    config = getattr(tf, kind)(**{**sizes, **more})
    base = tf.AutoModelForCausalLM.from_config(config).eval()
    assert type(base).__name__ == name
    with torch.no_grad():
        for parameter in base.parameters():
            # norms and biases as random as the rest, so that no factor is left untested
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    chosen = {
        key: ReftConfig(task_type="CAUSAL_LM", init="random", positions=positions, r=2)
        for key, positions in POSITIONS.items()
    }
    chosen["one-layer"] = ReftConfig(
        task_type="CAUSAL_LM", init="random", positions="l1", layers=[1], intervention="red"
    )
    world = make_world(tmp_path, base, chosen)
    requests = mixed_requests(world.names, count=30)
    wanted = world.answers(requests)
    assert len({tuple(answer) for answer in wanted}) > len(requests) / 3
    llm = engine(world)
    try:
        found = ask(llm, world, requests)
    finally:
        close(llm)
    assert [(len(p), n) for (p, n), a, b in zip(requests, found, wanted, strict=True) if a != b] == []
