"""What `reftune serve` gives to vLLM as the model.  Needs no vLLM."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from reftune.models import SMOLLM2
from reftune.serving.vllm.launch import name_packaged_model


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
