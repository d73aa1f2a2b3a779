"""Trainers that do not say where prompts end: right, refused, or told; never trained at other tokens in silence."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast, Trainer, TrainingArguments

from reftune import PositionError, ReftConfig, ReftLayer
from reftune.data import ReftCollator
from tests.models import random_tokens
from tests.training.test_trl import (
    LENGTHS,
    PAIRS,
    PROMPTS,
    SPECIAL,
    TEMPLATE,
    arguments,
    base_model,
    prompts_seen,
    reft,
    sft_trainer,
    word_tokenizer,
)
from tests.tuner.adapters import adapted

LABELLED = {"input_ids": random_tokens(2, 6), "labels": random_tokens(2, 6)}
LABELLED["labels"][:, :3] = -100


@pytest.mark.parametrize("positions", ["l1", "f1+l1", "prompt", "response"])
def test_training_without_a_word_of_prompts_is_refused(positions: str) -> None:
    model = adapted(positions=positions).train()
    with pytest.raises(
        PositionError, match=r"(?s)neither labels nor prompt_length.*ReftCollator.*ORPO.*unknown_prompt"
    ) as e:
        model(input_ids=LABELLED["input_ids"])
    assert repr(positions) in str(e.value)
    model(input_ids=LABELLED["input_ids"], prompt_length=[3, 3]).logits.sum().backward()
    with torch.no_grad():
        model(input_ids=LABELLED["input_ids"])


def test_positions_that_need_no_end_are_trained_and_short_prompts_are_told_of() -> None:
    adapted(positions="all").train()(input_ids=LABELLED["input_ids"])
    with pytest.warns(UserWarning, match="every prompt has at least 2 tokens"):
        adapted(positions="f2").train()(input_ids=LABELLED["input_ids"])


def test_one_option_opens_it() -> None:
    model = adapted(positions="l1", unknown_prompt="whole").train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model(input_ids=LABELLED["input_ids"]).logits.sum().backward()
    with pytest.raises(ValueError, match=r"unknown_prompt='maybe'.*'refuse', 'whole'"):
        ReftConfig(unknown_prompt="maybe")


def test_whole_texts_of_a_classifier_are_prompts() -> None:
    model = adapted("bert", positions="l1").train()
    model(input_ids=LABELLED["input_ids"], labels=torch.tensor([0, 1])).loss.backward()


def test_the_same_tokens_without_their_labels_are_told_of() -> None:
    model = adapted(positions="l1")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model(input_ids=LABELLED["input_ids"])
        model(**LABELLED)
        model(input_ids=random_tokens(2, 6, seed=5))
        model(input_ids=LABELLED["input_ids"], prompt_length=[3, 3])
        with pytest.raises(UserWarning, match=r"came with labels just before.*compute_metrics"):
            model(input_ids=LABELLED["input_ids"])


def test_several_labelled_stretches_are_told_of() -> None:
    ids, labels = random_tokens(1, 8), random_tokens(1, 8)
    labels[0, [0, 1, 4, 5]] = -100
    with pytest.warns(UserWarning, match="several labelled stretches"):
        adapted(positions="l1")(input_ids=ids, labels=labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adapted(positions="f1")(input_ids=ids, labels=labels)
        # two texts in one row are no turns
        packed = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
        adapted(positions="l1")(input_ids=ids, labels=labels, position_ids=packed)


def test_texts_sampled_in_several_turns() -> None:
    ids = random_tokens(2, 9)
    labels = ids.clone()
    labels[:, :3] = -100
    mask = torch.ones(2, 6, dtype=torch.long)

    def sample(model: Any, columns: int, **more: Any) -> None:
        with torch.no_grad():
            model.generate(input_ids=ids[:, :columns], attention_mask=mask[:, :columns], max_new_tokens=2, **more)

    model = adapted(positions="l1").train()
    for prompt_length in (None, [3, 3]):
        sample(model, 3)
        model(input_ids=ids, labels=labels)
        sample(model, 6, prompt_length=prompt_length)
        if prompt_length is None:
            with pytest.raises(PositionError, match="sampled in several turns"):
                model(input_ids=ids, labels=labels)
    # a response that was gone on with
    model(input_ids=ids, labels=labels)
    for other in (adapted(positions="f1").train(), adapted(positions="l1").eval()):
        sample(other, 6)
        other(input_ids=ids, labels=labels)


# --- the trainers of TRL ----------------------------------------------------------------------------------------------
# Trainers of TRL 1.16 that are not run here, and why:
#   AsyncGRPO, AsyncDistillation   need a server of vLLM, a kernel of a GPU (flash-attn3); their calls are tested below
#   ServerDistillation             asks a server for the teacher: run without one, it is refused before it asks
#   use_vllm, use_liger_kernel     need packages; Liger calls the backbone without labels, as AsyncDistillation does
#   teacher_model_kind="ema"       of SDFT and SDPO: TRL itself refuses it for what is not LoRA
#   GRPO with tools                a tiny model calls none; a rollout_func of two turns stands for them
# Experimental kto and distillation are those of `trl`, bema_for_ref_model is DPO, harbor and openreward serve GRPO.

CHATS = [
    [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"].strip()}]
    for row in PAIRS
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "prompts": [{"prompt": prompt} for prompt in PROMPTS],
    "chats": [{"messages": chat} for chat in CHATS],
    "preferences": [{"prompt": prompt, "chosen": " w40 w41", "rejected": " w50 w51"} for prompt in PROMPTS],
    "triples": [
        {"prompt": prompt, "chosen": " w40 w41", "rejected": " w50 w51", "reference": " w44 w45"} for prompt in PROMPTS
    ],
    "judged": [
        {"prompt": prompt, "completion": f" w{40 + i} w41", "label": bool(i % 2)} for i, prompt in enumerate(PROMPTS)
    ],
    "hinted": [{"prompt": prompt, "privileged_context": " w50 w51"} for prompt in PROMPTS],
}
SHORT = {"max_completion_length": 3}
GROUPS = {**SHORT, "num_generations": 2}
PACKAGES = {
    name: f"trl.experimental.{name.lower()}"
    for name in ("ORPO", "CPO", "GKD", "TPO", "SDFT", "SDPO", "A2PO", "GMPO", "GOLD")
} | {
    "IWOPD": "trl.experimental.iw_opd",
    "OnlineDPO": "trl.experimental.online_dpo",
    "ServerDistillation": "trl.experimental.server_distillation",
}
# name, rows, settings
KNOWING = [
    ("KTO", "judged", {}),
    ("KTO", "judged", {"loss_type": "apo_zero_unpaired"}),
    ("RLOO", "prompts", GROUPS),
    ("GRPO", "prompts", {**GROUPS, "beta": 0.1, "num_iterations": 2}),
    ("GMPO", "prompts", GROUPS),
]
UNKNOWING = [
    ("ORPO", "preferences", {}),
    ("CPO", "preferences", {}),
    ("TPO", "triples", {}),
    ("OnlineDPO", "prompts", {"max_new_tokens": 3}),
    ("A2PO", "prompts", {**SHORT, "num_value_samples": 2, "filter_all_incorrect": False}),
    ("GKD", "chats", {"lmbda": 0.0}),
    ("GKD", "chats", {"lmbda": 1.0, "max_new_tokens": 3}),
    ("GOLD", "chats", {**SHORT, "lmbda": 0.0}),
    ("GOLD", "chats", {**SHORT, "lmbda": 1.0}),
    ("IWOPD", "chats", SHORT),
]
# these ask for the logits of the completion only
SCORING = [
    ("Distillation", "prompts", SHORT),
    ("SDFT", "hinted", {**SHORT, "num_generations": 1, "distillation_topk": 10}),
    ("SDFT", "hinted", {**SHORT, "num_generations": 1, "distillation_topk": 10, "teacher_model_kind": "live"}),
    ("SDPO", "prompts", {**GROUPS, "teacher_model_kind": "base"}),
    ("SDPO", "prompts", {**GROUPS, "teacher_model_kind": "live", "distillation_weight": 0.5}),
]


def odd_ones(completions: list[Any], **_: Any) -> list[float]:
    return [float(i % 2) for i, _ in enumerate(completions)]


def byte_tokenizer() -> Any:
    """GOLD takes no other kind."""
    ids = {text: i for i, text in enumerate((*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **names)


def made(case: tuple[str, str, dict[str, Any]], folder: Path, config: ReftConfig) -> Any:
    """A trainer of one step."""
    name, rows, settings = case
    package = importlib.import_module(PACKAGES.get(name, "trl"))
    tokenizer, more = byte_tokenizer() if name == "GOLD" else word_tokenizer(), {}
    base = base_model(vocab_size=len(tokenizer))
    if name in ("RLOO", "GRPO", "GMPO", "OnlineDPO", "SDPO", "A2PO"):
        more["reward_funcs"] = odd_ones
    if name in ("GKD", "GOLD", "IWOPD", "Distillation"):
        more["teacher_model"] = base_model(vocab_size=len(tokenizer))
        tokenizer.save_pretrained(folder / "teacher")
        more["teacher_model"].config._name_or_path = str(folder / "teacher")
    if name == "A2PO":
        base = get_peft_model(base, config)
    else:
        more["peft_config"] = config
    given = arguments(folder, max_steps=1, gradient_checkpointing=False, **settings)
    trainer = getattr(package, f"{name}Trainer")
    return trainer(
        model=base,
        args=getattr(package, f"{name}Config")(**given),
        train_dataset=Dataset.from_list(ROWS[rows]),
        processing_class=tokenizer,
        **more,
    )


def ends_and_lengths(trainer: Any) -> list[tuple[bool, list[int], list[int]]]:
    """Of each call of the adapted model outside of `generate`: whether it computes gradients, where its prompts were
    taken to end, and how long they are, which their first word says."""
    real = {len(SPECIAL) + i: length for i, length in enumerate(LENGTHS)}
    layer = next(module for module in trainer.model.modules() if isinstance(module, ReftLayer))
    model = trainer.model.get_base_model().model
    seen: list[tuple[bool, list[int], list[int]]] = []
    tokens: list[Tensor] = []

    def look(*_: Any) -> None:
        frame: Any = layer.state.frame
        if layer.state.outer.prompts is None and not layer.disable_adapters:
            starts, ends = frame.segments.start, frame.segments.end
            firsts = tokens[-1].gather(1, starts.reshape(-1, 1)).flatten().tolist()
            seen.append((torch.is_grad_enabled(), (ends - starts).tolist(), [real[first] for first in firsts]))

    model.embed_tokens.register_forward_pre_hook(lambda _, given: tokens.append(given[0]))
    model.layers[0].register_forward_hook(look)
    trainer.train()
    return seen


def named(case: tuple[str, str, dict[str, Any]]) -> str:
    return "-".join([case[0], *(str(value) for value in case[2].values() if isinstance(value, (str, float)))])


@pytest.mark.slow
@pytest.mark.parametrize("case", KNOWING, ids=named)
def test_trainers_that_pass_labels_edit_the_right_tokens(case: Any, tmp_path: Path) -> None:
    seen = ends_and_lengths(made(case, tmp_path, reft()))
    assert any(computes_gradients for computes_gradients, _, _ in seen)
    for _, ends, lengths in seen:
        assert ends == lengths and len(set(lengths)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("case", UNKNOWING, ids=named)
def test_trainers_without_labels_are_refused(case: Any, tmp_path: Path) -> None:
    with pytest.raises(PositionError, match="neither labels nor prompt_length"):
        made(case, tmp_path, reft()).train()
    made(case, tmp_path, reft(positions="all")).train()
    if case[0] in ("ORPO", "CPO", "GKD"):
        made(case, tmp_path, reft(unknown_prompt="whole")).train()


@pytest.mark.slow
@pytest.mark.parametrize("case", SCORING, ids=named)
def test_trainers_that_score_without_labels_are_refused(case: Any, tmp_path: Path) -> None:
    with pytest.raises(PositionError, match=r"(?s)scores a text whose prompt is not known.*positions 'all'"):
        made(case, tmp_path, reft()).train()
    made(case, tmp_path, reft(positions="all")).train()


@pytest.mark.slow
@pytest.mark.parametrize("turns", [1, 2])
def test_texts_sampled_in_several_turns_are_refused(turns: int, tmp_path: Path) -> None:
    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        tokenizer = word_tokenizer()
        given: Any = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
        text, mask, columns = given["input_ids"], given["attention_mask"], given["input_ids"].shape[1]
        for _ in range(turns):
            with torch.no_grad():
                text = trainer.model.generate(input_ids=text, attention_mask=mask, max_new_tokens=2, min_new_tokens=2)
            mask = torch.nn.functional.pad(mask, (0, 2), value=1)
        own = [row[used.bool()].tolist() for row, used in zip(given["input_ids"], given["attention_mask"], strict=True)]
        return {"prompt_ids": own, "completion_ids": text[:, columns:].tolist(), "logprobs": None}

    def trainer(config: ReftConfig) -> Any:
        found = made(("GRPO", "prompts", GROUPS), tmp_path, config)
        found.rollout_func = rollout
        return found

    if turns == 1:
        assert all(ends == lengths for _, ends, lengths in ends_and_lengths(trainer(reft())))
        return
    with pytest.raises(PositionError, match=r"sampled in several turns.*'f…' or 'all'"):
        trainer(reft()).train()
    trainer(reft(positions="f2")).train()


@pytest.mark.slow
def test_a_teacher_on_a_server_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.generation import vllm_client

    monkeypatch.setattr(vllm_client, "VLLMClient", lambda **_: None)
    case = ("ServerDistillation", "prompts", {**SHORT, "teacher_model_server_url": "http://localhost:1"})
    with pytest.raises(PositionError, match="neither labels nor prompt_length"):
        made(case, tmp_path, reft()).train()


def test_the_calls_of_the_async_trainers_of_trl_are_refused() -> None:
    model = adapted(positions="l1").train()
    packed = {"input_ids": random_tokens(1, 8), "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])}
    # a tree: two completions behind one prompt
    tree = {**packed, "position_ids": torch.tensor([[0, 1, 2, 3, 4, 3, 4, 5]])}
    for call in (
        lambda: model(**tree, shift_labels=packed["input_ids"]),  # AsyncGRPO
        lambda: model.get_base_model().model(**packed, use_cache=False),  # AsyncDistillation
    ):
        with pytest.raises(PositionError, match="neither labels nor prompt_length"):
            call()


@pytest.mark.slow
def test_a_reward_is_of_the_whole_text(tmp_path: Path) -> None:
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    config = base_model().config
    config.num_labels, config.pad_token_id = 1, 0
    trainer = RewardTrainer(
        model=LlamaForSequenceClassification(config),
        args=RewardConfig(**arguments(tmp_path, max_steps=1, gradient_checkpointing=False)),
        train_dataset=Dataset.from_list(ROWS["preferences"]),
        processing_class=word_tokenizer(),
        peft_config=reft(task_type="SEQ_CLS"),
    )
    # two words of the answer and the end
    whole = sorted([n + 3 for n in LENGTHS] * 2)
    assert [sorted(ends) for ends in prompts_seen(trainer)] == [whole]


@pytest.mark.slow
def test_metrics_of_sft_are_of_the_edits_of_the_loss_or_told_of(tmp_path: Path) -> None:
    def trainer(**more: Any) -> Any:
        made = sft_trainer(tmp_path, base_model(), max_steps=1, eval_strategy="no", **more)
        made.eval_dataset = made.train_dataset
        made.compute_metrics = lambda prediction: {}
        return made

    with pytest.warns(UserWarning, match="came with labels just before"):
        trainer().evaluate()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*came with labels")
        trainer(collator=ReftCollator(word_tokenizer())).evaluate()


@pytest.mark.slow
def test_a_trainer_of_ones_own_that_takes_the_labels_away(tmp_path: Path) -> None:
    class Own(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return model(input_ids=inputs["input_ids"]).logits.square().mean()

    rows = [{name: value[0].tolist() for name, value in LABELLED.items()}]
    given = TrainingArguments(str(tmp_path), use_cpu=True, max_steps=1, report_to="none", disable_tqdm=True)
    with pytest.raises(PositionError, match="neither labels nor prompt_length"):
        Own(model=adapted(positions="l1"), args=given, train_dataset=Dataset.from_list(rows)).train()
