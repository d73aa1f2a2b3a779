"""axolotl's plug-in, with the interface of axolotl in place of it; the real one is tried by `make test-frontends`."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import get_peft_model
from pydantic import BaseModel, ValidationError

from reftune import DataError, ReftConfig, ReftLayer, ReftuneError
from reftune.models import save_adapter
from tests.integrations.stubs import put
from tests.models import tiny_model

LABELS = [-100, -100, 5, 6, -100, 7]


class Cfg(dict):
    """As axolotl's: a value that is not there is None."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


@dataclass(frozen=True)
class Capabilities:
    name: str
    lora_like: bool = True
    relora: bool = True


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> Any:
    put(monkeypatch, "axolotl.integrations.base", AdapterCapabilities=Capabilities, BasePlugin=object)
    monkeypatch.delitem(sys.modules, "reftune.integrations.axolotl", raising=False)
    yield importlib.import_module("reftune.integrations.axolotl")
    sys.modules.pop("reftune.integrations.axolotl", None)


def cfg(**more: Any) -> Cfg:
    return Cfg({"adapter": "reft", "reft": Cfg(r=2, positions="f1+l2"), "lora_dropout": 0.0, **more})


def test_it_is_registered_as_axolotl_asks(ours: Any) -> None:
    plugin = ours.ReftPlugin()
    assert plugin.get_adapter_capabilities() == [Capabilities("reft", lora_like=False, relora=False)]
    module, _, name = plugin.get_input_args().rpartition(".")
    arguments = getattr(importlib.import_module(module), name)

    class Whole(BaseModel):
        adapter: str | None = None

    whole = type("Input", (Whole, arguments), {})
    assert whole(**cfg()).reft == {"r": 2, "positions": "f1+l2"}
    assert whole(**{"adapter": "lora", "load_in_8bit": True}).reft is None


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ({"merge_lora": True}, ("merge_lora", "cannot be merged")),
        ({"load_in_8bit": True}, ("load_in_8bit", "lora and qlora only")),
        ({"load_in_4bit": True}, ("load_in_4bit", "lora and qlora only")),
        ({"train_on_inputs": True}, ("train_on_inputs", "'f1+l2'", "'all'")),
        ({"label_smoothing_factor": 0.1}, ("label_smoothing_factor", "labels away")),
        ({"use_eaft": True}, ("use_eaft", "labels away")),
        ({"fsdp_config": {"version": 2}}, ("fsdp_config", "not tried")),
        ({"deepspeed": "zero3.json"}, ("deepspeed", "not tried")),
        ({"context_parallel_size": 2}, ("context_parallel_size", "not tried")),
        ({"lora_r": 8}, ("lora_r", "block reft:")),
        ({"peft_use_dora": True}, ("peft_use_dora", "block reft:")),
        ({"rl": "orpo"}, ("rl: orpo", "dpo and ipo")),
        ({"rl": "dpo", "lora_model_dir": "x", "reft": {"positions": "all"}}, ("rl: dpo", "lora_model_dir")),
        ({"rl": "dpo"}, ("rl: dpo", "'f1+l2'", "without labels", "reftune trl dpo")),
        ({"reft": {"rank": 2}}, ("unknown keys 'rank'",)),
    ],
)
def test_refused_when_the_configuration_is_checked(ours: Any, more: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as found:
        ours.ReftArgs(**cfg(**more))
    assert all(part in str(found.value) for part in parts), found.value


def test_what_needs_no_prompt_may_have_labels_on_everything(ours: Any) -> None:
    ours.ReftArgs(**cfg(train_on_inputs=True, reft={"positions": "all"}, context_parallel_size=1))
    ours.ReftArgs(**cfg(rl="dpo", lora_model_dir=None, reft={"positions": "all"}))


def test_a_row_for_each_answer(ours: Any) -> None:
    ids = list(range(10, 16))
    row = {"input_ids": ids, "labels": LABELS, "attention_mask": [1] * 6, "length": 6, "position_ids": list(range(6))}
    silent = {**row, "labels": [-100] * 6}
    made = list(ours.one_answer_a_row(Dataset.from_list([row, silent])))
    assert [one["labels"] for one in made] == [[-100, -100, 12, 13], [-100] * 5 + [15]]
    assert [one["input_ids"] for one in made] == [ids[:4], ids]
    assert [one["length"] for one in made] == [4, 6] and made[0]["position_ids"] == [0, 1, 2, 3]
    assert all(len(one["attention_mask"]) == one["length"] for one in made)
    assert "prompt_length" not in made[0]
    single = Dataset.from_list([{**row, "labels": [-100] * 5 + [15]}])
    assert ours.one_answer_a_row(single) is single
    assert ours.one_answer_a_row(None) is None
    with pytest.raises(DataError, match="first token is labelled"):
        ours.one_answer_a_row(Dataset.from_list([{**row, "labels": ids}]))


def test_steps_are_counted_anew(ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Dataset.from_list([{"input_ids": list(range(6)), "labels": LABELS}])

    @dataclass
    class Meta:
        train_dataset: Any
        eval_dataset: Any = None
        total_num_steps: int = 1

    put(monkeypatch, "axolotl.common.datasets", load_datasets=lambda cfg: Meta(rows))
    put(monkeypatch, "axolotl.utils.trainer", calculate_total_num_steps=lambda cfg, data: len(data))
    plugin, asked = ours.ReftPlugin(), cfg(total_num_tokens=6)
    assert plugin.load_datasets(asked).total_num_steps == 2 and asked.total_num_tokens is None
    assert plugin.load_datasets(cfg(max_steps=1)).total_num_steps == 1
    for other in (cfg(rl="dpo"), cfg(adapter="lora"), cfg(reft={"positions": "f1"})):
        assert plugin.load_datasets(other) is None
    assert plugin.load_datasets(cfg(), preprocess=True) is None


def test_adapters_fresh_and_to_go_on_with(ours: Any, tmp_path: Path) -> None:
    plugin, base = ours.ReftPlugin(), tiny_model("llama", layers=2)
    model, config = plugin.load_adapter(base, cfg(datasets=[{"type": "chat_template", "path": "x"}]))
    assert [m for m in model.modules() if isinstance(m, ReftLayer)] and config.prompt_style.style == "messages"
    assert plugin.load_adapter(base, cfg(), config_only=True)[0] is None
    assert plugin.load_adapter(base, cfg(adapter="lora")) is None
    save_adapter(model, tmp_path / "adapter")
    on, _ = plugin.load_adapter(tiny_model("llama", layers=2), cfg(lora_model_dir=str(tmp_path / "adapter")))
    assert any(p.requires_grad for p in on.parameters())
    ours.check_same(str(tmp_path / "adapter"), None)
    with pytest.raises(ReftuneError, match=r"has r=2, but the block reft: says 4"):
        ours.check_same(str(tmp_path / "adapter"), {"r": 4})


@pytest.mark.parametrize(
    ("sets", "template", "known"),
    [
        ([{"type": "chat_template"}], None, True),
        ([{"type": "chat_template", "chat_template": "tokenizer_default"}], "chatml", True),
        ([{"type": "chat_template"}], "chatml", False),
        ([{"type": "chat_template"}, {"type": "alpaca"}], None, False),
        ([], None, False),
    ],
)
def test_how_prompts_are_written_is_told_where_it_is_known(ours: Any, sets: Any, template: Any, known: bool) -> None:
    assert (ours.style_of(Cfg(datasets=sets, chat_template=template)) is not None) == known


def test_the_model_card_is_reftunes(ours: Any) -> None:
    model: Any = get_peft_model(tiny_model("llama", layers=1), ReftConfig())
    trainer = Cfg(train_dataset=[1], model=model)
    plugin = ours.ReftPlugin()
    plugin.post_trainer_create(cfg(), trainer)
    assert trainer.create_model_card("x", tags=["y"]) is None
    assert len(plugin.add_callbacks_post_trainer(cfg(datasets=[{"path": "rows"}]), trainer)) == 1
    assert plugin.add_callbacks_post_trainer(cfg(adapter="lora"), trainer) == []
