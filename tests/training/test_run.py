"""`RunConfig` and `train_run`: configurations are checked before anything is loaded, runs end with whole files.

Must not know: the command line.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import TrainerCallback

from reftune import DataError, ReftuneError
from reftune.data.passes import passes
from reftune.training import RunConfig, run, train_run
from tests.training.text_models import CHATS, PAIRS, save_base, text_model, write_jsonl

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning:transformers")]

QUICK = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 2e-2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def values(base: Path, folder: Path, **more: Any) -> dict[str, Any]:
    reft = {"r": 2, "positions": "f1+l1"}
    given = {"model": str(base), "data": list(PAIRS), "output": str(folder / "out"), "reft": reft, "training": QUICK}
    return {**given, **more}


def run_of(base: Path, folder: Path, **more: Any) -> RunConfig:
    return RunConfig.from_mapping(values(base, folder, **more))


# --- the configuration ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"epochs": 3}, ["'epochs'", "training", "eval_data"]),
        ({"reft": {"rank": 4}}, ["reft", "'rank'", "positions", "intervention"]),
        ({"training": {"lr": 1e-3}}, ["training", "'lr'", "learning_rate"]),
        ({"training": {"output_dir": "x"}}, ["training", "'output_dir'"]),
        ({"training": {"seed": 3}}, ["training", "'seed'"]),
        ({"training": [1]}, ["training", "[1]", "keys and values"]),
        ({"reft": "loreft"}, ["reft", "'loreft'", "keys and values"]),
        ({"dtype": "int4"}, ["dtype", "'int4'", "bfloat16"]),
        ({"max_length": 1}, ["max_length", "1"]),
        ({"max_length": "long"}, ["max_length", "'long'"]),
        ({"seed": "abc"}, ["seed", "'abc'"]),
        ({"model": 5}, ["model", "5"]),
    ],
)
def test_what_is_wrong_is_named_with_what_is_valid(
    base: Path, tmp_path: Path, change: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(ReftuneError) as caught:
        run_of(base, tmp_path, **change)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize("missing", ["model", "data", "output"])
def test_missing_keys_are_named(base: Path, tmp_path: Path, missing: str) -> None:
    with pytest.raises(ReftuneError, match=f"lacks {missing}$"):
        run_of(base, tmp_path, **{missing: None})


def test_wrong_reft_values_fail_before_anything_is_loaded(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x9"):
        run_of(base, tmp_path, reft={"positions": "x9"})


@pytest.mark.parametrize(
    ("written", "read"),
    [("9e-4", 9e-4), ("1E3", 1000), ("1.5e-2", 0.015), ("linear", "linear"), ("2024", "2024"), ("nan", "nan"), (3, 3)],
)
def test_exponents_that_yaml_reads_as_texts_are_numbers(written: Any, read: Any) -> None:
    found = run.number(written)
    assert found == read and type(found) is type(read)


def test_numbers_reach_trainer_and_adapter(base: Path, tmp_path: Path) -> None:
    config = run_of(base, tmp_path, training={"learning_rate": "9e-4", "max_steps": "1e1"}, reft={"dropout": "1e-1"})
    arguments = config.training_arguments()
    assert arguments.learning_rate == 9e-4
    assert arguments.max_steps == 10
    assert config.reft_config().dropout == 0.1


def test_an_empty_section_is_as_if_not_there(base: Path, tmp_path: Path) -> None:
    config = run_of(base, tmp_path, training=None, reft=None, max_length=None)
    assert (config.training, config.reft, config.max_length) == ({}, {}, None)


def test_evaluation_goes_with_saving(base: Path, tmp_path: Path) -> None:
    for saving, evaluating in (("epoch", "epoch"), ("steps", "steps"), ("no", "no"), ("best", "epoch")):
        training = {"save_strategy": saving, "metric_for_best_model": "loss"}
        config = run_of(base, tmp_path, eval_data=list(PAIRS), training=training)
        assert config.training_arguments().eval_strategy == evaluating


def test_wrong_training_values_are_told_before_the_model_is_loaded(tmp_path: Path) -> None:
    config = run_of(tmp_path / "no model", tmp_path, training={"lr_scheduler_type": "zigzag"})
    with pytest.raises(ReftuneError, match="zigzag"):
        train_run(config)


# --- a run -----------------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_output_is_whole_and_loads(base: Path, tmp_path: Path) -> None:
    result = train_run(run_of(base, tmp_path, training={**QUICK, "num_train_epochs": 15}))
    folder = tmp_path / "out"
    assert result.adapter_path == folder
    expected = {"adapter_config.json", "adapter_model.safetensors", "README.md", "reftune.json", "checkpoints"}
    assert files_of(folder) == expected
    assert result.steps == 30
    assert result.losses[0][0] == 10 and result.losses[-1][1] < result.losses[0][1]
    assert result.trainable_parameters == 2 * (2 * 2 * 32 + 2)
    assert 0 < result.trainable_percent < 100
    assert result.adapter_bytes == (folder / "adapter_model.safetensors").stat().st_size
    assert result.eval_loss is None

    reloaded = PeftModel.from_pretrained(text_model(), folder).eval()
    ids = torch.arange(10, 20)[None]
    assert torch.equal(reloaded(ids).logits, result.model.eval()(ids).logits)
    assert not torch.equal(reloaded(ids).logits, text_model()(ids).logits)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)


@pytest.mark.parametrize(
    ("records", "style"),
    [
        (PAIRS, {"style": "prompt", "system": None}),
        (CHATS, {"style": "messages", "system": None}),
        ([{"instruction": "w1 w2", "output": "w3"}] * 2, {"style": "instruction", "system": None}),
    ],
)
def test_the_style_of_the_prompts_is_kept(base: Path, tmp_path: Path, records: Any, style: dict[str, Any]) -> None:
    train_run(run_of(base, tmp_path, data=list(records)))
    assert json.loads((tmp_path / "out" / "reftune.json").read_text()) == style


def test_who_may_read_the_configuration_may_read_the_weights(base: Path, tmp_path: Path) -> None:
    folder = train_run(run_of(base, tmp_path)).adapter_path
    modes = {(folder / name).stat().st_mode for name in ("adapter_config.json", "adapter_model.safetensors")}
    assert len(modes) == 1


def test_the_best_epoch_is_kept_where_it_is_asked_for(base: Path, tmp_path: Path) -> None:
    # words that no row to train on has: every epoch is worse than the one before
    others = [{**row, "completion": " ".join(["w58 w59"] * 8)} for row in PAIRS[:4]]
    training = {"learning_rate": 0.05, "num_train_epochs": 6, "lr_scheduler_type": "constant"}
    found = {}
    for best in (True, False):
        folder = tmp_path / str(best)
        found[best] = train_run(run_of(base, folder, eval_data=others, training=training, best=best))
    assert found[True].best_epoch is not None and found[False].best_epoch is None
    kept, last = found[True].eval_loss, found[False].eval_loss
    assert kept is not None and last is not None and kept < last
    with pytest.raises(ReftuneError, match="save_strategy='no'"):
        run_of(base, tmp_path, eval_data=list(PAIRS), best=True, training={"save_strategy": "no"})


def test_eval_data(base: Path, tmp_path: Path) -> None:
    held_out = write_jsonl(tmp_path / "eval.jsonl", PAIRS[:2])
    result = train_run(run_of(base, tmp_path, eval_data=str(held_out)))
    assert result.eval_loss is not None and 0 < result.eval_loss < 10


def test_bf16_base(base: Path, tmp_path: Path) -> None:
    result = train_run(run_of(base, tmp_path, dtype="bfloat16"))
    kinds = {p.dtype for p in result.model.parameters() if not p.requires_grad}
    assert kinds == {torch.bfloat16}
    assert {t.dtype for t in load_file(tmp_path / "out" / "adapter_model.safetensors").values()} == {torch.float32}


def test_an_existing_run_is_not_overwritten_unasked(base: Path, tmp_path: Path) -> None:
    config = run_of(base, tmp_path)
    train_run(config)
    before = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(ReftuneError, match=r"--resume.*--overwrite"):
        train_run(config)
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == before
    train_run(run_of(base, tmp_path, seed=1), overwrite=True)
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() != before


def test_a_run_that_fails_leaves_the_overwritten_one_alone(base: Path, tmp_path: Path) -> None:
    train_run(run_of(base, tmp_path))
    for wrong in ({"data": str(tmp_path / "none.jsonl")}, {"model": str(tmp_path / "none")}, {"reft": {"r": 500}}):
        with pytest.raises((ReftuneError, ValueError)):
            train_run(run_of(base, tmp_path, **wrong), overwrite=True)
        assert files_of(tmp_path / "out" / "checkpoints") == {"checkpoint-2"}


def test_nothing_to_resume_from(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ReftuneError, match="no checkpoint"):
        train_run(run_of(base, tmp_path), resume=True)
    with pytest.raises(ReftuneError, match="contradict"):
        train_run(run_of(base, tmp_path), resume=True, overwrite=True)


class _Interrupt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_resumed_run_is_bit_equal(base: Path, tmp_path: Path) -> None:
    training = {**QUICK, "num_train_epochs": 4}
    whole = train_run(run_of(base, tmp_path, output=str(tmp_path / "whole"), training=training))
    config = run_of(base, tmp_path, training=training)
    with pytest.raises(KeyboardInterrupt):
        train_run(config, callbacks=[_Interrupt()])
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    resumed = train_run(config, resume=True)
    assert resumed.steps == whole.steps == 8
    assert resumed.final_loss == whole.final_loss
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "out"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("key", ["data", "eval_data"])
def test_bad_rows_are_named_by_file_and_line(base: Path, tmp_path: Path, key: str) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [*PAIRS[:2], {"prompt": "w1"}])
    # the model is not even looked for
    with pytest.raises(DataError, match=r"rows\.jsonl, line 3"):
        train_run(run_of(tmp_path / "none", tmp_path, **{key: str(file)}))


def test_rows_that_only_a_tokenizer_refuses_are_named_too(base: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [*PAIRS[:2], {"prompt": "w1", "completion": " w2" * 9}])
    with pytest.raises(DataError, match=r"rows\.jsonl, line 3.*max_length=8"):
        train_run(run_of(base, tmp_path, data=str(file), max_length=8))


def test_rank_beyond_the_width_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"r=33.*32"):
        train_run(run_of(base, tmp_path, reft={"r": 33}))


@pytest.mark.parametrize("changed", [{"r": 3}, {"positions": "l2"}, {"layers": [1]}])
def test_a_checkpoint_of_another_adapter_is_refused(base: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    first = run_of(base, tmp_path, reft={"r": 2, "positions": "l1"})
    train_run(first)
    (name,) = changed
    with pytest.raises(ReftuneError, match=f"another adapter .*{name}="):
        train_run(run_of(base, tmp_path, reft={"r": 2, "positions": "l1", **changed}), resume=True)


def test_positions_by_text(base: Path, tmp_path: Path) -> None:
    """The ids are what is saved, and a run that goes on compares them."""
    config = run_of(
        base, tmp_path, reft={"r": 2, "positions": 'l1+text("w2","w40")'}, training={**QUICK, "save_steps": 1}
    )
    result = train_run(config)
    wanted = "l1+id({},{})".format(*result.tokenizer("w2 w40")["input_ids"])
    saved: Any = json.loads((result.adapter_path / "adapter_config.json").read_text())
    assert saved["positions"] == wanted
    with pytest.raises(ReftuneError, match=r"no token of this tokenizer, which reads it as \['w2', 'w3'\]"):
        train_run(run_of(base, tmp_path / "b", reft={"r": 2, "positions": 'text("w2 w3")'}))


def test_few_rows_get_more_passes(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = train_run(run_of(base, tmp_path, training={"learning_rate": 1e-3}))
    rows = len(PAIRS)
    batch, count = passes(rows)
    assert count > 3 and result.steps == count * math.ceil(rows / batch)
    assert f"few rows ({rows}): {count} passes over them in batches of {batch}" in caplog.text
    # whoever says anything of it means it
    for training in ({"num_train_epochs": 1}, {"max_steps": 3}):
        assert run_of(base, tmp_path, training=training).training_arguments(rows).per_device_train_batch_size == 8
    assert (
        run_of(base, tmp_path, training={"per_device_train_batch_size": 2}).training_arguments(60).num_train_epochs == 3
    )
