"""Every class of the installed transformers is right, or refused by name when an adapter is made: `docs/models.md`.

The contract is in `tests/zoo`.  Some classes are tried in every run, the others are slow.
"""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from tests.zoo import table
from tests.zoo.contract import judge
from tests.zoo.recipe import classes

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
    "Qwen3ForCausalLM",
    "T5ForConditionalGeneration",
    "XLNetForSequenceClassification",
}
REWRITE = "if that is as it should be, run: python -m tests.zoo.table"


def _params() -> list[Any]:
    marks = {name: () if name in QUICK else (pytest.mark.slow,) for _, _, name in classes()}
    return [pytest.param(*one, id=one[2], marks=marks[one[2]]) for one in classes()]


@pytest.mark.parametrize("task, model_type, name", _params())
def test_the_class_is_what_the_document_says(task: str, model_type: str, name: str) -> None:
    verdict = judge(task, model_type, name)
    faults = "\n".join(verdict.faults)
    assert verdict.status == table.written().get(name), f"{verdict.status}: {verdict.why}\n{faults}\n{REWRITE}"


def test_the_document_has_every_class_of_this_transformers_and_no_wrong_one() -> None:
    assert table.version() == transformers.__version__, REWRITE
    assert set(table.written()) == {name for _, _, name in classes()}, REWRITE
    assert [name for name, status in table.written().items() if status == "wrong"] == []
    assert {name for _, _, name in classes()} >= QUICK
