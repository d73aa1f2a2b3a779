"""The loss of labelled tokens only, in chunks: the model's own, without logits that nobody asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import reftune.training.loss as loss_module
from reftune.data import ReftCollator
from reftune.training.loss import ResponseLoss, chunked_cross_entropy, head_as
from reftune.training.rows import batch_of, rows_of
from tests.models import CAUSAL, HIDDEN, VOCAB, tiny_model
from tests.training.fast_models import adapted, assert_same, course_of, plain_course, ragged, trainer_of
from tests.training.text_models import word_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")

ROWS = ragged()
FALLBACK = "logits of all tokens are computed: "
LABELLED = 11


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records if record.name == "reftune"]
    return [message for message in messages if message.startswith(FALLBACK)]


# --- chunks ----------------------------------------------------------------------------------------------------------


def hidden_and_targets(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, nn.Linear]:
    torch.manual_seed(0)
    head = nn.Linear(HIDDEN, VOCAB).to(dtype).requires_grad_(False)
    hidden = torch.randn(LABELLED, HIDDEN).to(dtype).requires_grad_()
    return hidden, torch.randint(VOCAB, (LABELLED,)), head


@pytest.mark.parametrize("rows", [1, 3, LABELLED, LABELLED + 5])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_chunks_sum_to_the_cross_entropy(rows: int, trained: bool, overwrite: bool) -> None:
    hidden, targets, head = hidden_and_targets()
    head.requires_grad_(trained)
    loss = chunked_cross_entropy(hidden, targets, head, rows=rows, trained=trained, overwrite=overwrite)
    (0.25 * loss).backward()

    wide, wide_head = hidden.detach().double().requires_grad_(), nn.Linear(HIDDEN, VOCAB).double()
    wide_head.load_state_dict(head.state_dict())
    reference = F.cross_entropy(wide_head(wide), targets, reduction="sum")
    (0.25 * reference).backward()
    # rounding of float32: eps is 1.2e-7, sums have some hundred terms
    torch.testing.assert_close(loss.double(), reference, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(hidden.grad.double(), wide.grad, rtol=1e-5, atol=1e-7)
    if trained:
        for p, expected in zip(head.parameters(), wide_head.parameters(), strict=True):
            torch.testing.assert_close(p.grad.double(), expected.grad, rtol=1e-5, atol=1e-6)
    else:
        assert all(p.grad is None for p in head.parameters())


@pytest.mark.parametrize("trained", [False, True])
def test_bfloat16_is_as_exact_as_the_loss_of_transformers(trained: bool) -> None:
    """Which is the cross-entropy in float32 of logits in bfloat16."""
    hidden, targets, head = hidden_and_targets(torch.bfloat16)
    head.requires_grad_(trained)
    plain = hidden.detach().requires_grad_()
    reference = F.cross_entropy(head(plain).float(), targets, reduction="sum")
    reference.backward()
    head.zero_grad()
    loss = chunked_cross_entropy(hidden, targets, head, rows=3, trained=trained)
    loss.backward()
    assert loss.dtype == torch.float32 and hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
    # float32 sums in another order
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=0.0)
    # bfloat16 has 8 bits: one unit in the last place
    torch.testing.assert_close(hidden.grad, plain.grad, rtol=2**-7, atol=2**-9)


def test_a_cap_behind_the_head_has_its_part_in_the_gradient() -> None:
    hidden, targets, head = hidden_and_targets()

    def capped(h: Tensor) -> Tensor:
        return torch.tanh(head(h) / 0.5) * 0.5

    loss = chunked_cross_entropy(hidden, targets, capped, rows=4)
    loss.backward()
    plain = hidden.detach().requires_grad_()
    reference = F.cross_entropy(capped(plain), targets, reduction="sum")
    reference.backward()
    torch.testing.assert_close(loss, reference, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(hidden.grad, plain.grad, rtol=1e-5, atol=1e-7)


def test_huge_logits_and_a_certain_token() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-3e4, 0.0, 3e4]], requires_grad=True)
    loss = chunked_cross_entropy(logits, torch.tensor([0, 0]), lambda h: h, rows=1)
    loss.backward()
    assert loss.item() == 6e4
    assert logits.grad is not None and logits.grad.tolist() == [[0.0, 0.0, 0.0], [-1.0, 0.0, 1.0]]


def test_no_gradient_is_computed_where_none_is_wanted() -> None:
    hidden, targets, head = hidden_and_targets()
    seen: list[bool] = []

    def logits(h: Tensor) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return head(h)

    with torch.no_grad():
        loss = chunked_cross_entropy(1 * hidden, targets, logits, rows=4)
    assert not loss.requires_grad and seen == [False] * 3


class _Logits(TorchDispatchMode):
    """The most rows of a tensor whose last dimension is the vocabulary."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            # the transposed weight of the head has this form, too
            if isinstance(tensor, Tensor) and tensor.shape[-1:] == (VOCAB,) and tensor.shape != (HIDDEN, VOCAB):
                self.rows = max(self.rows, tensor.shape[:-1].numel())
        return out


@pytest.mark.parametrize("trained", [False, True])
def test_all_logits_never_exist_at_once(monkeypatch: pytest.MonkeyPatch, trained: bool) -> None:
    monkeypatch.setitem(loss_module.CHUNK, "cpu", 3 * VOCAB)
    model = adapted(positions="f1+l1", modules_to_save=["lm_head"] if trained else None)
    collated = ReftCollator(word_tokenizer())(ROWS)
    rows = rows_of(collated)
    assert rows is not None
    batch = batch_of(rows, device=torch.device("cpu"))
    labelled = len(batch.targets)
    assert labelled > 3
    loss = ResponseLoss(model.get_base_model())
    loss.prepare(model, collated)
    assert loss.post is not None
    with _Logits() as seen:
        (loss(model, batch) / labelled).backward()
    assert seen.rows == 3
    with _Logits() as seen:
        model(**collated).loss.backward()
    assert seen.rows >= collated["labels"].numel()


# --- models ----------------------------------------------------------------------------------------------------------


def of_config(config: Any) -> Any:
    torch.manual_seed(1)
    return tf.AutoModelForCausalLM.from_config(config).eval()


def sizes(**more: Any) -> dict[str, Any]:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    tokens = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    own = {"hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_hidden_layers": 3, "initializer_range": 0.1}
    return {**heads, **tokens, **own, **more}


# caps and factors so strong that to leave them out would move the loss by far
BEHIND_THE_HEAD: dict[str, Any] = {
    "gemma2": lambda: of_config(tf.Gemma2Config(**sizes(head_dim=8, final_logit_softcapping=0.5))),
    "gemma3": lambda: tiny_model("gemma3", layers=3, overrides={"final_logit_softcapping": 0.5}),
    "cohere": lambda: of_config(tf.CohereConfig(**sizes(logit_scale=0.2))),
    "granite": lambda: of_config(tf.GraniteConfig(**sizes(logits_scaling=7.0))),
    "plain": lambda: tiny_model("llama", layers=3),
}


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", BEHIND_THE_HEAD)
def test_caps_and_scales(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, packing: bool) -> None:
    def model() -> Any:
        return adapted(base=BEHIND_THE_HEAD[kind](), positions="f1+l1")

    expected = plain_course(model(), ROWS, steps=2)
    more = {"reuse": "off", "packing": packing}
    found = course_of(trainer_of(tmp_path, model(), ROWS, max_steps=2, more=more))
    assert_same(found, expected)
    assert not warned(caplog)


def shortened(folder: Path, model: Any) -> int:
    """The most rows of logits at a time in the second step of two."""
    trainer = trainer_of(folder, model, ROWS, max_steps=2, more={"reuse": "off"})
    own, seen = trainer.training_step, []

    def step(*args: Any, **kwargs: Any) -> Tensor:
        with _Logits() as logits:
            loss = own(*args, **kwargs)
        seen.append(logits.rows)
        return loss

    trainer.training_step = step
    trainer.train()
    return seen[1]


@pytest.mark.parametrize("kind", CAUSAL)
def test_only_labelled_tokens_have_logits(tmp_path: Path, kind: str) -> None:
    labelled = sum(label != -100 for row in ROWS for label in row["labels"])
    assert 0 < shortened(tmp_path, adapted(kind)) <= labelled


def test_a_trained_head_gets_its_gradient(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def model() -> Any:
        return adapted(modules_to_save=["lm_head"])

    expected = plain_course(model(), ROWS, steps=2)
    heads = [name for name in expected.gradients[0] if "lm_head" in name]
    assert len(heads) == 1 and expected.gradients[0][heads[0]].abs().sum() > 0
    assert_same(course_of(trainer_of(tmp_path, model(), ROWS, max_steps=2)), expected)
    assert not warned(caplog)


def test_dropout_of_the_adapter_does_not_look_like_another_loss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = adapted(dropout=0.5)
    assert shortened(tmp_path, model) > 0
    assert not warned(caplog)
    assert model.training


class _Odd(tf.LlamaForCausalLM):
    """Adds to the loss what its logits do not say."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        if out.loss is not None:
            out.loss = out.loss + 0.01 * out.logits.square().mean()
        return out


class _Shifted(tf.LlamaForCausalLM):
    """Does something to its logits that no field of a configuration tells."""

    def forward(self, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = 2 * out.logits + 1
        if labels is not None:
            out.loss = self.loss_function(logits=out.logits, labels=labels, vocab_size=VOCAB)
        return out


@pytest.mark.parametrize("odd", [_Odd, _Shifted])
def test_another_loss_falls_back_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture, odd: Any) -> None:
    def model() -> Any:
        torch.manual_seed(1)
        base = odd(tf.LlamaConfig(**sizes()))
        base.loss_type = "ForCausalLM"
        return adapted(base=base.eval())

    expected = plain_course(model(), ROWS, steps=2)
    # a forward of *args and **kwargs does not tell Trainer which columns it takes
    trainer = trainer_of(tmp_path, model(), ROWS, max_steps=2, remove_unused_columns=False)
    assert_same(course_of(trainer), expected)
    name = odd.__name__
    assert warned(caplog) == [f"{FALLBACK}the loss of {name} is not a cross-entropy of its output embeddings"]


def weighted_loss(
    logits: Tensor, labels: Tensor, vocab_size: int, num_items_in_batch: Any = None, **more: Any
) -> Tensor:
    """Another one only for a token that the first rows do not have."""
    weights = torch.ones(VOCAB)
    weights[ROWS[3]["input_ids"][-1]] = 5.0
    wanted = labels[:, 1:].flatten()
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted, weight=weights, reduction="sum")
    return total / ((wanted != -100).sum() if num_items_in_batch is None else num_items_in_batch)


def test_a_loss_function_that_was_set_on_the_model(tmp_path: Path) -> None:
    def model() -> Any:
        base = tiny_model("llama", layers=3)
        base.loss_function = weighted_loss
        return adapted(base=base)

    expected = plain_course(model(), ROWS, steps=2)
    assert expected.losses != pytest.approx(plain_course(adapted(), ROWS, steps=2).losses, rel=1e-2)
    assert_same(course_of(trainer_of(tmp_path, model(), ROWS, max_steps=2)), expected)


def test_a_loss_that_is_given_between_two_evaluations(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, adapted(), ROWS, evaluation=ROWS)
    before = trainer.evaluate()["eval_loss"]
    trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: outputs["logits"].mean() * 0 + 7
    assert trainer.evaluate()["eval_loss"] == 7
    trainer.compute_loss_func = None
    assert trainer.evaluate()["eval_loss"] == before


def test_autocast_does_not_look_like_another_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # some of these seeds differ by more than float32 could
    for seed in range(4):
        trainer_of(tmp_path, adapted(), ragged(10, seed=seed), max_steps=1, bf16=True).train()
    assert not warned(caplog)


def test_a_head_is_put_back_whatever_happens() -> None:
    head = nn.Linear(2, 3)
    hidden = torch.ones(1, 2)
    before = head(hidden)
    with pytest.raises(KeyboardInterrupt), head_as(head, lambda own, h: own(h) + 1):
        assert torch.equal(head(hidden), before + 1)
        with head_as(head, lambda own, h: own(h) * 2):
            assert torch.equal(head(hidden), (before + 1) * 2)
        assert torch.equal(head(hidden), before + 1)
        raise KeyboardInterrupt
    assert torch.equal(head(hidden), before) and "forward" not in head.__dict__
