"""Folders from strangers: each is served or refused in our own words, and none costs more than a message."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from reftune import ReftConfig
from reftune.config import GROUP_FIELDS
from reftune.data.style import PromptStyle
from reftune.errors import DataError
from reftune.interventions import INTERVENTIONS
from reftune.serving import AdapterError, read_adapter
from reftune.serving.embedded.sites import ModelSites, Prepared
from reftune.serving.folded import fold_adapter
from reftune.serving.plans import most_sets
from reftune.serving.tensors import HEADER_LIMIT, NAME_LIMIT
from tests.serving.folders import KINDS, adapted, save_adapters, text_model

CONFIG, WEIGHTS, STYLE = "adapter_config.json", "adapter_model.safetensors", "reftune.json"
EVIL = ".*" * 14 + "z"
# about a thousand cases together
FUZZ = settings(
    max_examples=500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def sites() -> ModelSites:
    return ModelSites(text_model())


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapters(tmp_path_factory.mktemp("hostile"), {"two": KINDS["two"]})["two"]


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "adapter"))


def serve(sites: ModelSites, folder: Path) -> Prepared:
    """All that servers do with a folder before an adapter is on a model."""
    files, style = read_adapter(folder), PromptStyle.read(folder)
    try:
        folded = fold_adapter(files, layers=2, width=32, prefix="model.layers")
        assert most_sets(folded.sites) and folded.rank >= 0
    except AdapterError:
        # vLLM's takes fewer kinds
        pass
    return sites.prepare(files, style)


def is_served(sites: ModelSites, folder: Path) -> bool:
    try:
        serve(sites, folder)
    except (AdapterError, DataError) as error:
        # it can be sent, and read
        assert len(str(error).encode()) < 3000
        return False
    return True


# --- anything at all --------------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from([0, 1, -1, 2, 4, 10**9, 10**300, -(10**9), 0.5, 1e308, float("nan"), float("inf")])
WORDS = ("all", "f1", "l1", "f2+l1", "prompt", "response", "f1000+l1000", "0;1", "-1", "0.5", "../..", "none", "group")
WORDS += ("block_output", "attention_head[1]", "mlp_output", "identity", "random", "relu", "REFT", "LORA", "CAUSAL_LM")
WORDS += ("messages", "instruction")
LONG = ["x" * 9000, f"f{'9' * 5000}", f"attention_head[{'9' * 4000}]", EVIL, "\ud800", "\0", ""]
TEXTS = st.sampled_from([*INTERVENTIONS, *KINDS, *WORDS, *LONG])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(GROUP_FIELDS) | st.text(), inner),
    max_leaves=12,
)
KNOWN = [*(field.name for field in fields(ReftConfig)), "groups", "r"]
FIELDS = st.sampled_from(KNOWN) | st.text(max_size=3)


@FUZZ
@given(changes=st.dictionaries(FIELDS, VALUES, max_size=3), style=st.none() | VALUES | st.dictionaries(TEXTS, VALUES))
def test_configurations(sites: ModelSites, good: Path, changes: dict[str, Any], style: Any) -> None:
    before = json.loads((good / CONFIG).read_text())
    try:
        (good / CONFIG).write_text(json.dumps({**before, **changes}))
        if style is not None:
            (good / STYLE).write_text(json.dumps(style))
        is_served(sites, good)
    finally:
        (good / CONFIG).write_text(json.dumps(before))
        (good / STYLE).unlink(missing_ok=True)


KEYS = st.sampled_from(
    [
        f"base_model.model.model.layers.{layer}.{child}.intervention_{unit}.{name}"
        for layer in ("0", "1", "2", "01", "x", "9" * 400)
        for child in ("hidden_edit", "head_edit_0", "head_edit_00", "self_attn.hidden_edit")
        for unit in ("0", "1", "00", "9" * 5000)
        for name in ("R", "W", "dW", "b", "R.default")
    ]
)
SIZES = st.sampled_from([0, 1, 2, 31, 32, 2**31, 2**62, -1, True, 1.5, None, "3"])
ENTRIES = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "F8_E4M3", "", None, 5])},
    optional={
        "shape": st.lists(SIZES, max_size=3) | VALUES,
        "data_offsets": st.lists(SIZES | st.integers(0, 4000), min_size=2, max_size=2) | VALUES,
        "more": VALUES,
    },
)


@FUZZ
@given(data=st.data())
def test_headers(sites: ModelSites, good: Path, data: st.DataObject) -> None:
    before = (good / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", before[:8])
    header = json.loads(before[8 : 8 + length])
    for name in data.draw(st.lists(st.sampled_from(sorted(set(header) - {"__metadata__"})), max_size=2)):
        # another name, type, shape or place of a tensor that there is
        entry = {**header.pop(name, {}), **data.draw(st.just({}) | ENTRIES)}
        header[data.draw(st.just(name) | KEYS | st.text(max_size=4))] = entry
    header.update(data.draw(st.dictionaries(KEYS, ENTRIES, max_size=2)))
    text = json.dumps(header).encode()
    size = data.draw(st.just(len(text)) | st.sampled_from([0, 7, len(text) - 1, len(text) + 1, 2**40, 2**63]))
    numbers = before[8 + length :]
    cut = data.draw(st.just(len(numbers)) | st.integers(0, len(numbers)))
    try:
        (good / WEIGHTS).write_bytes(struct.pack("<Q", size) + text + numbers[:cut] + data.draw(st.binary(max_size=3)))
        is_served(sites, good)
    finally:
        (good / WEIGHTS).write_bytes(before)


# --- what was thought of ----------------------------------------------------------------------------------------------


def change(folder: Path, **values: Any) -> None:
    (folder / CONFIG).write_text(json.dumps({**json.loads((folder / CONFIG).read_text()), **values}))


def head(header: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header)


def as_folder(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()


def many_tensors(folder: Path) -> None:
    name = "base_model.model.model.layers.0.hidden_edit.intervention_{}.R"
    (folder / WEIGHTS).write_bytes(save({name.format(i): torch.ones(1, 1 + i % 300) for i in range(4000)}))


GROUP = {"layers": [0], "positions": "f1"}
DEEP = ("[" * 200_000).encode()
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a folder for weights": (lambda f: as_folder(f, WEIGHTS), "not a regular file"),
    "a folder for the configuration": (lambda f: as_folder(f, CONFIG), "not a regular file"),
    "a folder for the style": (lambda f: as_folder(f, STYLE), "not a file"),
    "a long configuration": (lambda f: change(f, target_modules="x" * 300_000), "more than the 262144"),
    "a long style": (lambda f: (f / STYLE).write_text(" " * 100_000), "more than 65536"),
    "a long header": (head(b" " * (HEADER_LIMIT + 1)), f"more than the {HEADER_LIMIT}"),
    "a deep header": (head(DEEP), "header is not JSON"),
    "a deep style": (lambda f: (f / STYLE).write_bytes(DEEP[:50_000]), STYLE),
    "a long number": (lambda f: (f / CONFIG).write_text('{"r": ' + "9" * 5000 + "}"), "cannot be read"),
    "a long name": (head(json.dumps({"x" * 600: {}}).encode()), f"longer than {NAME_LIMIT}"),
    "a name twice": (head(b'{"a": {}, "a": {}}'), "twice"),
    "a rank": (lambda f: change(f, r=10**9), "r=1000000000 is more than the 16384"),
    "a rank of a group": (lambda f: change(f, groups=[{**GROUP, "r": 10**9, "subspaces": [[0]]}]), "r=1000000000"),
    "positions": (lambda f: change(f, groups=None, layers="all", positions="f100000"), "2048 positions"),
    "positions in parts": (lambda f: change(f, groups=[{**GROUP, "positions": "f900"}] * 3), "2048 positions"),
    "a Φ for each position": (lambda f: change(f, groups=None, layers="all", positions="f2000", tie="none"), "512"),
    "groups": (lambda f: change(f, groups=[GROUP] * 1000), "1000 groups are more than the 128"),
    "layers": (lambda f: change(f, layers=list(range(5000))), "layers has 5000 entries"),
    "values": (lambda f: change(f, groups=[{"layers": [0] * 1000}] * 50), "more than the 8192"),
    "a text": (lambda f: change(f, positions="f" * 5000), "positions has 5000 characters"),
    "overlapping groups": (lambda f: change(f, groups=[GROUP, GROUP, {"layers": [1], "positions": "l1"}]), "overlap"),
    "shapes": (many_tensors, "different shapes"),
    "a head": (lambda f: change(f, groups=None, layers=[0], component=f"attention_head[{'9' * 4000}]"), "head"),
    "system": (lambda f: (f / STYLE).write_text('{"style": "messages", "system": 5}'), "system=5"),
    "a style": (lambda f: (f / STYLE).write_text('{"style": ["messages"]}'), STYLE),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(sites: ModelSites, folder: Path, what: str) -> None:
    serve(sites, folder)
    spoil, part = REFUSED[what]
    spoil(folder)
    began = time.process_time()
    with pytest.raises((AdapterError, DataError)) as error:
        serve(sites, folder)
    assert part in str(error.value) and len(str(error.value)) < 1000, str(error.value)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("name", ["target_modules", "exclude_modules"])
@pytest.mark.parametrize("text", [EVIL, "(a+)+$", "x" * 200_000])
def test_what_names_modules_is_never_matched(sites: ModelSites, folder: Path, name: str, text: str) -> None:
    """It would hold the interpreter for ever: neither time-outs nor signals would be heard."""
    change(folder, **{name: text})
    assert [site.path for site, _, _ in serve(sites, folder).places] == ["model.layers.0", "model.layers.1"]


def test_modules_come_from_the_names_of_tensors(sites: ModelSites, tmp_path: Path) -> None:
    adapted({"r": 2, "target_modules": r".*\.1\.mlp\.down_proj"}, seed=1).save_pretrained(tmp_path)
    change(tmp_path, target_modules=EVIL, base_model_name_or_path=EVIL, revision="../..")
    places = serve(sites, tmp_path).places
    assert [site.path for site, _, _ in places] == ["model.layers.1.mlp.down_proj"]
    tensors = {name.replace("down_proj", "nothing"): t for name, t in load_file(tmp_path / WEIGHTS).items()}
    (tmp_path / WEIGHTS).write_bytes(save(tensors))
    with pytest.raises(AdapterError, match="which this model has not"):
        serve(sites, tmp_path)
