"""Two adapters side by side, against the states that transformers itself returns and formulas written out."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch import Tensor

from reftune import ReftConfig
from reftune.analysis.explain import Trace, cka, compared, same_answers, text_of, traced
from reftune.errors import ReftuneError
from tests.models import tiny_model
from tests.training.text_models import SPECIAL, WORDS, text_model, word_tokenizer

LAYERS = 4
PROMPTS = (("w1 w2 w3 w4 w5", " w9 w8 w7"), ("w6 w7", " w2 w3"))


def base() -> Any:
    return text_model(layers=LAYERS, dtype=torch.float64)


def reft(seed: int = 0, **fields: Any) -> Any:
    torch.manual_seed(seed)
    options = {"r": 2, "layers": [1, 2], "positions": "f1+l2", "init": "random", "task_type": "CAUSAL_LM", **fields}
    return get_peft_model(base(), ReftConfig(**options)).double()


def lora(model: Any = None, **fields: Any) -> Any:
    torch.manual_seed(5)
    options = {"r": 2, "target_modules": ["o_proj", "down_proj", "q_proj"], "task_type": "CAUSAL_LM", **fields}
    found = get_peft_model(model or base(), LoraConfig(**options)).double()
    for name, parameter in found.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return found


@lru_cache
def texts() -> list[Any]:
    return [text_of(reft(), word_tokenizer(), prompt, answer=answer) for prompt, answer in PROMPTS]


def states(model: Any, text: Any, **more: Any) -> list[Tensor]:
    with torch.no_grad():
        return model(torch.tensor([text.ids]), output_hidden_states=True, **more).hidden_states[1:]


def edits_of(model: Any, *, is_reft: bool) -> list[Tensor]:
    """By layer, of all tokens.  The last state has the final norm in it, so it is left out."""
    found: list[list[Tensor]] = [[] for _ in range(LAYERS - 1)]
    for text in texts():
        more = {"prompt_length": torch.tensor([text.prompt_length])} if is_reft else {}
        with_it, without = states(model.eval(), text, **more), states(base(), text)
        for layer in range(LAYERS - 1):
            found[layer].append((with_it[layer] - without[layer])[0])
    return [torch.cat(parts) for parts in found]


@pytest.mark.parametrize("kind", ["two seeds", "lora"])
def test_edits_layer_by_layer(kind: str) -> None:
    one, other = reft(), reft(1, layers=[2]) if kind == "two seeds" else lora()
    found = compared(traced(one, texts()), traced(other, texts()))
    pairs = zip(edits_of(one, is_reft=True), edits_of(other, is_reft=kind != "lora"), strict=True)
    streams = [torch.cat([h[0] for h in parts]) for parts in zip(*(states(base(), t) for t in texts()), strict=True)]
    for layer, (X, Y) in enumerate(pairs):
        row = found["layers"][layer]
        x, y = X.norm(dim=1), Y.norm(dim=1)
        either, both = (x > 0) | (y > 0), (x > 0) & (y > 0)
        assert row["tokens"] == int(either.sum())
        if not either.any():
            assert row["size"] is row["cosine"] is row["cka"] is None
            continue
        norms = streams[layer].norm(dim=1)
        assert row["size"] == pytest.approx(float((x / norms)[either].mean()))
        assert row["other_size"] == pytest.approx(float((y / norms)[either].mean()))
        if both.any():
            cosines = (X * Y).sum(1)[both] / (x * y)[both]
            assert row["cosine"] == pytest.approx(float(cosines.mean()))
            A, B = (Z[either] - Z[either].mean(0) for Z in (X, Y))
            wanted = (A.T @ B).norm() ** 2 / ((A.T @ A).norm() * (B.T @ B).norm())
            assert row["cka"] == pytest.approx(float(wanted))
        else:
            assert row["cosine"] is None
    assert [row["angles"] is not None for row in found["layers"]] == [
        layer in ((2,) if kind == "two seeds" else (1, 2)) for layer in range(LAYERS)
    ]


def test_next_tokens() -> None:
    one, other = reft(), lora()
    found = compared(traced(one, texts()), traced(other, texts()))["next"]
    sums = {"base": 0.0, "adapter": 0.0, "other": 0.0}
    same, kl, count = 0, 0.0, 0
    for text in texts():
        ids, n = torch.tensor([text.ids]), text.prompt_length
        with torch.no_grad():
            sets = [base()(ids), one.eval()(ids, prompt_length=torch.tensor([n])), other.eval()(ids)]
        logs = [out.logits[0, n - 1 : -1].log_softmax(-1) for out in sets]
        for name, log in zip(sums, logs, strict=True):
            sums[name] += sum(float(log[i, token]) for i, token in enumerate(text.ids[n:]))
        same += int((logs[1].argmax(-1) == logs[2].argmax(-1)).sum())
        kl += float((logs[1].exp() * (logs[1] - logs[2])).sum())
        count += len(text.ids) - n
    assert found["tokens"] == count and {name: found[name] for name in sums} == pytest.approx(sums)
    assert found["same_top"] == pytest.approx(same / count) and found["kl"] == pytest.approx(kl / count)


def rows(model: Any, layer: int) -> Any:
    name = f"layers.{layer}.hidden_edit.intervention_0.default"
    return next(module for path, module in model.named_modules() if path.endswith(name))


def test_angles_of_a_lora_that_writes_where_loreft_does() -> None:
    one, other = reft(), lora(target_modules=["down_proj", "q_proj"])
    B = other.get_base_model().model.layers[2].mlp.down_proj.lora_B["default"].weight
    with torch.no_grad():
        # one direction in common, the other by 30 degrees
        first, second = rows(one, 2).basis()
        off = torch.randn_like(first)
        off -= (off @ first) * first + (off @ second) * second
        off /= off.norm()
        B[:, 0] = 3 * first
        B[:, 1] = math.cos(math.pi / 6) * second + math.sin(math.pi / 6) * off + first
    traces = traced(one, texts()), traced(other, texts())
    found = compared(*traces)["layers"]
    assert found[2]["angles"] == pytest.approx([30, 0], abs=1e-4) and found[1]["angles"][0] > 31
    assert found[0]["angles"] is None
    assert len(traces[1].notes) == 1 and "q_proj" in traces[1].notes[0] and "down_proj" not in traces[1].notes[0]


def test_what_has_no_angles_is_named() -> None:
    def notes(model: Any) -> tuple[Trace, str]:
        found = traced(model, texts())
        return found, " ".join(found.notes)

    # norms behind attention and MLP: what these return does not enter the stream as it is
    gemma = tiny_model("gemma3", layers=2, dtype=torch.float64, overrides={"vocab_size": len(SPECIAL) + len(WORDS)})
    found, told = notes(lora(gemma))
    assert not found.spaces and "o_proj" in told and "down_proj" in told
    found, told = notes(lora(use_dora=True))
    assert not found.spaces and "DoRA" in told
    found, told = notes(reft(component="attention_head[1]", layers=[1]))
    assert not found.spaces and "attention_head[1]" in told
    found, told = notes(reft(intervention="red", layers=[1]))
    assert not found.spaces and "red" in told
    found, told = notes(lora(modules_to_save=["lm_head"]))
    assert "trains the modules lm_head" in told
    prefix = get_peft_model(base(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ReftuneError, match="PREFIX_TUNING, which puts tokens of its own"):
        traced(prefix, texts())
    with pytest.raises(ReftuneError, match="different texts"):
        compared(traced(reft(), texts()), traced(reft(), texts()[:1]))


def test_cka_knows_rotations_and_factors() -> None:
    torch.manual_seed(0)
    X = torch.randn(20, 6, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    assert cka(X, 3 * X @ Q + 1) == pytest.approx(1)
    assert (cka(X, torch.randn(20, 6, dtype=torch.float64)) or 1) < 0.6
    assert cka(X, torch.ones(20, 6)) is None


def test_answers() -> None:
    tokenizer = word_tokenizer()
    one = [text_of(reft(), tokenizer, "w1 w2", answer=answer) for answer in (" w3 w4 w5", " w6")]
    other = [text_of(reft(), tokenizer, "w1 w2", answer=answer) for answer in (" w3 w9", " w6")]
    found = same_answers(one, other)
    assert (found["prompts"], found["same"]) == (2, 1)
    assert [(row["same"], row["common"]) for row in found["rows"]] == [(False, 1), (True, 2)]
