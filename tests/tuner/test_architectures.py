"""Every class of the installed transformers is right, or refused by name when an adapter is made: `docs/models.md`.

The contract is in `tests/zoo`.  Some classes are tried in every run, all by `make test-models`, or a part
of them with PART=k/n.
"""

from __future__ import annotations

import os
from typing import Any

import peft
import pytest
import torch
import transformers

from reftune import ReftConfig
from tests.tuner.adapters import logits
from tests.zoo import table
from tests.zoo.contract import judge
from tests.zoo.recipe import classes, tiny_model

QUICK = {
    "AlbertForSequenceClassification",
    "BertForSequenceClassification",
    "CpmAntForCausalLM",
    "FalconMambaForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Gemma3nForCausalLM",
    "GPT2LMHeadModel",
    "LongformerForSequenceClassification",
    "MixtralForCausalLM",
    "MptForCausalLM",
    "OpenAIGPTLMHeadModel",
    "Qwen3ForCausalLM",
    "T5ForConditionalGeneration",
    "XLNetForSequenceClassification",
}
REWRITE = "if that is as it should be, run: python -m tests.zoo.table"


def _params() -> list[Any]:
    part, parts = map(int, (os.environ.get("PART") or "0/1").split("/"))
    chosen = [one for i, one in enumerate(classes()) if i % parts == part % parts or one[2] in QUICK]
    return [pytest.param(*one, id=one[2], marks=() if one[2] in QUICK else pytest.mark.models) for one in chosen]


@pytest.mark.parametrize("task, model_type, name", _params())
def test_the_class_is_what_the_document_says(task: str, model_type: str, name: str) -> None:
    verdict = judge(task, model_type, name)
    if verdict.status == "not tried" and table.version() != transformers.__version__:
        pytest.skip(f"the document is of transformers {table.version()}, and here: {verdict.why}")
    faults = "\n".join(verdict.faults)
    assert verdict.status == table.written().get(name), f"{verdict.status}: {verdict.why}\n{faults}\n{REWRITE}"


def test_the_document_has_every_class_of_this_transformers_and_no_wrong_one() -> None:
    assert table.version() == transformers.__version__, REWRITE
    assert set(table.written()) == {name for _, _, name in classes()}, REWRITE
    assert [name for name, status in table.written().items() if status == "wrong"] == []
    assert {name for _, _, name in classes()} >= QUICK


ADVICE = [
    ("albert", "AlbertForSequenceClassification", {"target_modules": ["encoder.embedding_hidden_mapping_in"]}),
    *(
        (model_type, name, {"component": component, "layers": [0]})
        for model_type, name in (
            ("gemma3n_text", "Gemma3nForCausalLM"),
            ("deepseek_v4", "DeepseekV4ForCausalLM"),
            ("hy_v4", "HYV4ForCausalLM"),
            ("qwen4_exp", "Qwen4ExpForCausalLM"),
        )
        for component in ("attention_output", "mlp_output")
    ),
]


@pytest.mark.parametrize("model_type, name, fields", ADVICE)
def test_the_advice_of_a_refusal_can_be_followed(model_type: str, name: str, fields: dict[str, Any]) -> None:
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    base = tiny_model(model_type, name)
    with pytest.raises(ValueError, match=name) as refusal:
        peft.get_peft_model(base, ReftConfig(r=2))
    assert all(str(value) in str(refusal.value) for key, value in fields.items() if key != "layers")
    model = peft.get_peft_model(base, ReftConfig(r=2, positions="f1+l1", init="random", **fields)).eval()
    (host,) = {key.split(".hidden_edit")[0] for key, _ in model.named_parameters() if ".hidden_edit" in key}
    outputs = []

    def keep(module: Any, args: Any, output: Any) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output).detach())

    model.get_submodule(host).register_forward_hook(keep)
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    given = {"input_ids": torch.randint(3, 40, (2, 5)) * mask, "attention_mask": mask}
    logits(model, given)
    with model.disable_adapter():
        logits(model, given)
    with_it, without = (output.reshape(2, 5, -1) for output in outputs)
    assert (with_it != without).any(-1).nonzero().tolist() == [[0, 1], [0, 4], [1, 0], [1, 4]]


@pytest.mark.parametrize(
    "name", ["XLNetForSequenceClassification", "CpmAntForCausalLM", "FSMTForConditionalGeneration"]
)
def test_named_modules_do_not_help_where_columns_are_not_tokens(name: str) -> None:
    (model_type,) = {model_type for _, model_type, known in classes() if known == name}
    with pytest.raises(ValueError, match=f"{name}.*Use a model of another type"):
        peft.get_peft_model(tiny_model(model_type, name), ReftConfig(r=2, target_modules=".*dense", positions="all"))
