"""TRL's own scripts by `reftune trl`: their arguments, a block `reft:`, and what is refused first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

import yaml
from datasets import Dataset
from peft import AutoPeftModelForCausalLM

import reftune.integrations.trl as ours
from reftune import ReftLayer, ReftuneError
from tests.training.text_models import CHATS, PAIRS, save_base, word_tokenizer, write_jsonl

TWO_TURNS = [{"messages": [*chat["messages"], *CHATS[0]["messages"]]} for chat in CHATS]
PREFERENCES = [{"prompt": p["prompt"], "chosen": p["completion"], "rejected": " w1"} for p in PAIRS]


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a configuration for rows, and says where."""
    monkeypatch.chdir(tmp_path)

    def written(rows: list[dict[str, Any]] = PAIRS, **more: Any) -> list[str]:
        write_jsonl(tmp_path / "rows.jsonl", rows)
        common = {"report_to": "none", "use_cpu": True, "bf16": False, "dtype": "float32", "max_steps": 2}
        values = {
            "model_name_or_path": "base",
            "datasets": [{"path": "json", "data_files": "rows.jsonl"}],
            "output_dir": "adapter",
            "learning_rate": 2e-2,
            "per_device_train_batch_size": 8,
            "reft": {"r": 2, "positions": "f1+l2"},
            **common,
            **more,
        }
        Path("run.yaml").write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
        return ["--config", "run.yaml"]

    return written


@pytest.mark.parametrize(
    ("script", "more", "parts"),
    [
        ("sft", {"use_peft": True}, ("use_peft", "block reft:")),
        ("sft", {"lora_r": 8}, ("lora_r", "block reft:")),
        ("sft", {"reft": {"rank": 4}}, ("unknown keys 'rank'",)),
        ("sft", {"reftt": 1}, ("reftt",)),
        ("grpo", {"use_vllm": True}, ("use_vllm", "cannot be merged")),
        ("sft", {"model_name_or_path": None}, ("model_name_or_path",)),
        ("kto", {}, ("'kto' is no script", "sft, dpo, grpo")),
    ],
)
def test_what_cannot_be_had_is_refused_first(run_file: Any, script: str, more: dict[str, Any], parts: Any) -> None:
    with pytest.raises((ReftuneError, ValueError)) as found:
        ours.main([script, *run_file(**more)])
    assert all(part in str(found.value) for part in parts), found.value


def test_a_row_of_each_answer() -> None:
    rows = Dataset.from_list(TWO_TURNS)
    made = ours.with_prompts(rows, assistant_only=True)
    assert made.column_names == ["prompt", "completion"] and len(made) == 2 * len(rows)
    for row, whole in zip(list(made)[1::2], TWO_TURNS, strict=True):
        assert row["prompt"] + row["completion"] == whole["messages"]
    assert made[0]["completion"] == TWO_TURNS[0]["messages"][1:2]
    assert ours.with_prompts(made, assistant_only=False) is made
    with pytest.raises(ReftuneError, match="assistant_only_loss: true"):
        ours.with_prompts(rows, assistant_only=False)


@pytest.mark.parametrize(
    ("rows", "style"),
    [
        (PAIRS, "prompt"),
        (PREFERENCES, "prompt"),
        ([{"text": "w1 w2"}], None),
        ([{"chosen": CHATS[0]["messages"], "rejected": CHATS[1]["messages"]}], "messages"),
    ],
)
def test_how_prompts_are_written_is_seen_from_rows(rows: Any, style: str | None) -> None:
    found = ours.style_of(rows)
    assert (found and found.style) == style


@pytest.mark.slow
@pytest.mark.parametrize(("script", "rows"), [("sft", TWO_TURNS), ("dpo", PREFERENCES), ("grpo", PAIRS)])
def test_scripts_train_the_right_tokens(run_file: Any, script: str, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save_base(Path("base"))
    more: dict[str, Any] = {}
    if script == "sft":
        more["assistant_only_loss"] = True
    if script == "grpo":
        Path("rewards_here.py").write_text("def short(completions, **_):\n    return [-len(c) for c in completions]\n")
        monkeypatch.syspath_prepend(".")
        more = {"reward_funcs": ["rewards_here.short"], "num_generations": 2, "max_completion_length": 4}
    seen = set()
    import trl

    real = getattr(trl, ours.TRAINERS[script])

    def watched(**given: Any) -> Any:
        trainer = real(**given)
        layer = next(module for module in trainer.model.modules() if isinstance(module, ReftLayer))

        def look(*_: Any) -> None:
            frame: Any = layer.state.frame
            if torch.is_grad_enabled() and frame.segments is not None and not layer.disable_adapters:
                seen.update((frame.segments.end - frame.segments.start).tolist())

        trainer.model.get_base_model().model.layers[0].register_forward_hook(look)
        return trainer

    monkeypatch.setattr(trl, ours.TRAINERS[script], watched)
    ours.main([script, *run_file(rows, **more)])
    tokenizer: Any = word_tokenizer()
    if script == "sft":
        texts = [turns[:i] for row in rows for turns in [row["messages"]] for i in (1, 3)]
        lengths = {len(tokenizer.apply_chat_template(t, add_generation_prompt=True)["input_ids"]) for t in texts}
    else:
        lengths = {len(row["prompt"].split()) for row in rows}
    assert seen and seen <= lengths and len(seen) > 1
    made: Any = AutoPeftModelForCausalLM.from_pretrained("adapter")
    assert made.peft_config["default"].positions == "f1+l2"
    assert json.loads(Path("adapter/reftune.json").read_text())["style"] == (
        "messages" if script == "sft" else "prompt"
    )
    assert "import reftune" in Path("adapter/README.md").read_text()
    trained = [tensor for name, tensor in made.named_parameters() if name.endswith((".dW", ".b"))]
    assert trained and all(bool(tensor.any()) for tensor in trained)
