"""The tiny models themselves: every kind runs, is deterministic, and has what other tests rely on."""

from __future__ import annotations

import pytest
import torch

from tests.models import CAUSAL, ENCODER, HIDDEN, KINDS, PAD, SEQ2SEQ, VOCAB, random_tokens, tiny_model


def _logits(model, tokens: torch.Tensor) -> torch.Tensor:
    extra = {"decoder_input_ids": tokens[:, :3]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **extra).logits


@pytest.mark.parametrize("kind", KINDS)
def test_forward_is_seeded_and_without_dropout(kind: str) -> None:
    state = torch.random.get_rng_state()
    model, tokens = tiny_model(kind), random_tokens(2, 9)
    assert torch.equal(torch.random.get_rng_state(), state), "the global seed must be left alone"
    logits = _logits(model, tokens)
    assert not model.training
    assert logits.isfinite().all()
    assert logits.std() > 1e-3
    assert torch.equal(logits, _logits(tiny_model(kind), tokens))
    assert not torch.equal(logits, _logits(tiny_model(kind, seed=1), tokens))
    # In training mode too: so no dropout is left in any config.
    assert torch.equal(_logits(model.train(), tokens), logits)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes(kind: str) -> None:
    model, tokens = tiny_model(kind, layers=2), random_tokens(2, 9)
    assert sum(parameter.numel() for parameter in model.parameters()) < 150_000
    assert model.get_input_embeddings().weight.shape == (VOCAB, HIDDEN)
    expected = {"t5": (2, 3, VOCAB)}.get(kind, (2, 3) if kind in ENCODER else (2, 9, VOCAB))
    assert _logits(model, tokens).shape == expected
    assert tiny_model(kind, layers=2, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", CAUSAL + SEQ2SEQ)
def test_generation_runs_to_the_asked_length_and_the_cache_changes_nothing(kind: str) -> None:
    model, tokens = tiny_model(kind), random_tokens(2, 6)
    arguments = {"attention_mask": torch.ones_like(tokens), "do_sample": False, "max_new_tokens": 6}
    generated = model.generate(tokens, **arguments)
    assert generated.shape[1] == (7 if kind in SEQ2SEQ else 12)
    assert torch.equal(generated, model.generate(tokens, **arguments, use_cache=False))


@pytest.mark.parametrize("kind", CAUSAL)
def test_left_padding_is_invisible(kind: str) -> None:
    model, tokens = tiny_model(kind), random_tokens(1, 5)
    padded = torch.cat([torch.full((1, 3), PAD), tokens], dim=1)
    mask = (torch.arange(8) >= 3).long()[None]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        # Bloom takes its positions (ALiBi) from the mask alone.
        extra = {} if kind == "bloom" else {"position_ids": positions}
        logits = model(input_ids=padded, attention_mask=mask, **extra).logits[:, 3:]
        reference = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    # Float32 sums of a few dozen terms in another order.
    torch.testing.assert_close(logits, reference, rtol=1e-4, atol=1e-5)


def test_sliding_window_of_gemma3_matters() -> None:
    tokens = random_tokens(1, 12)
    narrow, wide = tiny_model("gemma3"), tiny_model("gemma3", overrides={"sliding_window": 64})
    difference = (_logits(narrow, tokens) - _logits(wide, tokens)).abs().amax(-1)[0]
    assert difference[:4].max() < 1e-5
    assert difference[4:].min() > 1e-3


def test_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'gptj'.*llama.*t5"):
        tiny_model("gptj")
