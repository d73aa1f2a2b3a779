"""ms-swift's plug-in, with the interface of ms-swift in place of it; the real one is tried by `make test-frontends`."""

from __future__ import annotations

import runpy
from types import SimpleNamespace
from typing import Any

import pytest

from reftune import ReftLayer, ReftuneError
from tests.cli.conftest import Command
from tests.integrations.stubs import put
from tests.models import tiny_model

FLAGS = {"reft_rank": 4, "reft_layers": None, "reft_intervention_type": "LoreftIntervention", "reft_args": None}


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch, reftune: Command) -> dict[str, Any]:
    """What the file defines when it is run by its path, as ms-swift does."""
    tuners: dict[str, Any] = {"reft": "pyreft's"}
    put(monkeypatch, "swift.tuner_plugin", PeftTuner=object, tuners_map=tuners)
    found = runpy.run_path(reftune("plugin", "ms-swift").out.strip())
    assert tuners["reft"] is found["ReftTuner"]
    return found


def args(**more: Any) -> SimpleNamespace:
    return SimpleNamespace(**{**FLAGS, "task_type": "causal_lm", "sequence_parallel_size": 1, **more})


def test_flags_and_fields(ours: dict[str, Any]) -> None:
    config = ours["config_of"](args(reft_layers=[0], reft_args='{"positions": "f1+l2", "r": 2}'))
    assert (config.r, config.layers, config.positions, config.intervention) == (2, [0], "f1+l2", "loreft")
    assert ours["config_of"](args(reft_intervention_type="NodireftIntervention")).intervention == "direft"
    model = ours["ReftTuner"].prepare_model(args(), tiny_model("llama", layers=2))
    assert sum(isinstance(module, ReftLayer) for module in model.modules()) == 2


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ({"rlhf_type": "dpo"}, ("--rlhf_type", "labels away")),
        ({"enable_dft_loss": True}, ("--enable_dft_loss", "labels away")),
        ({"quant_bits": 4}, ("--quant_bits", "LoRA")),
        ({"sequence_parallel_size": 2}, ("--sequence_parallel_size", "not tried")),
        ({"task_type": "embedding"}, ("--task_type embedding", "causal_lm, seq_cls")),
        ({"reft_args": '{"rank": 2}'}, ("unknown keys 'rank'",)),
    ],
)
def test_what_cannot_be_had_is_refused(ours: dict[str, Any], more: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(ReftuneError) as found:
        ours["ReftTuner"].prepare_model(args(**more), tiny_model("llama", layers=2))
    assert all(part in str(found.value) for part in parts), found.value


def test_the_name_for_axolotl(reftune: Command) -> None:
    assert reftune("plugin", "axolotl", "--json").json["plugin"] == "reftune.integrations.axolotl.ReftPlugin"
