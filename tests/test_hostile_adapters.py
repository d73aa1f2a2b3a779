"""Adapters that were written to do harm, or at random: loading succeeds or says in one line what is wrong.

Must not know: how an adapter is read.
"""

from __future__ import annotations

import json
import math
import struct
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save

from reftune import ReftuneError
from reftune.adapter_files import adapter_config
from reftune.models import put_adapter
from tests.models import tiny_model
from tests.tuner.adapters import adapted

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

HANGS = ".*" * 14 + "z"
SECONDS = 20.0


def written() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The content of a good adapter."""
    with tempfile.TemporaryDirectory() as folder:
        model = adapted(positions="f1+l1", tie="group", layers=[0, 1])
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "adapter_config.json").read_text())

    return config, {k: v.contiguous() for k, v in get_peft_model_state_dict(model).items()}


BASE = tiny_model("llama", layers=2)
CONFIG, TENSORS = written()
GOOD = save(TENSORS)
HEADER_END = 8 + struct.unpack("<Q", GOOD[:8])[0]
HEADER = json.loads(GOOD[8:HEADER_END])


def load(config: bytes, weights: bytes, base: Any = None) -> PeftModel | str:
    """The model, or the message; an error of another kind, or a long wait, fails the test.

    Where no model can come of it, `base` need not be fresh.
    """
    started = time.process_time()
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        folder = Path(place)
        (folder / "adapter_config.json").write_bytes(config)
        (folder / "adapter_model.safetensors").write_bytes(weights)
        found: PeftModel | str
        try:
            found = put_adapter(base or tiny_model("llama", layers=2), folder, adapter_config(folder), name="base")
        except ReftuneError as error:
            found = str(error)
            assert str(folder) in found
            assert "\n" not in found and len(found) < 2000
        assert time.process_time() - started < SECONDS
    return found


def as_json(values: Any) -> bytes:
    return json.dumps(values).encode()


# --- configurations ---------------------------------------------------------------------------------------------------

ODD: list[Any] = [None, True, False, 0, -1, 1, 2, 7, 10**6, 2**31 - 1, 2**31, 10**4000, 0.5, -0.0, 1e308]
ODD += [float("nan"), float("inf")]
ODD += ["", " ", "a", "all", "l1", "L1", "f1+l1", "f99999", "f1048576+l1048576", "f" + "9" * 5000, "1;2", "0.5", "-1"]
ODD += [
    "lm_head",
    "layers.1",
    "model",
    "q_proj",
    "all-linear",
    HANGS,
    "(a|a)*$",
    "(",
    "\\",
    "\x00",
    "\ud800",
    "é" * 3000,
]
ODD += ["loreft", "red", "steer", "consreft", "given", "none", "group", "random", "identity", "mlp_output", "silu"]
ODD += ["attention_head[0]", "attention_head[99999999]", "SEQ_CLS", "QUESTION_ANS", "SEQ_2_SEQ_LM", "TOKEN_CLS", "REFT"]
ODD += ["é" * 3000, "FEATURE_EXTRACTION", "LORA", "IA3", "PROMPT_TUNING", "XLORA"]
ODD += [[], {}, [[]], [0], [1, 1], [0, 1], [[0], [1]], ["lm_head"], [HANGS], [""], ["layers.1"], ["norm"], [None], [{}]]
ODD += [{"layers": 0}, [{"layers": 0}], [{"layers": 0, "tie": "none", "positions": "f9999"}], [{"r": 1}] * 2000]
ODD += [[{"positions": "f1"}, {"positions": "l1"}], [{"positions": "f0", "tie": "none"}] * 20_000]
ODD += [list(range(50_000)), ["norm"] * 50_000, [f"n{i}" for i in range(50_000)], "|".join(["a"] * 50_000)]
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 100), st.floats(), st.text(max_size=8), st.sampled_from(ODD)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=2)),
    max_leaves=6,
)
names = st.one_of(st.sampled_from(sorted(CONFIG)), st.sampled_from(["layers", "target_modules", "groups", "new_field"]))


@settings(max_examples=350)
@given(st.dictionaries(names, st.one_of(st.sampled_from(ODD), json_values), min_size=1, max_size=3), st.booleans())
def test_a_configuration_with_odd_values(changed: dict[str, Any], without_layers: bool) -> None:
    config = {**CONFIG, **changed}
    if without_layers:
        config["layers"] = changed.get("layers")
    load(as_json(config), GOOD)


@settings(max_examples=200)
@given(st.binary(max_size=60) | json_values.map(as_json) | st.integers(0, 500).map(lambda n: as_json(CONFIG)[:n]))
def test_any_bytes_as_a_configuration(content: bytes) -> None:
    assert isinstance(load(content, GOOD, BASE), str)


@pytest.mark.parametrize(
    "content",
    [
        b" " * 50_000_000 + as_json(CONFIG),
        b"[" * 200_000,
        b'{"a":' * 200_000,
        as_json(CONFIG)[:-1] + b', "r": ' + b"9" * 5000 + b"}",
        as_json(CONFIG)[:-1] + b', "groups": ' + b"[" * 900 + b"]" * 900 + b"}",
        as_json({**CONFIG, "layers": None, "target_modules": HANGS}),
        as_json({**CONFIG, "exclude_modules": HANGS}),
        as_json({**CONFIG, "modules_to_save": [HANGS]}),
        as_json({**CONFIG, "r": 2**31 - 1, "subspaces": [[0]]}),
        as_json({**CONFIG, "positions": "f1048576", "tie": "none"}),
    ],
    ids=["large", "lists", "objects", "digits", "deep", "target", "exclude", "save", "rank", "units"],
)
def test_what_would_hang_or_fill_the_memory(content: bytes) -> None:
    assert isinstance(load(content, GOOD), str)


# --- weights ----------------------------------------------------------------------------------------------------------


def weights(header: Any, data: bytes = GOOD[HEADER_END:], length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else as_json(header)
    return struct.pack("<Q", len(text) if length is None else length) + text + data


KEYS = sorted(HEADER)
NEW = ["", "a", "base_model.model.lm_head.weight", "base_model.model.model.norm.weight", "é", "\x00", "a" * 9999]
SIZES = {"F64": 8, "F32": 4, "I64": 8, "F16": 2, "BOOL": 1, "C64": 8, "F8_E4M3": 1}
DTYPES = [*SIZES, "BF16", "U8", "F8_E8M0", "F4", "U16", "X", ""]
numbers = st.sampled_from([-1, 0, 1, 2, 32, 64, 256, 2**31, 2**40, 2**63 - 1, 2**64, 10**30, 0.5])
entries = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(DTYPES),
            "shape": st.lists(numbers, max_size=3),
            "data_offsets": st.lists(numbers, min_size=0, max_size=3),
        }
    ),
    json_values,
)


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from([*KEYS, *NEW, "__metadata__"]), entries, min_size=1, max_size=3))
def test_a_header_with_odd_entries(changed: dict[str, Any]) -> None:
    load(as_json(CONFIG), weights({**HEADER, **changed}))


def _offsets(chosen: dict[str, tuple[str, list[int]]]) -> tuple[dict[str, Any], bytes]:
    header, at = {}, 0
    for name, (dtype, shape) in chosen.items():
        size = math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return header, bytes(at)


shapes = st.tuples(st.sampled_from(sorted(SIZES)), st.lists(st.sampled_from([0, 1, 2, 32]), max_size=3))


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from([*KEYS, *NEW]), shapes, max_size=8), st.booleans())
def test_tensors_of_other_types_and_shapes(chosen: dict[str, tuple[str, list[int]]], all_keys: bool) -> None:
    own = {key: ("F32", HEADER[key]["shape"]) for key in KEYS if all_keys}
    load(as_json(CONFIG), weights(*_offsets({**own, **chosen})))


@settings(max_examples=100)
@given(st.one_of(st.binary(max_size=80), st.integers(0, len(GOOD) - 1).map(lambda n: GOOD[:n])))
def test_any_bytes_as_weights(content: bytes) -> None:
    assert isinstance(load(as_json(CONFIG), content, BASE), str)


def _lengths() -> Iterator[bytes]:
    for length in (2**63, 2**64 - 1, 10**9, 100_000_001, len(GOOD), 0):
        yield weights(HEADER, length=length)
    yield weights(b"[" * 200_000)
    yield weights(b'{"a": ' + b"9" * 5000 + b"}")


@pytest.mark.parametrize("content", list(_lengths()), ids=range(8))
def test_headers_that_claim_too_much(content: bytes) -> None:
    assert isinstance(load(as_json(CONFIG), content, BASE), str)


def test_the_good_one_is_loaded() -> None:
    assert isinstance(load(as_json(CONFIG), GOOD), PeftModel)
