"""TRL's own trainers with `peft_config=ReftConfig(...)`: each improves its objective and leaves the base as it was.

Must not know: how interventions are applied.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("trl")

from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from reftune import PositionError, ReftConfig, ReftLayer
from reftune.data import ReftCollator
from tests.models import tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore:.*label_smoothing_factor.*deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*use_reentrant.*"),
]

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>")
WORDS = tuple(f"w{i}" for i in range(60))
LOG_2 = 0.6931472
# prompts of 3 to 6 words, so that batches are padded
PROMPTS = tuple(" ".join(WORDS[i : i + 3 + i % 4]) for i in range(8))
PAIRS = [{"prompt": prompt, "completion": f" w{30 + 2 * i} w{31 + 2 * i}"} for i, prompt in enumerate(PROMPTS)]
# with TRL's marks of what the assistant says
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<assistant> {% generation %}{{ m['content'] }} </s> "
    "{% endgeneration %}{% else %}<user> {{ m['content'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def word_tokenizer() -> Any:
    ids = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **names)


def base_model(**overrides: Any) -> Any:
    model = tiny_model("llama", overrides={"vocab_size": len(SPECIAL) + len(WORDS), **overrides})
    model.generation_config.eos_token_id = 2
    return model


def reft(**fields: Any) -> ReftConfig:
    return ReftConfig(**{"r": 4, "positions": "f2+l2", "task_type": "CAUSAL_LM", **fields})


def arguments(folder: Path, **more: Any) -> dict[str, Any]:
    # no bf16, which TRL has by default: the assertions compare bits
    common = {"report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no", "disable_tqdm": True}
    schedule = {"learning_rate": 2e-2, "lr_scheduler_type": "constant", "logging_steps": 1}
    return {"output_dir": str(folder), "per_device_train_batch_size": 8, **common, **schedule, **more}


def logged(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_base_unchanged(base: nn.Module, before: dict[str, Tensor]) -> None:
    after = dict(base.named_parameters())
    assert all(torch.equal(parameter, after[name]) for name, parameter in before.items())


def sft_trainer(folder: Path, base: Any, *, data: Any = None, collator: Any = None, **more: Any) -> Any:
    return SFTTrainer(
        model=base,
        args=SFTConfig(**arguments(folder, **more)),
        train_dataset=Dataset.from_list(PAIRS if data is None else data),
        processing_class=word_tokenizer(),
        peft_config=reft(),
        data_collator=collator,
    )


def sft_losses(folder: Path, **more: Any) -> list[float]:
    trainer = sft_trainer(folder, base_model(), **more)
    trainer.train()
    return logged(trainer, "loss")


@pytest.mark.slow
def test_sft_learns_saves_and_reloads(tmp_path: Path) -> None:
    base = base_model()
    before = copy_of(base)
    # TRL's default, gradient checkpointing, is on
    trainer = sft_trainer(tmp_path, base, max_steps=40, learning_rate=5e-2)
    trainer.train()
    losses = logged(trainer, "loss")
    assert losses[-1] < 0.6 * losses[0]
    assert_base_unchanged(base, before)

    trainer.save_model(str(tmp_path / "adapter"))
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files and not any("model-0" in f for f in files)
    assert "model.safetensors" not in files
    prompt = word_tokenizer()(PROMPTS[0], return_tensors="pt")
    options = {"max_new_tokens": 4, "do_sample": False}
    with torch.no_grad():
        expected = trainer.model.eval().generate(**prompt, **options)
        reloaded = PeftModel.from_pretrained(base_model(), str(tmp_path / "adapter")).eval()
    assert torch.equal(reloaded.generate(**prompt, **options), expected)


@pytest.mark.slow
def test_sft_ways_to_lay_out_a_batch_give_the_same_losses(tmp_path: Path) -> None:
    plain = sft_losses(tmp_path, max_steps=6, gradient_checkpointing=False)
    for more in (
        {},
        {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"padding_free": True, "max_length": None},
        {"packing": True, "max_length": 64},
        {"collator": ReftCollator(word_tokenizer())},
        {"collator": ReftCollator(word_tokenizer(), padding_side="left")},
    ):
        assert sft_losses(tmp_path, max_steps=6, **more) == pytest.approx(plain, abs=2e-6), more


@pytest.mark.slow
def test_sft_in_bfloat16_autocast_learns(tmp_path: Path) -> None:
    trainer = sft_trainer(tmp_path, base_model(), bf16=True, max_steps=25)
    trainer.train()
    losses = logged(trainer, "loss")
    assert losses[-1] < 0.7 * losses[0]
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}


def prompts_seen(trainer: Any) -> list[list[int]]:
    """Ends of the prompts of each forward call that computes gradients."""
    seen: list[list[int]] = []
    layer = next(module for module in trainer.model.modules() if isinstance(module, ReftLayer))

    def look(*_: Any) -> None:
        segments = layer.state.frame.segments
        if torch.is_grad_enabled() and trainer.model.training:
            seen.append((segments.end - segments.start).tolist())

    trainer.model.get_base_model().model.layers[0].register_forward_hook(look)
    trainer.train()
    return seen


LENGTHS = [len(prompt.split()) for prompt in PROMPTS]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["label_smoothing_factor", "compute_loss_func"])
def test_labels_taken_away_are_refused_and_the_collator_of_reftune_mends_it(tmp_path: Path, way: str) -> None:
    more: dict[str, Any] = {"max_steps": 1, "gradient_checkpointing": False}
    if way == "label_smoothing_factor":
        more[way] = 0.1

    def trainer(collator: Any) -> Any:
        made = sft_trainer(tmp_path, base_model(), collator=collator, **more)
        if way == "compute_loss_func":
            made.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: outputs.logits.square().mean()
        return made

    with pytest.raises(PositionError, match=r"(?s)ReftCollator.*label_smoothing_factor"):
        prompts_seen(trainer(None))
    mended = prompts_seen(trainer(ReftCollator(word_tokenizer())))
    assert sorted(mended[0]) == sorted(LENGTHS)


@pytest.mark.slow
def test_conversations_need_labels_on_the_assistant_only(tmp_path: Path) -> None:
    turns = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"].strip()}]
        for row in PAIRS
    ]
    data = [{"messages": messages} for messages in turns]
    trainer = sft_trainer(tmp_path, base_model(), data=data, assistant_only_loss=True, max_steps=1)
    # <user>, the words, <assistant>
    assert sorted(prompts_seen(trainer)[0]) == sorted(n + 2 for n in LENGTHS)
    whole = sft_trainer(tmp_path, base_model(), data=data, max_steps=1)
    with pytest.raises(PositionError, match=r"labels without a prompt.*-100"):
        whole.train()


def dpo_trainer(folder: Path, model: Any, *, config: Any, **more: Any) -> Any:
    rows = [{"prompt": prompt, "chosen": " w40 w41", "rejected": " w50 w51"} for prompt in PROMPTS]
    return DPOTrainer(
        model=model,
        args=DPOConfig(**arguments(folder, **more)),
        train_dataset=Dataset.from_list(rows),
        processing_class=word_tokenizer(),
        peft_config=config,
    )


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_dpo_takes_the_base_as_reference_and_learns(tmp_path: Path, checkpointing: bool) -> None:
    base = base_model()
    before = copy_of(base)
    trainer = dpo_trainer(tmp_path, base, config=reft(), max_steps=15, gradient_checkpointing=checkpointing)
    assert trainer.ref_model is None and list(trainer.model.peft_config) == ["default"]
    trainer.train()
    losses, margins = logged(trainer, "loss"), logged(trainer, "rewards/margins")
    assert losses[0] == pytest.approx(LOG_2, abs=1e-6) and margins[0] == 0
    assert losses[-1] < 0.5 and margins[-1] > 0.5
    assert logged(trainer, "rewards/accuracies")[-1] == 1
    assert_base_unchanged(base, before)


@pytest.mark.slow
def test_dpo_of_a_trained_adapter_takes_a_copy_of_it_as_reference(tmp_path: Path) -> None:
    first = dpo_trainer(tmp_path, base_model(), config=reft(), max_steps=4, gradient_checkpointing=False)
    first.train()
    trainer = dpo_trainer(tmp_path, first.model, config=None, max_steps=4, gradient_checkpointing=False)
    assert set(trainer.model.peft_config) == {"default", "ref"}
    reference = {name: p for name, p in copy_of(trainer.model).items() if ".ref" in name}
    assert reference
    trainer.train()
    losses = logged(trainer, "loss")
    assert losses[0] == pytest.approx(LOG_2, abs=1e-6) and losses[-1] < LOG_2 - 0.01
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(parameter, after[name]) for name, parameter in reference.items())

    trainer.save_model(str(tmp_path / "adapter"))
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, parameter in saved.items():
        inner, leaf = name.rsplit(".", 1)
        assert torch.equal(parameter, after[f"{inner}.default.{leaf}"])


def first_word_is_early(completions: list[str], **_: Any) -> list[float]:
    firsts = [next(iter(text.split()), "") for text in completions]
    return [float(word in WORDS[:30]) for word in firsts]


@pytest.mark.slow
def test_grpo_raises_the_reward(tmp_path: Path) -> None:
    # with larger weights it has something to choose: else all words are about as likely, whatever is edited
    base = base_model(initializer_range=0.3)
    before = copy_of(base)
    generation = {"num_generations": 8, "max_completion_length": 3, "beta": 0.01}
    schedule = {"max_steps": 20, "per_device_train_batch_size": 32, "learning_rate": 2e-2}
    trainer = GRPOTrainer(
        model=base,
        reward_funcs=first_word_is_early,
        args=GRPOConfig(**arguments(tmp_path, **generation, **schedule, gradient_checkpointing=False)),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        processing_class=word_tokenizer(),
        peft_config=reft(),
    )
    trainer.train()
    rewards = logged(trainer, "reward")
    # half of the words earn the reward, so it begins near one half
    assert rewards[0] < 0.7 and statistics.mean(rewards[-5:]) > 0.9
    divergence = logged(trainer, "kl")
    assert abs(divergence[0]) < 1e-6 < divergence[-1]
    assert_base_unchanged(base, before)
