"""The identity changes no bit; training, scoring and generation edit one and the same set of columns."""

from __future__ import annotations

from functools import cache
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import reftune
from reftune import ReftConfig
from tests.models import random_tokens, tiny_model

from .oracle import Spec, adapted_model, arguments, base_model, blocks, mask_of, pad

SPANS = [(p, s) for p in range(5) for s in range(5) if p + s]


@cache
def base_logits(total: int, side: str) -> Tensor:
    with torch.no_grad():
        return tiny_model("llama", layers=2)(**identity_batch(total, side)).logits


def identity_batch(total: int, side: str) -> dict[str, Tensor]:
    tokens = [tuple(random_tokens(1, n, seed=n)[0].tolist()) for n in (total, max(1, total - 3))]
    return arguments(pad(tokens, side), mask_of(tokens, side))


@pytest.mark.parametrize(("p", "s"), SPANS)
def test_identity_is_bit_equal(p: int, s: int) -> None:
    config = ReftConfig(r=2, positions=Spec("span", p, s).text, tie="none", task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model("llama", layers=2), config).eval()
    for total in range(1, 10):
        for side in ("left", "right"):
            with torch.no_grad():
                found = model(**identity_batch(total, side)).logits
            assert torch.equal(found, base_logits(total, side))


@pytest.mark.parametrize("positions", ["prompt", "all", "response"])
def test_identity_of_a_scope_is_bit_equal(positions: str) -> None:
    model = peft.get_peft_model(tiny_model("llama", layers=2), ReftConfig(positions=positions)).eval()
    for total in range(1, 10):
        with torch.no_grad():
            found = model(**identity_batch(total, "left"), prompt_length=torch.tensor([1, 1])).logits
        assert torch.equal(found, base_logits(total, "left"))


def first_block_states(model: Any, call: Any) -> Tensor:
    """What the first block passes on, over all forward calls within `call`."""
    seen: list[Tensor] = []

    def record(module: nn.Module, args: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).detach())

    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    handle = blocks(base)[0].register_forward_hook(record)
    try:
        call()
    finally:
        handle.remove()
    return torch.cat(seen, 1)


class Columns:
    """Columns that the adapter edits in the first block, in each way to call the model."""

    def __init__(self, spec: Spec, prompts: list[tuple[int, ...]], response: Tensor, side: str) -> None:
        self.model = adapted_model("llama", spec)
        self.width = max(map(len, prompts))
        self.ids = torch.cat([pad(prompts, side), response], 1)
        self.mask = torch.cat([mask_of(prompts, side), torch.ones_like(response)], 1)
        self.lengths = torch.tensor([len(prompt) for prompt in prompts])
        self.batch = arguments(self.ids, self.mask)

    def of(self, call: Any) -> set[tuple[int, int]]:
        with torch.no_grad():
            plain = first_block_states(base_model("llama"), lambda: base_model("llama")(**self.batch))
        found = first_block_states(self.model, call)
        moved = (found - plain[:, : found.shape[1]]).abs().amax(-1) > 1e-6
        return {(int(b), int(t)) for b, t in moved.nonzero() if self.mask[b, t]}

    def training(self) -> set[tuple[int, int]]:
        labels = self.ids.clone()
        labels[:, : self.width] = -100
        return self.of(lambda: self.model(**self.batch, labels=labels).loss.backward())

    def scoring(self) -> set[tuple[int, int]]:
        return self.of(lambda: self.model(**self.batch, prompt_length=self.lengths, logits_to_keep=3))

    def generation(self) -> set[tuple[int, int]]:
        return self.of(self._generate)

    def _generate(self) -> None:
        # the answer is forced, so that the states are those of the same text
        def forced(row: int, tokens: Tensor) -> list[int]:
            return [int(self.ids[row, tokens.numel()])]

        new = self.ids.shape[1] - self.width
        prompt, mask = self.ids[:, : self.width], self.mask[:, : self.width]
        self.model.generate(
            input_ids=prompt,
            attention_mask=mask,
            max_new_tokens=new,
            do_sample=False,
            prefix_allowed_tokens_fn=forced,
        )


@pytest.mark.parametrize("spec", [Spec("span", p, s) for p, s in ((0, 1), (1, 0), (2, 2), (4, 4))], ids=str)
@pytest.mark.parametrize("lengths", [(5, 8), (1, 3), (7, 7)])
def test_training_scoring_and_generation_edit_the_same_columns(spec: Spec, lengths: tuple[int, ...]) -> None:
    prompts = [tuple(random_tokens(1, n, seed=n)[0].tolist()) for n in lengths]
    calls = Columns(spec, prompts, random_tokens(2, 3, seed=9), "left")
    width = max(lengths)
    expected = {(b, width - n + t) for b, n in enumerate(lengths) for t in spec.units(n, n + 3)}
    assert calls.training() == expected
    assert calls.scoring() == expected
    assert calls.generation() == expected
    if spec.s:
        assert all((b, width - 1) in expected for b in range(2)), "the last prompt token is before the first answer"


@pytest.mark.parametrize("scope", ["prompt", "all", "response"])
def test_scopes_are_the_same_in_training_scoring_and_generation(scope: str) -> None:
    prompts = [tuple(random_tokens(1, n, seed=n)[0].tolist()) for n in (2, 6)]
    calls = Columns(Spec(scope), prompts, random_tokens(2, 3, seed=9), "left")
    expected = {(b, 6 - n + t) for b, n in enumerate((2, 6)) for t in Spec(scope).units(n, n + 3)}
    assert calls.training() == calls.scoring() == expected
    # the last token is generated, but no call has it as input
    assert calls.generation() == {(b, t) for b, t in expected if t < 6 + 2}


@pytest.mark.parametrize("spec", [Spec("span", 2, 2, "none"), Spec("prompt"), Spec("all")], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_equals_one_by_one(spec: Spec, side: str) -> None:
    model = adapted_model("llama", spec)
    tokens = [tuple(random_tokens(1, n, seed=n)[0].tolist()) for n in (1, 4, 9)]
    mask = mask_of(tokens, side)
    with torch.no_grad():
        together = model(**arguments(pad(tokens, side), mask)).logits
        alone = [model(input_ids=torch.tensor([row])).logits[0] for row in tokens]
    for i, expected in enumerate(alone):
        assert (together[i][mask[i].bool()] - expected).abs().max() < 1e-9


def phi_calls(model: Any, call: Any) -> int:
    """How often some Φ is evaluated within `call`."""
    count = 0

    def add(*_: Any) -> None:
        nonlocal count
        count += 1

    phis = [m for m in model.modules() if isinstance(m, reftune.Intervention)]
    handles = [phi.register_forward_hook(add) for phi in phis]
    try:
        with torch.no_grad():
            call()
    finally:
        for handle in handles:
            handle.remove()
    return count


@pytest.mark.parametrize("spec", [Spec("span", 2, 2, "group"), Spec("span", 0, 1), Spec("prompt")], ids=str)
@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"cache_implementation": "static"}, {"prefill_chunk_size": 5}])
def test_decode_steps_evaluate_no_intervention(spec: Spec, how: dict[str, Any]) -> None:
    model = adapted_model("llama", spec)
    ids = random_tokens(2, 5)
    once = phi_calls(model, lambda: model(input_ids=ids))
    assert once == 2 * (2 if spec.tie == "group" else 1)
    answer = {"max_new_tokens": 4, "do_sample": False, "disable_compile": True, **how}
    assert phi_calls(model, lambda: model.generate(input_ids=ids, **answer)) == once


@pytest.mark.parametrize("known", [False, True])
def test_decode_loop_of_the_user_evaluates_no_intervention(known: bool) -> None:
    model = adapted_model("llama", Spec("span", 2, 2))
    ids = random_tokens(2, 5)
    more = {"prompt_length": torch.tensor([5, 5])} if known else {}
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True, **more).past_key_values
    assert phi_calls(model, lambda: model(input_ids=ids[:, :1], past_key_values=cache, **more)) == 0
