"""When frozen-prefix reuse is left aside, with the line that says why, and that no stale entry is ever replayed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    JambaConfig,
    MambaConfig,
    MambaForCausalLM,
    Qwen3NextConfig,
    TrainerCallback,
    default_data_collator,
)

from reftune import ReftConfig
from reftune.training import ReftTrainer
from tests.models import VOCAB, random_tokens, tiny_model
from tests.training.fast_models import (
    adapted,
    assert_same,
    course_of,
    off_lines,
    on_lines,
    plain_course,
    ragged,
    trainer_of,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")

ROWS = ragged()

# --- not exact, or of no use: one line, and the plain losses ---------------------------------------------------------


def on_a_lora() -> Any:
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    base = get_peft_model(tiny_model("llama", layers=3), lora).requires_grad_(False)
    return adapted(base=base)


def mamba() -> Any:
    torch.manual_seed(1)
    config = MambaConfig(hidden_size=32, num_hidden_layers=3, vocab_size=VOCAB, state_size=8)
    return adapted(base=MambaForCausalLM(config).eval())


def hybrid(kind: str) -> Any:
    """Attention in some layers, a recurrence in others."""
    own = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": VOCAB, "pad_token_id": 0}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    if kind == "jamba":
        layout = {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}
        config: Any = JambaConfig(**own, **heads, **layout, num_experts=2, num_experts_per_tok=1)
    else:
        experts = {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
        linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
        linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
        config = Qwen3NextConfig(**own, **heads, **experts, **linear, head_dim=8, num_experts_per_tok=2)
    torch.manual_seed(1)
    return adapted(base=AutoModelForCausalLM.from_config(config).eval())


EXACT_FALLBACKS: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "trained head": (
        lambda: adapted(modules_to_save=["lm_head"]),
        {},
        "lm_head.modules_to_save.default.weight' of the base model is trained",
    ),
    "first token of the first block": (
        lambda: adapted(layers=[0], positions="f1", component="attention_output"),
        {},
        "position 0 of layer 0 is edited, so that nothing is constant",
    ),
    "beside LoRA": (on_a_lora, {}, "another adapter is active (Linear 'default')"),
    "gradient checkpointing": (
        adapted,
        {"gradient_checkpointing": True},
        "gradient checkpointing is on, which allows no cache",
    ),
    "whole prompts in the first block": (
        lambda: adapted(layers=[0], positions="prompt"),
        {},
        "it would not pay (",
    ),
    # it takes the cache or does not, by the version of transformers
    "a state space model": (mamba, {}, "of keys and values"),
    "Jamba": (lambda: hybrid("jamba"), {}, "JambaForCausalLM takes no plain cache of keys and values"),
    "Qwen3-Next": (lambda: hybrid("qwen3_next"), {}, "Qwen3NextForCausalLM takes no plain cache of keys and values"),
}


@pytest.mark.filterwarnings("ignore:.*use_reentrant.*")
@pytest.mark.parametrize("name", EXACT_FALLBACKS)
def test_falls_back_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    make, arguments, reason = EXACT_FALLBACKS[name]
    expected = plain_course(make(), ROWS, steps=3)
    found = course_of(trainer_of(tmp_path, make(), ROWS, max_steps=3, **arguments))
    assert_same(found, expected)
    said = off_lines(caplog)
    assert len(said) == 1 and reason in said[0]
    assert not on_lines(caplog)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("llama", "attention_dropout"),
        ("gpt_neox", "hidden_dropout"),
        ("opt", "dropout"),
        ("phi", "embd_pdrop"),
        ("mixtral", "router_jitter_noise"),
    ],
)
def test_a_base_that_is_random_in_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, field: str
) -> None:
    base = tiny_model(kind, layers=3, overrides={field: 0.25})
    trainer_of(tmp_path, adapted(base=base), ROWS, max_steps=1).train()
    assert off_lines(caplog) == [f"the base model is random in training ({field} 0.25)"]


def test_a_field_of_a_head_that_is_not_there_is_no_dropout(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = tiny_model("gpt_neox", layers=3, overrides={"classifier_dropout": 0.1})
    trainer_of(tmp_path, adapted(base=base), ROWS, max_steps=2).train()
    assert on_lines(caplog) and not off_lines(caplog)


def test_dropout_of_the_adapter_is_no_obstacle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer_of(tmp_path, adapted(dropout=0.5), ROWS, max_steps=2).train()
    assert on_lines(caplog) and not off_lines(caplog)


def test_rows_that_are_not_a_list(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stream = Dataset.from_list(ROWS).to_iterable_dataset()
    arguments: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": len(ROWS)}
    found = course_of(trainer_of(tmp_path, adapted(), stream, **arguments))
    assert_same(found, plain_course(adapted(), ROWS, steps=2))
    assert off_lines(caplog) == ["the data are not a list of rows with tokens, labels and prompt lengths only"]


def test_noise_in_the_embeddings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # so little of it that no comparison would notice
    trainer_of(tmp_path, adapted(), ROWS, max_steps=2, neftune_noise_alpha=1e-3).train()
    assert off_lines(caplog) == ["neftune_noise_alpha makes the embeddings random"]


def test_packing_has_no_reuse(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer_of(tmp_path, adapted(), ROWS, max_steps=2, more={"packing": True}).train()
    assert off_lines(caplog) == ["packing=True lays rows end to end"]


def mean_of_squares(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return outputs["logits"].square().mean()


@pytest.mark.parametrize("kind", ["label_smoothing", "compute_loss_func"])
def test_another_loss_is_left_to_trainer(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    arguments = {"label_smoothing_factor": 0.2} if kind == "label_smoothing" else {}
    found = []
    for plain in (True, False):
        trainer = trainer_of(tmp_path, adapted(), ROWS, plain=plain, max_steps=2, **arguments)
        if kind == "compute_loss_func":
            trainer.compute_loss_func = mean_of_squares
        found.append(course_of(trainer))
    assert_same(found[1], found[0])
    assert found[0].losses != plain_course(adapted(), ROWS, steps=2).losses
    assert off_lines(caplog) == ["the loss is not the plain one of a causal language model"]


def labelled_tokens() -> Dataset:
    ids = random_tokens(6, 7).tolist()
    return Dataset.from_list(
        [{"input_ids": row, "attention_mask": [1] * 7, "labels": i % 3} for i, row in enumerate(ids)]
    )


def translated_tokens() -> Dataset:
    sources, targets = random_tokens(6, 7).tolist(), random_tokens(6, 4, seed=1).tolist()
    rows = zip(sources, targets, strict=True)
    return Dataset.from_list([{"input_ids": s, "attention_mask": [1] * 7, "labels": t} for s, t in rows])


@pytest.mark.parametrize(
    ("kind", "task", "data"), [("bert", "SEQ_CLS", labelled_tokens), ("t5", "SEQ_2_SEQ_LM", translated_tokens)]
)
def test_other_models_are_trained_as_by_trainer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, task: str, data: Callable[[], Dataset]
) -> None:
    found = []
    for plain in (True, False):
        model = adapted(kind, task_type=task, positions="f1+l1")
        arguments = {"max_steps": 2, "collator": default_data_collator}
        found.append(course_of(trainer_of(tmp_path, model, data(), plain=plain, **arguments)))
    assert_same(found[1], found[0])
    assert not on_lines(caplog) and not off_lines(caplog)


@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_models_without_reft_are_trained_as_by_trainer(tmp_path: Path, kind: str) -> None:
    found = []
    for plain in (True, False):
        model = tiny_model("llama", layers=2)
        if kind == "lora":
            lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
            torch.manual_seed(1)
            model = get_peft_model(model, lora)
        found.append(course_of(trainer_of(tmp_path, model, ROWS, plain=plain, max_steps=2)))
    assert_same(found[1], found[0])


# --- never stale -----------------------------------------------------------------------------------------------------


class _After(TrainerCallback):
    """Does something to the model after the first step."""

    def __init__(self, change: Callable[[Any], None]) -> None:
        self.change = change

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.change(model)


def change_data(model: Any) -> None:
    """As PEFT merges adapters: torch does not count it as a change."""
    weight = model.get_base_model().model.layers[0].mlp.down_proj.weight
    count = weight._version
    weight.data.mul_(3)
    assert weight._version == count


@torch.no_grad()
def change_a_weight(model: Any) -> None:
    model.get_base_model().model.layers[0].mlp.down_proj.weight.mul_(3)


def replace_a_weight(model: Any) -> None:
    projection = model.get_base_model().model.layers[0].mlp.down_proj
    projection.weight = nn.Parameter(3 * projection.weight.detach(), requires_grad=False)


def load_a_weight(model: Any) -> None:
    base = model.get_base_model()
    name = "model.layers.0.mlp.down_proj.weight"
    base.load_state_dict({name: 3 * base.state_dict()[name]}, strict=False)


def change_the_adapter(model: Any) -> None:
    model.set_adapter("other")


def two_adapters() -> Any:
    model = adapted(layers=[2], positions="l1")
    model.add_adapter("other", ReftConfig(r=3, layers=[1], positions="f1+l2", init="random", task_type="CAUSAL_LM"))
    model.set_adapter("default")
    return model


def change_the_positions(model: Any) -> None:
    """The same name, layers and shapes, edited elsewhere."""
    model.set_adapter("other")
    model.delete_adapter("default")
    torch.manual_seed(7)
    config = ReftConfig(r=2, layers=[2], positions="l2", init="random", task_type="CAUSAL_LM")
    model.add_adapter("default", config)
    model.set_adapter("default")


def change_part_of_data(model: Any) -> None:
    model.get_base_model().model.layers[0].mlp.down_proj.weight.data[0].mul_(30)


def change_the_layers(model: Any) -> None:
    """The same name, positions and shapes, edited below what was replayed."""
    model.set_adapter("other")
    model.delete_adapter("default")
    torch.manual_seed(7)
    config = ReftConfig(r=2, layers=[1], positions="l1", init="random", task_type="CAUSAL_LM")
    model.add_adapter("default", config)
    model.set_adapter("default")


WEIGHTS = [change_a_weight, change_data, replace_a_weight, load_a_weight]
CHANGES = [*WEIGHTS, change_part_of_data, change_the_adapter, change_the_positions, change_the_layers]


def evaluated(trainer: ReftTrainer) -> float:
    return trainer.evaluate()["eval_loss"]


def predicted(trainer: ReftTrainer) -> float:
    return trainer.predict(trainer.eval_dataset).metrics["test_loss"]


@pytest.mark.parametrize("measure", [evaluated, predicted])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_training_and_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Any], None], measure: Callable[[Any], float]
) -> None:
    found = []
    for reuse in ("auto", "off"):
        model = two_adapters()
        arguments = {"max_steps": 3, "prediction_loss_only": True, "more": {"reuse": reuse}}
        trainer = trainer_of(tmp_path, model, ROWS, evaluation=ROWS, **arguments)
        trainer.train()
        before = measure(trainer)
        change(model)
        found.append((before, measure(trainer)))
    assert on_lines(caplog)
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert abs(found[1][0] - found[1][1]) > 1e-4


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_two_trainings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Any], None]
) -> None:
    found = []
    for reuse in ("auto", "off"):
        model = two_adapters()
        first = trainer_of(tmp_path, model, ROWS, max_steps=3, more={"reuse": reuse})
        first.train()
        change(model)
        first.optimizer = first.lr_scheduler = None
        found.append(course_of(first))
    assert len(on_lines(caplog)) == 2
    assert_same(found[0], found[1])


@pytest.mark.parametrize("change", [*WEIGHTS, change_the_adapter])
def test_a_change_in_the_midst_of_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Any], None]
) -> None:
    found = []
    for reuse in ("auto", "off"):
        arguments = {"max_steps": 3, "callbacks": [_After(change)], "more": {"reuse": reuse}}
        found.append(course_of(trainer_of(tmp_path, two_adapters(), ROWS, **arguments)))
    assert_same(found[0], found[1])
    assert found[0].losses[1:] != pytest.approx(plain_course(two_adapters(), ROWS, steps=3).losses[1:], rel=1e-4)
    assert off_lines(caplog) == ["the base model or its active adapters were changed in the meantime"]
