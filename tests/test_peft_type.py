"""The one member that is added to PEFT's closed enum."""

from __future__ import annotations

import copy
import json
import pickle
from enum import Enum

import peft
import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.peft_types import PeftType

from reftune import ReftConfig, ReftModel, register
from reftune.peft_type import NAME, PREFIX, REFT, extend_enum


def test_it_is_a_member_like_the_others() -> None:
    member = PeftType(NAME)
    assert member is REFT
    assert member is PeftType[NAME]
    assert member is getattr(PeftType, NAME)
    assert member in PeftType
    assert [m for m in PeftType if m.name == NAME] == [REFT]
    assert (member.name, member.value, str(member.value)) == (NAME, NAME, NAME)
    assert member == NAME
    assert hash(member) == hash(NAME)
    assert pickle.loads(pickle.dumps(member)) is member
    assert copy.deepcopy(member) is member
    assert json.dumps(member) == f'"{NAME}"'
    assert PeftType("LORA") is PeftType.LORA


def test_making_it_twice_gives_the_same() -> None:
    count = len(PeftType)
    assert extend_enum(PeftType, NAME) is REFT
    register()
    assert len(PeftType) == count


def test_a_member_that_another_made_is_refused() -> None:
    class Theirs(str, Enum):
        LORA = "LORA"
        REFT = "REFT"

    with pytest.raises(RuntimeError, match="REFT"):
        extend_enum(Theirs, "REFT")  # type: ignore[arg-type]
    assert len(Theirs) == 2


def test_an_enum_of_ones_own_can_be_extended() -> None:
    class Ours(str, Enum):
        LORA = "LORA"

    member = extend_enum(Ours, "NEW")  # type: ignore[arg-type]
    assert list(Ours) == [Ours.LORA, member]
    assert Ours("NEW") is member


def test_peft_knows_the_method() -> None:
    assert PEFT_TYPE_TO_CONFIG_MAPPING[REFT] is ReftConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[REFT] is ReftModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[REFT] == PREFIX
    assert isinstance(peft.get_peft_config({"peft_type": NAME}), ReftConfig)
    assert isinstance(peft.PeftConfig.from_peft_type(peft_type=NAME), ReftConfig)


def test_a_method_of_the_same_name_is_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    class Theirs(peft.PeftConfig):
        pass

    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, REFT, Theirs)
    with pytest.raises(RuntimeError, match="registered"):
        register()
    assert PEFT_TYPE_TO_CONFIG_MAPPING[REFT] is Theirs


def test_the_prefix_is_safe() -> None:
    assert "ref" not in PREFIX, "TRL calls its reference adapter so"
    assert all(PREFIX not in child for child in ("hidden_edit", "head_edit_0"))
