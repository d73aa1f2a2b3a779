"""Which engine answers, and why; and that rows are scored by whatever answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
from peft import get_peft_model

from reftune import ReftConfig, ReftuneError
from reftune.evaluation.engines import choose_engine
from reftune.evaluation.runner import evaluate_rows
from reftune.evaluation.tasks import TASKS
from reftune.serving.vllm import offline
from tests.training.text_models import save_base, text_model, word_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_base(tmp_path_factory.mktemp("engines") / "base"))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "is_installed", lambda: True)


def saved(folder: Path, config: Any) -> str:
    get_peft_model(text_model(), config).save_pretrained(folder)
    return str(folder)


def test_without_vllm_transformers_answers_and_nothing_is_said(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "is_installed", lambda: False)
    assert choose_engine("auto", base, None, [{}]) == ("transformers", None)
    with pytest.raises(ReftuneError, match="needs vLLM in the same environment"):
        choose_engine("vllm", base, None, [{}])


@pytest.mark.usefixtures("installed")
def test_with_vllm_it_answers_unless_the_other_is_asked_for(base: str, tmp_path: Path) -> None:
    reft = saved(tmp_path / "reft", ReftConfig(task_type="CAUSAL_LM", r=2))
    lora = saved(tmp_path / "lora", peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    plain = [{"max_new_tokens": 4}, {"max_length": 9, "do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 3}]
    for adapter in (None, reft, lora):
        assert choose_engine("auto", base, adapter, plain) == ("vllm", None)
        assert choose_engine("vllm", base, adapter, plain) == ("vllm", None)
        assert choose_engine("transformers", base, adapter, plain) == ("transformers", None)
    with pytest.raises(ReftuneError, match="engine='sglang' is not valid; use one of 'auto', 'vllm', 'transformers'"):
        choose_engine("sglang", base, None, plain)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("config", "generation", "message"),
    [
        (ReftConfig(component="mlp_output"), {}, "mlp_output"),
        (ReftConfig(rms=True), {}, "rms=True"),
        (peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]), {}, "IA3"),
        (None, {"num_beams": 4}, "num_beams=4"),
        (None, {"no_repeat_ngram_size": 5}, "no_repeat_ngram_size=5"),
        (None, {"penalty_alpha": 0.6}, "penalty_alpha=0.6"),
    ],
)
def test_what_vllm_cannot_is_told_or_refused(
    base: str, tmp_path: Path, config: Any, generation: dict[str, Any], message: str
) -> None:
    adapter = None if config is None else saved(tmp_path, config)
    engine, note = choose_engine("auto", base, adapter, [{}, generation])
    assert engine == "transformers" and note is not None and message in note
    with pytest.raises(ReftuneError, match=message):
        choose_engine("vllm", base, adapter, [{}, generation])


class Parrot:
    """An engine that always says the same."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def batches(
        self, prompts: Sequence[dict[str, Any] | str], *, batch_size: int | None = None, **generation: Any
    ) -> Iterator[list[tuple[int, str]]]:
        self.asked.append((len(prompts), generation))
        for i in reversed(range(len(prompts))):
            yield [(i, "the correct answer is true")]


def test_rows_are_scored_by_whatever_answers(tmp_path: Path) -> None:
    task, parrot = TASKS["boolq"], Parrot()
    rows = [{"id": i, "instruction": f"question {i}", "answer": a} for i, a in enumerate(("true", "false", "true"))]
    found = evaluate_rows(parrot, word_tokenizer(), task, rows, file=tmp_path / "rows.jsonl", max_new_tokens=3)
    assert found.score == pytest.approx(2 / 3) and [e["right"] for e in found.examples] == [True, False, True]
    assert parrot.asked == [(3, {**task.generation, "max_new_tokens": 3})]
    # what is there is not asked again
    evaluate_rows(parrot, word_tokenizer(), task, rows, file=tmp_path / "rows.jsonl", max_new_tokens=3)
    assert parrot.asked[1][0] == 0
