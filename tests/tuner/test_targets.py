"""No name in a configuration is dropped in silence, and what is saved names paths only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from torch import nn

from reftune import ReftConfig
from reftune.config import refuse_patterns
from reftune.values import literal_paths
from tests.models import tiny_model

from .adapters import adapted, config, logits


def edited(model: Any) -> set[str]:
    """Paths, within the base model, of the modules that are edited."""
    names = (name for name, _ in model.named_parameters() if "intervention_" in name)
    return {name.removeprefix("base_model.model.").split(".hidden_edit")[0] for name in names}


BLOCK = "model.layers.1"

REFUSED = [
    # a module that is saved whole holds an edited one
    ({"layers": [0, 1], "modules_to_save": ["layers.1"]}, f"modules_to_save=.*'{BLOCK}' whole.*'{BLOCK}'"),
    ({"layers": [0, 1], "modules_to_save": "layers.1"}, "would be dropped"),
    ({"modules_to_save": ["layers.1"]}, "would be dropped"),
    ({"modules_to_save": ["layers"]}, "'model.layers' whole"),
    ({"modules_to_save": ["model"]}, "'model' whole"),
    ({"modules_to_save": ["ayers.1"]}, "would be dropped"),
    ({"layers": [1], "component": "mlp_output", "modules_to_save": ["mlp"]}, "would be dropped"),
    ({"layers": [1], "component": "mlp_output", "modules_to_save": ["layers.1"]}, "would be dropped"),
    ({"layers": [1], "component": "attention_head[0]", "modules_to_save": ["self_attn"]}, "would be dropped"),
    ({"groups": [{"layers": 0}, {"layers": 1}], "modules_to_save": ["layers.1"]}, "would be dropped"),
    ({"target_modules": ["q_proj"], "modules_to_save": ["layers.1"]}, "would be dropped"),
    ({"target_modules": ["lm_head"], "modules_to_save": ["lm_head"]}, "would be dropped"),
    ({"target_modules": r".*\.q_proj", "modules_to_save": ["self_attn"]}, "would be dropped"),
    ({"target_modules": "all-linear", "modules_to_save": ["layers.0"]}, "would be dropped"),
    # names of nothing
    ({"modules_to_save": ["lm_head", "lm_haed"]}, "modules_to_save names 'lm_haed'"),
    ({"modules_to_save": ["classifier"]}, "modules_to_save names 'classifier'"),
    ({"target_modules": ["q_proj", "qproj"]}, r"target_modules names \['qproj'\]"),
    ({"target_modules": "qproj"}, "not found"),
    # what is excluded is named
    ({"layers": [0, 1], "exclude_modules": ["layers.1"]}, f"names '{BLOCK}'.*exclude_modules"),
    ({"layers": [0, 1], "exclude_modules": r".*\.1"}, f"names '{BLOCK}'.*exclude_modules"),
    ({"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*k_proj"}, r"names \['k_proj'\], but exclude"),
    # layers and modules that contradict each other
    ({"layers": [1], "target_modules": r"model\.layers\.0"}, "names others"),
    ({"layers": "all", "target_modules": r"model\.layers\.0"}, "names others"),
]


@pytest.mark.parametrize("fields, message", REFUSED, ids=[str(fields) for fields, _ in REFUSED])
def test_what_would_be_dropped_is_refused(fields: dict[str, Any], message: str) -> None:
    base = tiny_model("llama", layers=2)
    names = [name for name, _ in base.named_parameters()]
    with pytest.raises(ValueError, match=message) as error:
        peft.get_peft_model(base, config(**fields))
    assert len(str(error.value)) < 1000
    assert [name for name, _ in base.named_parameters()] == names, "a refused adapter leaves nothing behind"


@pytest.mark.parametrize(
    "fields, wanted",
    [
        ({"layers": [0], "modules_to_save": ["lm_head"]}, {"model.layers.0"}),
        ({"layers": [0], "modules_to_save": "lm_head"}, {"model.layers.0"}),
        ({"layers": [1], "modules_to_save": ["layers.0.mlp"]}, {BLOCK}),
        ({"layers": [0, 1], "modules_to_save": ["mlp"]}, {"model.layers.0", BLOCK}),
        ({"layers": [0], "modules_to_save": ["layers.1"]}, {"model.layers.0"}),
        ({"exclude_modules": ["layers.1"]}, {"model.layers.0"}),
        ({"exclude_modules": r".*\.1"}, {"model.layers.0"}),
        ({"exclude_modules": ["layers.1"], "modules_to_save": ["layers.1"]}, {"model.layers.0"}),
        (
            {"target_modules": r".*\.[qk]_proj", "exclude_modules": r".*\.1\..*"},
            {"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"},
        ),
        ({"target_modules": ["norm", "layers.1"]}, {"model.norm", BLOCK}),
        ({"target_modules": ["embed_tokens"]}, {"model.embed_tokens"}),
        ({"target_modules": r"model\.layers\.1"}, {BLOCK}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_what_is_saved_is_what_was_edited(fields: dict[str, Any], wanted: set[str], tmp_path: Path) -> None:
    model = adapted(**fields)
    assert edited(model) == wanted
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "intervention_" not in name}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter.add_(torch.randn_like(parameter) / 10)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    for name in ("target_modules", "exclude_modules"):
        assert not isinstance(saved[name], str) or literal_paths(saved[name]), "a file holds paths only"
    again = PeftModel.from_pretrained(tiny_model("llama", layers=2), str(tmp_path)).eval()
    refuse_patterns(again.peft_config["default"])
    assert edited(again) == wanted
    assert torch.equal(logits(again), logits(model))
    again.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text()) == saved


def test_modules_to_save_as_a_text_trains_one_module() -> None:
    model = adapted(modules_to_save="lm_head")
    trained = [name for name, p in model.named_parameters() if p.requires_grad and "intervention_" not in name]
    assert trained == ["base_model.model.lm_head.modules_to_save.default.weight"]


def test_an_exclusion_without_effect_warns() -> None:
    with pytest.warns(UserWarning, match=r"exclude_modules=\{'mlp'\} leaves out nothing that is edited"):
        adapted(exclude_modules=["mlp"])


def test_a_configuration_can_be_used_again() -> None:
    for fields in ({"layers": -1}, {"layers": "all"}, {"target_modules": r"model\.layers\.\d"}):
        chosen = config(**fields)
        for depth in (2, 4):
            model = peft.get_peft_model(tiny_model("llama", layers=depth), chosen)
            last = f"model.layers.{depth - 1}"
            assert edited(model) == (
                {last} if fields == {"layers": -1} else {f"model.layers.{i}" for i in range(depth)}
            )


def test_an_adapter_of_other_layers_is_refused_on_a_deeper_base(tmp_path: Path) -> None:
    for fields in ({"layers": -1}, {"layers": "all"}):
        adapted(**fields).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="the model that the adapter was made for"):
            PeftModel.from_pretrained(tiny_model("llama", layers=3), str(tmp_path))


def test_heads_that_peft_adds_need_not_be_there() -> None:
    model = adapted("bert", modules_to_save=["pooler"])
    assert model.peft_config["default"].modules_to_save == ["pooler", "classifier", "score"]


def test_a_second_adapter_sees_the_modules_of_the_base() -> None:
    model = adapted(layers=[0])
    model.add_adapter("other", config(target_modules=["norm", "q_proj"], exclude_modules=r".*\.0\..*"))
    assert edited(model) == {"model.layers.0", "model.norm", "model.layers.1.self_attn.q_proj"}


def test_models_that_are_not_of_transformers() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    with pytest.raises(ValueError, match="would be dropped"):
        peft.get_peft_model(model, ReftConfig(target_modules=["0"], modules_to_save=["0"]))
