"""What users of earlier ReFT libraries run into, one test for each defect, saying what happens here instead.

Must not know: other tests' helpers beyond tiny models.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from reftune import INTERVENTIONS, ReftConfig, ReftLayer
from tests.models import HEADS, HIDDEN, PAD, VOCAB, random_tokens, tiny_model

PROMPT = 6
LENGTH = 10


def config(**fields: Any) -> ReftConfig:
    return ReftConfig(**{"r": 4, "positions": "f1+l2", "task_type": "CAUSAL_LM", **fields})


def edited_model(kind: str = "llama", *, dtype: torch.dtype = torch.float32, **fields: Any) -> Any:
    """With edits that are far from zero; the same for the same arguments."""
    init = fields.pop("init", "random")
    torch.manual_seed(0)
    return get_peft_model(tiny_model(kind, layers=3, dtype=dtype), config(init=init, **fields)).eval()


def batch_with_labels(rows: int = 4) -> dict[str, Tensor]:
    ids = random_tokens(rows, LENGTH)
    labels = ids.masked_fill(torch.arange(LENGTH) < PROMPT, -100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def interventions(model: nn.Module) -> list[Any]:
    layers = [module for module in model.modules() if isinstance(module, ReftLayer)]
    return [layer.phi(adapter, unit) for layer in layers for adapter in layer.groups for unit in layer.units(adapter)]


def train(
    model: Any, *, steps: int, lr: float = 1e-2, batch: dict[str, Tensor] | None = None, **options: Any
) -> list[float]:
    batch = batch_with_labels() if batch is None else batch
    optimizer = torch.optim.AdamW(trainable(model), lr=lr, **options)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


# --- optimiser and dtypes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_decay", [0.01, 1.0])
def test_weight_decay_leaves_the_rows_orthonormal(weight_decay: float) -> None:
    model = edited_model(init="identity")
    losses = train(model, steps=10, weight_decay=weight_decay)
    assert losses[-1] < losses[0]
    for phi in interventions(model):
        basis_RD = phi.basis()
        assert torch.allclose(basis_RD @ basis_RD.T, torch.eye(4), atol=1e-5)
        assert phi.R.norm() > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_of_base_and_adapter_stay_as_they_were_after_a_reload(tmp_path: Path, dtype: torch.dtype) -> None:
    model = edited_model(dtype=dtype)
    ids = random_tokens(2, LENGTH)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    assert expected.dtype == dtype
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(tiny_model("llama", layers=3, dtype=dtype), str(tmp_path)).eval()
    for each in (model, reloaded):
        dtypes = {"intervention" in name: set() for name, _ in each.named_parameters()}
        for name, parameter in each.named_parameters():
            dtypes["intervention" in name].add(parameter.dtype)
        assert dtypes == {False: {dtype}, True: {torch.float32}}
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids=ids).logits, expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_base_trains_a_float32_adapter(autocast: bool) -> None:
    model = edited_model(dtype=torch.bfloat16, init="identity")
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        losses = train(model, steps=30, lr=5e-2)
    assert losses[-1] < 0.8 * losses[0]
    assert {p.dtype for p in trainable(model)} == {torch.float32}
    after = dict(model.named_parameters())
    assert all(torch.equal(parameter, after[name]) for name, parameter in before.items())


# --- which tokens are edited ----------------------------------------------------------------------------------------


def padded_left(rows: list[Tensor]) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    ids = torch.stack([torch.cat([torch.full((longest - len(row),), PAD), row]) for row in rows])
    mask = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


ROWS = [random_tokens(1, 3, seed=1)[0], random_tokens(1, 8, seed=2)[0]]


def test_left_padding_does_not_move_the_edits() -> None:
    model = edited_model()
    with torch.no_grad():
        together = model(**padded_left(ROWS)).logits
        for row, logits in zip(ROWS, together, strict=True):
            alone = model(input_ids=row[None]).logits[0]
            assert torch.allclose(logits[-len(row) :], alone, atol=1e-4)
            with model.disable_adapter():
                assert not torch.allclose(alone, model(input_ids=row[None]).logits[0], atol=0.1)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_beams_of_a_batch_equal_those_of_each_row_alone(options: dict[str, int]) -> None:
    model = edited_model()
    options = {**options, "max_new_tokens": 5, "do_sample": False}
    together = model.generate(**padded_left(ROWS), **options)
    returned = options.get("num_return_sequences", 1)
    for i, row in enumerate(ROWS):
        alone = model.generate(input_ids=row[None], attention_mask=torch.ones_like(row)[None], **options)
        assert torch.equal(together[i * returned : (i + 1) * returned, -5:], alone[:, -5:])


def test_several_samples_of_a_batch() -> None:
    model = edited_model()
    out = model.generate(**padded_left(ROWS), do_sample=True, top_k=1, num_return_sequences=3, max_new_tokens=5)
    greedy = model.generate(**padded_left(ROWS), do_sample=False, max_new_tokens=5)
    assert torch.equal(out, greedy.repeat_interleave(3, 0))


def edited_columns(model: Any, layer: int, states: Tensor, **batch: Any) -> list[int]:
    """Columns of the output of a block that the adapter changes; blocks before it are not edited."""
    with torch.no_grad(), model.disable_adapter():
        base = model(**batch, output_hidden_states=True).hidden_states[layer + 1]
    return [i for i in range(base.shape[1]) if not torch.equal(base[0, i], states[0, i])]


def test_the_suffix_is_the_end_of_the_prompt_in_training_and_in_generation() -> None:
    layer = 1
    model = edited_model(positions="l2", layers=[layer])
    batch = batch_with_labels(1)
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states[layer + 1]
    in_training = edited_columns(model, layer, states, **batch)
    assert in_training == [PROMPT - 2, PROMPT - 1]

    prompt = {key: batch[key][:, :PROMPT] for key in ("input_ids", "attention_mask")}
    out = model.generate(
        **prompt, max_new_tokens=3, do_sample=False, output_hidden_states=True, return_dict_in_generate=True
    )
    of_prompt, *of_response = (step[layer + 1] for step in out.hidden_states)
    assert edited_columns(model, layer, of_prompt, **prompt) == in_training
    # all steps together are one forward of the whole text, edited at the same columns
    with torch.no_grad():
        whole = model(
            input_ids=out.sequences[:, :-1], prompt_length=torch.tensor([PROMPT]), output_hidden_states=True
        ).hidden_states[layer + 1]
    assert torch.allclose(torch.cat([of_prompt, *of_response], 1), whole, atol=1e-4)
    assert edited_columns(model, layer, whole, input_ids=out.sequences[:, :-1]) == in_training


def test_a_middle_layer_learns_from_the_last_prompt_token() -> None:
    # an edit behind the prompt of a layer in the middle could not reach the first token of the response
    base = tiny_model("llama", layers=3, overrides={"initializer_range": 0.5})
    model = get_peft_model(base, config(positions="l1", layers=[1]))
    batch = batch_with_labels()
    batch["labels"][:, PROMPT + 1 :] = -100
    losses = train(model, steps=30, lr=5e-2, batch=batch)
    assert losses[-1] < 0.1 * losses[0]


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_gradient_checkpointing_gives_the_same_gradients(kind: str, reentrant: bool) -> None:
    def gradients(checkpoint: bool) -> dict[str, Tensor]:
        model = edited_model(kind).train()
        if checkpoint:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(**batch_with_labels()).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert len(plain) == 9 and plain.keys() == checkpointed.keys()
    assert all(torch.equal(gradient, checkpointed[name]) for name, gradient in plain.items())


class Examples(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        self.batch = batch_with_labels(8)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[index] for key, value in self.batch.items()}


def trainer_of(model: Any, folder: Path, **more: Any) -> Trainer:
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}
    schedule = {"per_device_train_batch_size": 4, "max_steps": 8, "learning_rate": 1e-2}
    return Trainer(model, TrainingArguments(str(folder), **{**quiet, **schedule, **more}), train_dataset=Examples())


def test_the_trainer_of_transformers_trains_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = edited_model(init="identity")
    trainer = trainer_of(whole, tmp_path, save_strategy="steps", save_steps=4, save_only_model=False)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    checkpoint = tmp_path / "checkpoint-4"
    assert (checkpoint / "adapter_model.safetensors").exists() and not (checkpoint / "model.safetensors").exists()

    resumed = edited_model(init="identity")
    trainer_of(resumed, tmp_path).train(resume_from_checkpoint=str(checkpoint))
    for one, other in zip(trainable(whole), trainable(resumed), strict=True):
        assert torch.equal(one, other)


def test_eval_mode_reaches_the_interventions() -> None:
    model = edited_model(dropout=0.5).train()
    batch = batch_with_labels()
    with torch.no_grad():
        assert not torch.equal(model(**batch).logits, model(**batch).logits)
        model.eval()
        assert torch.equal(model(**batch).logits, model(**batch).logits)


# --- saving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(INTERVENTIONS))
def test_a_saved_adapter_is_small_not_a_pickle_and_reloads_as_what_it_was(tmp_path: Path, name: str) -> None:
    base = tmp_path / "base"
    tiny_model("llama", layers=3).save_pretrained(base)
    model = get_peft_model(
        tf.AutoModelForCausalLM.from_pretrained(base), config(intervention=name, init="random")
    ).eval()
    batch = batch_with_labels()
    with torch.no_grad():
        expected = model(**batch).logits
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)

    files = {path.name for path in folder.iterdir()} - {"README.md"}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    # the header names each tensor; no d × d matrix comes along
    weights = (folder / "adapter_model.safetensors").stat().st_size
    saved = sum(4 * p.numel() for phi in interventions(model) for p in phi.state_dict().values())
    assert saved <= weights < saved + 4096
    assert json.loads((folder / "adapter_config.json").read_text())["intervention"] == name

    reloaded = AutoPeftModelForCausalLM.from_pretrained(str(folder)).eval()
    assert {type(phi) for phi in interventions(reloaded)} == {INTERVENTIONS[name]}
    with torch.no_grad():
        assert torch.equal(reloaded(**batch).logits, expected)


# --- models and hooks -----------------------------------------------------------------------------------------------


def newer_model(kind: str) -> Any:
    sizes = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}
    sizes |= {"hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": HEADS, "num_key_value_heads": 2, "initializer_range": 0.1}
    model = {
        "olmo2": lambda: tf.Olmo2ForCausalLM(tf.Olmo2Config(**sizes)),
        "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**sizes, resid_pdrop=0.0)),
    }[kind]()
    return model.eval()


@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "phi", "phi3", "olmo2"])
def test_newer_architectures_need_no_path(kind: str) -> None:
    base = newer_model(kind) if kind in ("phi3", "olmo2") else tiny_model(kind, layers=3)
    ids = random_tokens(2, LENGTH)
    with torch.no_grad():
        expected = base(input_ids=ids).logits
    model = get_peft_model(base, config()).eval()
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, expected)
    losses = train(model, steps=15)
    assert losses[-1] < 0.9 * losses[0]


def test_hooks_of_the_user_stay_and_see_the_edit() -> None:
    base = tiny_model("llama", layers=3)
    block, ids = base.model.layers[1], random_tokens(2, LENGTH)
    seen: list[tuple[str, Tensor]] = []
    block.register_forward_hook(lambda module, args, output: seen.append(("before", output)))
    base.model.register_forward_pre_hook(lambda module, args: seen.append(("model", torch.empty(0))))
    with torch.no_grad():
        base(input_ids=ids)
        _, (_, of_base) = seen
        seen.clear()
        model = get_peft_model(base, config(init="random", layers=[1])).eval()
        block.register_forward_hook(lambda module, args, output: seen.append(("after", output)))
        for _ in range(2):
            states = model(input_ids=ids, output_hidden_states=True).hidden_states[2]
            assert [name for name, _ in seen] == ["model", "before", "after"]
            assert torch.equal(seen[1][1], states) and torch.equal(seen[2][1], states)
            assert not torch.equal(states, of_base)
            seen.clear()
        model.unload()(input_ids=ids)
    assert [name for name, _ in seen] == ["model", "before", "after"]
    assert torch.equal(seen[1][1], of_base)


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["f1+l2", "all"])
def test_the_compiled_model_has_no_graph_break(positions: str) -> None:
    torch._dynamo.reset()
    model = edited_model(positions=positions)
    batch = batch_with_labels()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected = model(**batch).logits
        assert torch.allclose(compiled(**batch).logits, expected, atol=1e-5)


# --- install --------------------------------------------------------------------------------------------------------

_BESIDES_PEFT = """
import sys
import peft, torch, transformers
before = {name.partition(".")[0] for name in sys.modules}
import reftune
after = {name.partition(".")[0] for name in sys.modules}
print(*sorted(after - before - set(sys.stdlib_module_names)))
"""


@pytest.mark.slow
def test_import_needs_no_package_that_peft_does_not_bring() -> None:
    done = subprocess.run([sys.executable, "-c", _BESIDES_PEFT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["reftune"]
