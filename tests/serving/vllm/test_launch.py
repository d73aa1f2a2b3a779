"""What `reftune serve` gives to vLLM, and what it refuses before an engine is started."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from reftune import ReftConfig
from reftune.errors import ReftuneError
from reftune.models import SMOLLM2
from reftune.serving.vllm import launch
from reftune.serving.vllm.adapters import Reader
from reftune.serving.vllm.launch import check_adapters, name_packaged_model, serve_vllm, set_options
from reftune.serving.vllm.options import Options
from tests.serving.folders import KINDS, save_adapters
from tests.serving.vllm.configs import llama_config
from tests.serving.vllm.engines import prepare
from tests.serving.vllm.worlds import make_world


@pytest.mark.parametrize("name", ["smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_a_packaged_model_is_a_folder_under_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFTUNE_CACHE", str(tmp_path))
    folder = tmp_path / SMOLLM2
    folder.mkdir()
    args = Namespace(model_tag=name, model="default", served_model_name=None)
    name_packaged_model(args)
    assert (args.model_tag, args.model, args.served_model_name) == (str(folder), str(folder), [name])
    named = Namespace(model_tag=None, model=name, served_model_name=["mine"])
    name_packaged_model(named)
    assert (named.model, named.served_model_name) == (str(folder), ["mine"])


def test_other_models_are_as_given() -> None:
    args = Namespace(model_tag="owner/model", model="default", served_model_name=None)
    name_packaged_model(args)
    assert (args.model_tag, args.model, args.served_model_name) == ("owner/model", "default", None)


# --- what is told before an engine is started -------------------------------------------------------------------------


def arguments(**given: Any) -> Namespace:
    """What `set_options` and `check_adapters` look at."""
    plain: dict[str, Any] = {
        "reft_modules": [],
        "reft_max_rank": None,
        "reft_slots": None,
        "reft_max_adapters": None,
        "reft_allow_runtime_loading": False,
        "reft_adapter_folder": None,
        "additional_config": {},
        "served_model_name": ["base"],
        "model_tag": "owner/model",
        "model": "default",
        "lora_modules": None,
        "fine_tuning": None,
    }
    return Namespace(**{**plain, **given})


def test_options_go_where_vllm_takes_them() -> None:
    args = arguments(reft_max_rank=3, additional_config={"other": 1, "reftune": {"slots": 5}})
    set_options(args)
    assert args.additional_config == {"other": 1, "reftune": {"slots": 5, "max_rank": 3}}
    off = arguments(additional_config={"reftune": False})
    set_options(off)
    assert off.additional_config == {"reftune": False}


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"additional_config": {"reftune": False}, "reft_modules": ["a=b"]}, "switches ReFT off"),
        ({"additional_config": {"reftune": False}, "reft_max_rank": 3}, "switches ReFT off"),
        ({"additional_config": {"reftune": True}}, "it is false or a table"),
        ({"additional_config": {"reftune": {"rank": 3}}}, r"unknown options \['rank'\]"),
        ({"additional_config": ["reftune"]}, "not a table"),
        ({"reft_max_rank": 0}, "max_rank=0"),
        ({"reft_allow_runtime_loading": True}, "--reft-adapter-folder"),
    ],
)
def test_options_that_are_refused(given: dict[str, Any], part: str) -> None:
    with pytest.raises(ReftuneError, match=part):
        set_options(arguments(**given))


def test_adapters_are_looked_at_before_an_engine_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "reader_for", lambda args: reader)
    reader = Reader(llama_config(layers=2, width=32), Options(max_adapters=1))
    folders = save_adapters(tmp_path, {"loreft": KINDS["loreft"], "head": KINDS["head"]})
    good = str(folders["loreft"])
    for modules, more, part in [
        ([f"a={tmp_path / 'none'}"], {}, "not a folder"),
        ([f"a={tmp_path}"], {}, "adapter_config.json"),
        (["a=nobody/nothing"], {}, "nor to be had from the Hub"),
        ([f"base={good}"], {}, "base model"),
        ([f"image={good}"], {}, "kind of content"),
        ([f"a={good}"], {"lora_modules": [Namespace(name="a")]}, "that of a LoRA"),
        ([f"a={good}", f"a={good}"], {}, "given twice"),
        ([f"a={good}", f"b={good}"], {}, "--reft-max-adapters 1"),
        ([f"a={folders['head']}"], {}, "outputs of blocks only"),
    ]:
        with pytest.raises(ReftuneError, match=part):
            check_adapters(arguments(reft_modules=modules, **more))
    (folders["loreft"] / "reftune.json").write_text('{"style": "messages", "system": 5}')
    with pytest.raises(ReftuneError, match="system=5"):
        check_adapters(arguments(reft_modules=[f"a={good}"]))
    (folders["loreft"] / "reftune.json").unlink()
    args = arguments(reft_modules=[f"a={good}"])
    check_adapters(args)
    assert json.loads(args.reft_modules[0]) == {"name": "a", "path": good}


@pytest.mark.vllm
def test_vllm_is_not_started_for_what_it_would_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare()
    from vllm.entrypoints.cli.serve import ServeSubcommand

    started: list[Any] = []
    monkeypatch.setattr(ServeSubcommand, "cmd", started.append)
    monkeypatch.setenv("VLLM_PLUGINS", "reftune")
    world = make_world(tmp_path, chosen={"one": ReftConfig(r=4, positions="l1", init="random")})
    draft = json.dumps({"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2})
    common = [world.base, "--dtype", "float32", "--max-model-len", "256"]
    named = ["--reft-modules", f"a={world.path('one')}"]
    for more, part in [
        (["--speculative-config", draft, *named], "speculative decoding"),
        (["--reft-max-rank", "2", *named], "--reft-max-rank 4"),
        (["--additional-config", '{"reftune": false}', *named], "switches ReFT off"),
        (["--reft-modules", f"a={tmp_path / 'none'}"], "not a folder"),
    ]:
        with pytest.raises(ReftuneError, match=part):
            serve_vllm([*common, *more])
    assert not started
    for more in (named, ["--additional-config", '{"reftune": false}'], ["--speculative-config", draft]):
        serve_vllm([*common, *more])
    assert [args.additional_config["reftune"] for args in started] == [{}, False, {}]
