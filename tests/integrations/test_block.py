"""The block `reft:` of other programs: what it takes, and what it refuses by name."""

from __future__ import annotations

from typing import Any

import pytest

from reftune import ReftuneError
from reftune.integrations.block import reft_config


def test_a_mapping_and_a_json_text_are_the_same() -> None:
    block = {"r": 2, "positions": "f1+l2", "layers": [0, -1], "alpha": None}
    one, other = reft_config(block), reft_config('{"r": 2, "positions": "f1+l2", "layers": [0, -1]}')
    assert one.to_dict() == other.to_dict()
    assert (one.task_type, one.r, one.positions) == ("CAUSAL_LM", 2, "f1+l2")
    # as YAML reads it
    assert reft_config({"alpha": "1e1"}).alpha == 10
    assert reft_config(None).to_dict() == reft_config({}).to_dict()


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        ({"rank": 4}, ("unknown keys 'rank'", "positions")),
        ({"task_type": "SEQ_CLS"}, ("unknown keys 'task_type'",)),
        ({"positions": "m3"}, ("reft:", "'m3'", "f7+l7")),
        ("{r: 4}", ("cannot be read", '"positions"')),
        ([4], ("[4]", "keys and values")),
    ],
)
def test_what_is_wrong_is_named(block: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(ReftuneError) as found:
        reft_config(block)
    assert all(part in str(found.value) for part in parts), found.value
