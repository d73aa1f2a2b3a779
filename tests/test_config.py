"""`ReftConfig`: what is saved comes back, what is wrong is refused when it is made."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftConfig, TaskType

from reftune import INTERVENTIONS, ReftConfig
from reftune.config import (
    COMPONENTS,
    INITS,
    TIES,
    ReftGroup,
    refuse_patterns,
    resolve_layers,
)
from reftune.values import literal_paths, literal_regex

EVERY_FIELD = {
    "task_type": TaskType.CAUSAL_LM,
    "base_model_name_or_path": "some/model",
    "revision": "main",
    "inference_mode": True,
    "r": 3,
    "layers": [1, -1, 0.5],
    "component": "attention_head[2]",
    "positions": "f2+l3",
    "tie": "none",
    "intervention": "direft",
    "dropout": 0.25,
    "act_fn": "silu",
    "init": "random",
    "init_weights": False,
    "form": "direct",
    "alpha": 2.5,
    "rms": True,
    "vector": "given",
    "unknown_prompt": "whole",
    "subspaces": [[0], [1, 2]],
    "active_subspaces": [1],
    "groups": [{"layers": [0], "positions": "f1", "tie": "all"}, {"layers": "1;2", "positions": "l1"}],
    "target_modules": r"model\.layers\.1",
    "exclude_modules": r"model\.layers\.3",
    "modules_to_save": ["score"],
}
OF_PEFT = {"peft_type", "auto_mapping", "peft_version"}


# What is saved ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:vector='given'")
def test_every_field_comes_back(tmp_path: Path) -> None:
    config = ReftConfig(**EVERY_FIELD)
    default = ReftConfig()
    same = {f.name for f in fields(config) if getattr(config, f.name) == getattr(default, f.name)}
    assert same == OF_PEFT, "a field was added: give it a value here"

    config.save_pretrained(str(tmp_path))
    assert PeftConfig.from_pretrained(str(tmp_path)) == config
    assert ReftConfig.from_pretrained(str(tmp_path)) == config


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"target_modules": ["a", "b"], "exclude_modules": ("c",)},
        {"layers": range(0, 6, 2)},
        {"layers": (3, 0.5)},
        {"layers": "all"},
        {"r": 4, "subspaces": ((0, 1), (2, 3)), "active_subspaces": (0,)},
        {"r": 4, "groups": ({"layers": (1, 2)}, {"layers": range(3, 5), "subspaces": ((0,), (1, 2, 3))})},
        {"intervention": "consreft"},
        {"modules_to_save": "lm_head"},
        {"modules_to_save": ("a", "b")},
        {"modules_to_save": {"b", "a"}},
        {"layers": {2, 1}},
        {"r": np.int64(2), "layers": np.array([0, 1]), "dropout": np.float32(0.5), "init_weights": np.bool_(True)},
        {"layers": [np.int64(1), np.float64(0.5), torch.tensor(3)], "target_modules": None},
        {"r": 4, "subspaces": np.array([[0, 1], [2, 3]]), "active_subspaces": np.arange(1), "positions": np.str_("f1")},
        {"groups": [{"r": np.int32(3), "layers": torch.arange(2)}]},
        {"target_modules": np.array(["a", "b"]), "exclude_modules": (np.str_("c"),)},
    ],
)
def test_forms_of_lists_come_back(given: dict[str, Any], tmp_path: Path) -> None:
    config = ReftConfig(**given)
    config.save_pretrained(str(tmp_path))
    assert PeftConfig.from_pretrained(str(tmp_path)) == config


def test_a_text_is_a_list_of_one() -> None:
    assert ReftConfig(modules_to_save="lm_head").modules_to_save == ["lm_head"]


def test_numbers_of_numpy_are_numbers() -> None:
    config = ReftConfig(
        r=np.int64(3), layers=np.array([0, 2]), groups=[{"layers": np.int64(1)}, {"dropout": np.float32(0)}]
    )
    assert type(config.r) is int and config.layers == [0, 2] and all(type(layer) is int for layer in config.layers)
    json.dumps(config.to_dict()["groups"])


@pytest.mark.parametrize("text, written", [("L1", "l1"), (" f01 + L7", "f1+l7"), ("Prompt", "prompt")])
def test_positions_are_saved_in_one_form(text: str, written: str) -> None:
    config = ReftConfig(positions=text, groups=[{"positions": text}, {"r": 1}])
    assert config.positions == written and config.groups == [{"positions": written}, {"r": 1}]
    assert config == ReftConfig(positions=written, groups=[{"positions": written}, {"r": 1}])


def test_the_default_starts_from_nothing_where_that_can_be() -> None:
    for name, kind in INTERVENTIONS.items():
        config = ReftConfig(intervention=name)
        assert config.init == ("zero" if kind.supports_zero(None) else "paper")
        assert config.form == ("delta" if name in ("loreft", "noreft") else "direct")
    assert (ReftConfig(act_fn="gelu").init, ReftConfig(act_fn="gelu").form) == ("paper", "direct")


@pytest.mark.parametrize("init", ["identity", "paper", "random"])
def test_a_file_from_before_there_were_forms_keeps_its_meaning(init: str, tmp_path: Path) -> None:
    groups = [{"layers": [0]}, {"layers": [1], "intervention": "noreft"}, {"layers": [2], "init": "paper"}]
    ReftConfig(init=init, groups=groups).save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    values = json.loads(path.read_text())
    old = {name: value for name, value in values.items() if name not in ("form", "alpha", "rms")}
    path.write_text(json.dumps(old))
    for found in (ReftConfig.from_pretrained(str(tmp_path)), PeftConfig.from_pretrained(str(tmp_path))):
        assert isinstance(found, ReftConfig)
        assert [(group.form, group.alpha, group.rms) for group in found.resolved_groups()] == [
            ("direct", None, False)
        ] * 3


def test_the_form_of_each_group() -> None:
    groups = [{"layers": 0}, {"layers": 1, "intervention": "direft"}, {"layers": 2, "init": "paper"}]
    groups += [{"layers": 3, "init": "paper", "form": "delta"}, {"layers": 4, "act_fn": "gelu"}]
    found = ReftConfig(groups=groups).resolved_groups()
    assert [group.form for group in found] == ["delta", "direct", "direct", "delta", "direct"]
    assert [group.init for group in found] == ["zero", "zero", "paper", "paper", "paper"]


def test_init_weights_false_is_a_random_start() -> None:
    config = ReftConfig(init_weights=False, groups=[{"layers": 0}, {"layers": 1, "act_fn": "relu"}])
    assert [group.init for group in config.resolved_groups()] == ["random", "random"]


def test_an_unknown_key_in_the_file_is_reported(tmp_path: Path) -> None:
    ReftConfig().save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "from_the_future": 1}))
    with pytest.warns(UserWarning, match="from_the_future"):
        PeftConfig.from_pretrained(str(tmp_path))


# Groups ---------------------------------------------------------------------------------------------


def test_groups_override_only_what_they_name() -> None:
    config = ReftConfig(
        r=2, positions="l1", groups=[{"layers": [0], "r": 5}, {"layers": [1], "intervention": "consreft"}]
    )
    first, second = config.resolved_groups()
    assert (first.r, first.positions, first.layers, first.init) == (5, "l1", [0], "zero")
    assert (second.r, second.intervention, second.init) == (2, "consreft", "paper")


def test_a_group_is_all_of_the_fields_that_it_may_name() -> None:
    names = {f.name for f in fields(ReftGroup)}
    assert names <= {f.name for f in fields(ReftConfig)}
    for name in names - {"layers", "subspaces", "active_subspaces"}:
        value = getattr(ReftConfig(), name)
        assert getattr(ReftConfig(groups=[{name: value}]).resolved_groups()[0], name) == value


def test_active_rows() -> None:
    config = ReftConfig(r=4, subspaces=[[0], [1, 3], [2]], active_subspaces=[1, 2])
    assert config.resolved_groups()[0].active_rows == {1, 2, 3}
    assert ReftConfig(r=3).resolved_groups()[0].active_rows == {0, 1, 2}


# What is wrong ---------------------------------------------------------------------------------------------

WRONG = [
    # field, bad value, what the message must tell of what is valid
    ("r", 0, "at least 1"),
    ("r", 2.5, "at least 1"),
    ("r", True, "at least 1"),
    ("r", "4", "at least 1"),
    ("layers", "3;x", "fraction"),
    ("layers", "", "fraction"),
    ("layers", [], "fraction"),
    ("layers", 1.5, "fraction"),
    ("layers", True, "fraction"),
    ("layers", [[1]], "fraction"),
    ("layers", {"a": 1}, "fraction"),
    ("component", "mlp", "mlp_output"),
    ("component", "attention_head", "attention_head[i]"),
    ("component", 3, "block_output"),
    ("positions", "first", "f<p>"),
    ("positions", "f1l1", "f<p>"),
    ("positions", 7, "f<p>"),
    ("positions", None, "f<p>"),
    ("tie", "some", "group"),
    ("tie", ["all"], "group"),
    ("intervention", "lora", "loreft"),
    ("intervention", ["loreft"], "loreft"),
    ("dropout", 1.0, "from 0"),
    ("dropout", -0.1, "from 0"),
    ("dropout", "0.1", "from 0"),
    ("act_fn", "swish", "silu"),
    ("act_fn", ["silu"], "silu"),
    ("init", "zeros", "paper"),
    ("init_weights", "gaussian", "True or False"),
    ("vector", "fixed", "learned"),
    ("subspaces", [[0], [1]], "0..7"),
    ("subspaces", [[0, 1], [1, 2, 3]], "0..7"),
    ("subspaces", [[0, 1, 2, 3], []], "0..7"),
    ("subspaces", 4, "0..7"),
    ("active_subspaces", [0], "needs subspaces"),
    ("groups", [], "list of dicts"),
    ("groups", {"layers": 1}, "list of dicts"),
    ("groups", [{"rank": 1}], "layers"),
    ("groups", ["loreft"], "layers"),
    ("target_modules", 3, "list of names"),
    ("exclude_modules", [3], "list of names"),
    ("modules_to_save", 3, "list of names"),
    ("modules_to_save", "", "list of names"),
    ("modules_to_save", ["lm_head", ""], "list of names"),
    ("target_modules", [""], "list of names"),
    ("exclude_modules", {"a": 1}, "list of names"),
    ("groups", "l1", "list of dicts"),
    ("positions", "f1" + "0" * 9, "1048576"),
    ("component", "attention_head[1234567]", "attention_head[i]"),
    ("layers", "1" * 10, "fraction"),
]


@pytest.mark.parametrize("name, bad, valid", WRONG, ids=[f"{name}={bad!r}" for name, bad, _ in WRONG])
def test_a_wrong_value_is_refused_and_quoted(name: str, bad: Any, valid: str) -> None:
    with pytest.raises(ValueError) as error:
        ReftConfig(**{name: bad})
    message = str(error.value)
    assert name in message
    assert valid in message
    shown = sorted(bad[0]) if name == "groups" and bad and isinstance(bad, list) and isinstance(bad[0], dict) else bad
    assert (repr(shown) if not isinstance(shown, str) else shown) in message


def nested(depth: int) -> list[Any]:
    found: list[Any] = [1]
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    "bad", [nested(500), nested(100_000), 10**5000, [[10**5000]]], ids=["500", "100000", "int", "ints"]
)
@pytest.mark.parametrize(
    "name", ["r", "layers", "subspaces", "active_subspaces", "groups", "target_modules", "dropout"]
)
def test_what_is_far_too_deep_or_large_is_refused_by_name(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=name) as error:
        ReftConfig(**{name: bad})
    assert len(str(error.value)) < 500


def test_a_huge_rank_takes_no_room() -> None:
    with pytest.raises(ValueError, match="not a partition"):
        ReftConfig(r=2**31 - 1, subspaces=[[0]])


@pytest.mark.parametrize("name, bad, valid", [w for w in WRONG if w[0] in {"r", "tie", "positions", "component"}])
def test_groups_are_checked_too(name: str, bad: Any, valid: str) -> None:
    with pytest.raises(ValueError, match=name):
        ReftConfig(groups=[{"layers": 0}, {"layers": 1, name: bad}])


@pytest.mark.parametrize("chosen", [[], [2], [-1], 0, [[0]], ["0"]])
def test_active_subspaces_are_indices_of_subspaces(chosen: Any) -> None:
    with pytest.raises(ValueError, match=r"active_subspaces=.*0\.\.1"):
        ReftConfig(r=4, subspaces=[[0], [1, 2, 3]], active_subspaces=chosen)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"init": "identity", "intervention": "consreft"}, "cannot be the identity"),
        ({"init": "identity", "act_fn": "relu"}, "cannot be the identity"),
        ({"init": "zero", "act_fn": "relu"}, "cannot be the identity"),
        ({"form": "delta", "intervention": "direft"}, "of loreft and noreft"),
        ({"form": "delta", "act_fn": "gelu"}, "act_fn='gelu'"),
        ({"alpha": 0}, "alpha=0 is not valid"),
        ({"alpha": "8"}, "alpha='8' is not valid"),
        ({"alpha": True}, "alpha=True is not valid"),
        ({"alpha": float("nan")}, "alpha=nan is not valid"),
        ({"rms": 1}, "rms=1 is not valid"),
        ({"init": "identity", "init_weights": False}, "init='random'"),
        ({"positions": "all", "tie": "none"}, "use tie='all'"),
        ({"positions": "prompt", "tie": "group"}, "use tie='all'"),
        ({"intervention": "red", "subspaces": [[0, 1, 2, 3]]}, "no rank"),
        ({"layers": [1], "target_modules": ["lin0"]}, "both say what is edited"),
        ({"layers": [1], "target_modules": "q_proj"}, "both say what is edited"),
        ({"layers": [1], "target_modules": "all-linear"}, "both say what is edited"),
        ({"layers": [1], "target_modules": r"model\.layers\.\d"}, "both say what is edited"),
        ({"layers": 0, "target_modules": ["lin0"]}, "both say what is edited"),
        ({"groups": [{"layers": 0}], "target_modules": "lin0"}, "both say what is edited"),
        ({"component": "mlp_output", "target_modules": ["lin0"]}, "leave one of the two out"),
        ({"groups": [{"r": 1}, {"component": "mlp_output"}], "target_modules": "lin0"}, "leave one of the two out"),
        ({"exclude_modules": ["b"], "target_modules": ["a", "b"]}, r"both name \['b'\]"),
        ({"groups": [{"layers": 1}], "target_modules": ["lin0"]}, "both say what is edited"),
        ({"task_type": "TRANSLATION"}, "Invalid task type"),
    ],
)
def test_combinations_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReftConfig(**given)


@pytest.mark.parametrize("given, name", [({"positions": "f0"}, "positions"), ({"vector": "given"}, "vector")])
def test_an_option_without_effect_warns(given: dict[str, Any], name: str) -> None:
    with pytest.warns(UserWarning, match=f"{name}=.*(no effect|no token)"):
        ReftConfig(**given)


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("tie", TIES)
def test_every_component_and_tie_is_valid(component: str, tie: str) -> None:
    group = ReftConfig(component=component.replace("[i]", "[3]"), positions="f1+l1", tie=tie).resolved_groups()[0]
    assert group.head == (3 if "[" in component else None)
    assert group.tie == tie


@pytest.mark.parametrize("init", INITS)
def test_every_init_is_valid(init: str) -> None:
    assert ReftConfig(init=init).resolved_groups()[0].options.init == init


# Layers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layers, count, wanted",
    [
        ("all", 3, [0, 1, 2]),
        ("ALL ", 2, [0, 1]),
        (0, 5, [0]),
        (-1, 5, [4]),
        (0.5, 30, [15]),
        (0.5, 5, [2]),
        (0.0, 4, [0]),
        (1.0, 4, [3]),
        ([3, 0, -1], 5, [0, 3, 4]),
        ([0, 0.5], 8, [0, 4]),
        ("3;9;18;24", 32, [3, 9, 18, 24]),
        ("3, 9", 10, [3, 9]),
        ("-2;0.5", 10, [5, 8]),
        (["1;2", 4], 6, [1, 2, 4]),
    ],
)
def test_layers(layers: Any, count: int, wanted: list[int]) -> None:
    assert resolve_layers(layers, count) == wanted
    assert ReftConfig(layers=layers).layers == ("all" if layers == "ALL " else layers)


@pytest.mark.parametrize("layers, message", [(5, "0..4"), (-6, "0..4"), ("1;9", "layer 9"), ([0, -5], "twice")])
def test_layers_that_the_model_does_not_have(layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_layers(layers, 5)


# Patterns of a file ---------------------------------------------------------------------------------------------

HANGS = ".*" * 14 + "z"


@pytest.mark.parametrize("paths", [["model.layers.1"], ["h.0.attn", "h.1.attn"], ["lm_head"], ["a-b.0_c"]])
def test_what_we_write_is_read_as_paths(paths: list[str]) -> None:
    assert literal_paths(literal_regex(paths)) == paths
    refuse_patterns(ReftConfig(target_modules=literal_regex(paths), exclude_modules=literal_regex(paths)))


@pytest.mark.parametrize(
    "text",
    [
        HANGS,
        "(a|a)*b",
        "a.b",
        "a+",
        "a|",
        "|a",
        "",
        r"a\.",
        r"\.a",
        r"a\\.b",
        r"\w",
        "a\nb",
        "a b",
        "[a]",
        "a||b",
        r"a\|b",
        "é",
    ],
)
def test_another_regex_is_not_ours(text: str) -> None:
    assert literal_paths(text) is None


@pytest.mark.parametrize("name", ["target_modules", "exclude_modules", "modules_to_save"])
def test_a_pattern_that_hangs_is_refused_by_name(name: str) -> None:
    config = ReftConfig(**{name: [HANGS] if name == "modules_to_save" else HANGS})
    with pytest.raises(ValueError, match=name):
        refuse_patterns(config)


def test_lists_are_names_not_patterns() -> None:
    refuse_patterns(
        ReftConfig(target_modules=[HANGS], exclude_modules=[f"{HANGS}+"], modules_to_save=["model.lm_head"])
    )
