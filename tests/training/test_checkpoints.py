"""Checkpoints that are not whole are told from those that are; room is looked at; one run a folder.

Must not know: the command line.  What kills and full disks do to a run is in `test_killed.py`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import reftune.training.whole as whole_module
from reftune import ReftuneError
from reftune.training import RunConfig, train_run
from reftune.training.checkpoints import MARK, checkpoints_in, damage, last_whole, only_run, rotate, saving, seal
from tests.training.fast_models import adapted, ragged, trainer_of
from tests.training.text_models import PAIRS, save_base

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning:transformers")]

EACH_STEP = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
# what each of them holds that a run goes on from
NEEDED = ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt")
NEEDED += ("trainer_state.json",)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def run_of(base: Path, output: Path, **more: Any) -> RunConfig:
    training = {"per_device_train_batch_size": 4, "learning_rate": 2e-2, **EACH_STEP, **more.pop("training", {})}
    given = {"model": str(base), "data": list(PAIRS), "reft": {"r": 2, "positions": "l1"}, "training": training}
    return RunConfig.from_mapping({**given, "output": str(output), **more})


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three checkpoints."""
    output = tmp_path_factory.mktemp("finished") / "out"
    train_run(run_of(base, output, training={"save_total_limit": None}))
    return output


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def remove(file: Path) -> None:
    file.unlink()


def halve(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def blank(file: Path) -> None:
    """As after a loss of power: the size is there, the content is not."""
    file.write_bytes(bytes(file.stat().st_size))


DAMAGES: tuple[Callable[[Path], None], ...] = (remove, halve, empty, blank)


@pytest.mark.parametrize("harm", DAMAGES)
@pytest.mark.parametrize("name", NEEDED)
def test_whatever_is_missing_or_half_is_named(
    output: Path, caplog: pytest.LogCaptureFixture, name: str, harm: Callable[[Path], None]
) -> None:
    checkpoints = output / "checkpoints"
    assert last_whole(checkpoints).name == "checkpoint-3"
    assert not caplog.records
    harm(checkpoints / "checkpoint-3" / name)
    why = f"{name} is {'missing' if harm is remove else 'damaged'}"
    assert damage(checkpoints / "checkpoint-3") == why
    assert last_whole(checkpoints).name == "checkpoint-2"
    assert [record.getMessage() for record in caplog.records] == [
        f"not whole: checkpoint-3 ({why}); training goes on from checkpoint-2"
    ]


@pytest.mark.parametrize("content", [None, "", "[1]", '{"a": ', "null"])
def test_a_mark_that_is_none(output: Path, content: str | None) -> None:
    checkpoint = output / "checkpoints" / "checkpoint-3"
    (checkpoint / MARK).unlink()
    if content is not None:
        (checkpoint / MARK).write_text(content)
    why = damage(checkpoint)
    assert why is not None and ("not written to its end" if content is None else f"{MARK} is damaged") in why


def test_where_none_is_whole_it_is_said_what_to_remove(base: Path, output: Path) -> None:
    for checkpoint in checkpoints_in(output / "checkpoints"):
        (checkpoint / "optimizer.pt").unlink()
    with pytest.raises(ReftuneError) as caught:
        # the model is not even looked for
        train_run(run_of(base / "none", output), resume=True)
    assert "checkpoint-1 (optimizer.pt is missing); remove" in str(caught.value)
    assert "checkpoint-3 (optimizer.pt is missing)" in str(caught.value) and "--overwrite" in str(caught.value)


def test_resumed_from_the_one_before_to_the_same_bits(base: Path, finished: Path, output: Path) -> None:
    (output / "checkpoints" / "checkpoint-3" / "optimizer.pt").unlink()
    (output / "adapter_model.safetensors").unlink()
    train_run(run_of(base, output, training={"save_total_limit": None}), resume=True)
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (finished, output))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert [damage(path) for path in checkpoints_in(output / "checkpoints")] == [None] * 3


def test_trainer_takes_whole_ones_only(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {**EACH_STEP, "per_device_train_batch_size": 4}
    trainer_of(tmp_path, adapted(), ragged(8), **arguments).train()
    (tmp_path / "checkpoint-3" / "scheduler.pt").unlink()
    with pytest.raises(ReftuneError, match=r"checkpoint-3' is no whole checkpoint: scheduler\.pt is missing"):
        trainer_of(tmp_path, adapted(), ragged(8), **arguments).train(str(tmp_path / "checkpoint-3"))

    begun: list[int] = []

    class Begin(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            begun.append(state.global_step)

    trainer_of(tmp_path, adapted(), ragged(8), callbacks=[Begin()], **arguments).train(resume_from_checkpoint=True)
    assert begun == [2]
    with pytest.raises(ReftuneError, match="no checkpoint"):
        trainer_of(tmp_path / "new", adapted(), ragged(8), **arguments).train(resume_from_checkpoint=True)


def test_checkpoints_without_an_optimizer_are_not_resumed_from(base: Path, tmp_path: Path) -> None:
    config = run_of(base, tmp_path / "out", training={"save_only_model": True})
    train_run(config)
    with pytest.raises(ReftuneError, match="save_only_model"):
        train_run(config, resume=True)


# --- written, and removed -------------------------------------------------------------------------------------------


def test_older_ones_go_when_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(checkpoint: Path) -> None:
        if checkpoint.name == "checkpoint-3":
            raise KeyboardInterrupt
        seal(checkpoint)

    monkeypatch.setattr(whole_module, "seal", broken)
    trainer = trainer_of(tmp_path, adapted(), ragged(4), **EACH_STEP, save_total_limit=1)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-2"]
    assert trainer.args.save_total_limit == 1
    saved: Any = torch.load(tmp_path / "checkpoint-2" / "training_args.bin", weights_only=False)
    assert saved.save_total_limit == 1


def test_a_full_disk_takes_no_checkpoint_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, saved = torch.save, []

    def full(value: Any, path: Any, **kwargs: Any) -> None:
        real(value, path, **kwargs)
        saved.append(path)
        if "checkpoint-3" in str(path) and "optimizer" in str(path):
            monkeypatch.setattr("tempfile.TemporaryFile", no_room)
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")

    def no_room(**kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ReftuneError, match=r"checkpoint-3' cannot be written: No space left on device; checkpoint-2"):
        trainer_of(tmp_path, adapted(), ragged(4), **EACH_STEP).train()
    assert saved
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-1", "checkpoint-2"]


def made(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir()
        with saving(checkpoint):
            (checkpoint / "a").write_text("a")
            seal(checkpoint)


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [1, 2, 3, 4, 9]),
        (1, None, [4, 9]),
        (2, None, [3, 4, 9]),
        (3, None, [2, 3, 4, 9]),
        (1, 2, [2, 4, 9]),
        (2, 2, [2, 4, 9]),
        (3, 2, [2, 3, 4, 9]),
        (2, 4, [3, 4, 9]),
    ],
)
def test_how_many_are_kept(tmp_path: Path, limit: int | None, best: int | None, left: list[int]) -> None:
    made(tmp_path, 1, 2, 3, 4, 9)
    (tmp_path / "checkpoint-3.old").mkdir()
    # 9 is of a run that this one has gone back behind
    rotate(tmp_path, 4, limit=limit, best=None if best is None else str(tmp_path / f"checkpoint-{best}"))
    assert [path.name for path in checkpoints_in(tmp_path)] == [f"checkpoint-{step}" for step in left]


def test_an_overwritten_run_is_gone_at_once(base: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            train_run(run_of(base, output), overwrite=True)
    # else the run before would be resumed for this one
    assert checkpoints_in(output / "checkpoints") == []
    train_run(run_of(base, output), overwrite=True)
    assert {path.name for path in output.iterdir() if path.name.startswith(".")} == set()


# --- room -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "count"),
    [
        ({}, 3),
        ({"save_total_limit": 1}, 2),
        ({"save_steps": 2}, 2),
        ({"save_strategy": "epoch", "num_train_epochs": 3, "max_steps": -1}, 3),
        ({"save_strategy": "no"}, 0),
    ],
)
def test_room_is_looked_at_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], count: int
) -> None:
    def trainer(free: int) -> Any:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        return trainer_of(tmp_path / str(free), adapted(), ragged(4), **{**EACH_STEP, **more})

    weights = sum(p.nbytes for p in adapted().parameters() if p.requires_grad)
    need = count * (3 * weights + 130 * len(trainer(0).processing_class)) + weights if count else 0
    trainer(need).train()
    if count:
        with pytest.raises(ReftuneError, match=rf"free.*{count} of .*save_total_limit"):
            trainer(need - 1).train()
        assert checkpoints_in(tmp_path / str(need - 1)) == []


# --- one run a folder -----------------------------------------------------------------------------------------------


def test_two_runs_in_one_folder(base: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with only_run(output):
        with pytest.raises(ReftuneError, match=r"another run trains into .*out' now \(process \d+ on .*--output"):
            # the model is not even looked for
            train_run(run_of(base / "none", output))
        with only_run(tmp_path / "other"):
            pass
    # what came to nothing leaves nothing
    assert not output.exists()
    output.mkdir()
    # of a process that was killed
    (output / ".lock").write_text("process 1 on a machine")
    with only_run(output):
        (output / "a").write_text("")
    assert [path.name for path in output.iterdir()] == ["a"]


def test_an_output_that_is_a_file_is_told_first(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ReftuneError, match=r"out' is a file, not a folder"):
        train_run(run_of(base / "none", tmp_path / "out"))


@pytest.mark.parametrize("changed", [{"target_modules": ["layers.0"]}, {"exclude_modules": ["layers.1"]}])
def test_other_modules_are_another_adapter(base: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    reft = {"r": 2, "positions": "l1"}
    first = {"target_modules": ["layers.1"]} if "target_modules" in changed else {}
    train_run(run_of(base, tmp_path / "out", reft={**reft, **first}))
    (name,) = changed
    with pytest.raises(ReftuneError, match=f"another adapter .*{name}="):
        train_run(run_of(base, tmp_path / "out", reft={**reft, **changed}), resume=True)


@pytest.mark.parametrize("reft", [{"target_modules": ["layers.1"]}, {"layers": [1]}, {}])
def test_a_run_that_is_done_is_done(base: Path, tmp_path: Path, reft: dict[str, Any]) -> None:
    # its end is amid an epoch, and the rate is not 0
    config = run_of(
        base, tmp_path, reft={"r": 2, "positions": "l1", **reft}, training={"lr_scheduler_type": "constant"}
    )
    train_run(config)
    trained = (tmp_path / "adapter_model.safetensors").read_bytes()
    assert train_run(config, resume=True).steps == 3
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == trained


def test_the_line_about_skipped_ones_is_a_warning(output: Path, caplog: pytest.LogCaptureFixture) -> None:
    (output / "checkpoints" / "checkpoint-3" / MARK).unlink()
    last_whole(output / "checkpoints", quiet=True)
    assert not caplog.records
    last_whole(output / "checkpoints")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
