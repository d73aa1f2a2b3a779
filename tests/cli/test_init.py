"""`reftune init`: configurations that train as they are written, and an untrained adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from reftune.cli.beside import held_back
from reftune.training import RunConfig
from tests.cli.conftest import Command, assert_user_error

LABELLED = "text,label\n" + "".join(f"w{i} w{i + 1},w{i % 2}\n" for i in range(40))


@pytest.mark.parametrize("task", ["chat", "classification"])
def test_a_configuration_is_one_of_train(reftune: Command, tmp_path: Path, task: str) -> None:
    (tmp_path / "a: b.csv").write_text(LABELLED)
    done = reftune("init", task, "--output", tmp_path / "run.yaml", "--data", tmp_path / "a: b.csv", "--json")
    assert done.json["next"].endswith(f"train {tmp_path}/run.yaml")
    values = yaml.safe_load((tmp_path / "run.yaml").read_text())
    held_back(values, values.pop("split", None))
    config = RunConfig.from_mapping(values)
    assert Path(str(config.data)).name == "a: b.csv" or task == "classification"
    assert config.training_arguments().learning_rate == 1e-3
    text = (tmp_path / "run.yaml").read_text()
    assert_user_error(reftune("init", task, "--output", tmp_path / "run.yaml"), "is there already")
    assert (tmp_path / "run.yaml").read_text() == text


def test_a_configuration_for_dpo(reftune: Command, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from reftune.integrations.trl import parsed

    done = reftune("init", "dpo", "--output", tmp_path / "dpo.yaml")
    assert f"trl dpo --config {tmp_path}/dpo.yaml" in " ".join(done.out.split())
    (_, training, model, data), config = parsed("dpo", ["--config", str(tmp_path / "dpo.yaml")])
    assert (training.beta, training.learning_rate, model.use_peft) == (0.1, 1e-3, False)
    assert data.datasets[0].data_files == "train.jsonl" and config.positions == "prompt"


def test_an_adapter(reftune: Command, base: Path, tmp_path: Path) -> None:
    flags = ("--positions", "f1+l2", "--rank", 2, "--reft", '{"tie": "group"}')
    made = reftune("init", "--model", base, "--output", tmp_path / "fresh", *flags, "--json").json
    assert "untrained" in made["notes"][0] and made == {**reftune("show", tmp_path / "fresh", "--json").json, **made}
    assert_user_error(reftune("init", "--model", base, "--output", tmp_path / "fresh"), "holds an adapter already")
    assert_user_error(reftune("init", "--model", base, "--output", tmp_path / "x", "--reft", "{"), "cannot be read")
    assert reftune("init", "--output", tmp_path / "x").code == 2
    assert reftune("init", "chat", "--output", tmp_path / "x", "--rank", 2).code == 2
