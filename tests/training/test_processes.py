"""Two processes train as one does with the same global batches: DDP, FSDP2, DeepSpeed where it is installed.

Must not know: batches, positions.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.utils import FullyShardedDataParallelPlugin
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from reftune import ReftuneError
from reftune.training.processes import prepare_plugin
from tests.training import process_script
from tests.training.text_models import PAIRS, save_base, text_model, write_jsonl

ROOT = Path(__file__).parents[2]
SCRIPT = process_script.__file__
# Launching takes ten seconds on a quiet machine with two cores.
TIMEOUT = 240
# Sums of float32 in another order; Adam divides by the gradient's own size, which magnifies that a little.
LOSS = {"rtol": 1e-5, "atol": 0.0}
NORM = {"rtol": 1e-4, "atol": 0.0}
VALUE = {"rtol": 1e-4, "atol": 1e-5}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]


def run(command: Sequence[str | Path], *, cwd: Path, **environment: str) -> str:
    """Stdout of the processes; the end of what they say if they fail."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    # what pytest's own processes have of a launch must not reach these
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "FSDP_"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def launch(folder: Path, *arguments: str | Path) -> str:
    """`accelerate launch` on the CPU, where it wants to be told of several GPUs before it starts several processes."""
    ddp = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    how = [] if "--config_file" in arguments else ddp
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", *how, "--main_process_port", "0"]
    return run([*accelerate, *arguments], cwd=folder, ACCELERATE_USE_CPU="true")


def fsdp_config(folder: Path, **changed: Any) -> Path:
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP",
        "mixed_precision": "no",
        "num_machines": 1,
        "num_processes": 2,
        "use_cpu": True,
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_reshard_after_forward": True,
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
            "fsdp_cpu_ram_efficient_loading": False,
            **changed,
        },
    }
    path = folder / "fsdp2.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def found(folder: Path, case: str) -> list[Any]:
    return [torch.load(path) for path in sorted(folder.glob(f"{case}-?.pt"))]


@pytest.fixture
def one(tmp_path: Path) -> dict[str, Any]:
    """The run of one process that the others must equal."""
    return in_this_process(tmp_path, "plain")


def in_this_process(tmp_path: Path, case: str) -> dict[str, Any]:
    folder = tmp_path / f"one-{case}"
    folder.mkdir()
    process_script.CASES[case](folder)
    (result,) = found(folder, case)
    assert result["processes"] == 1 and len(set(result["losses"])) == 4
    return result


def check_same(processes: list[Any], one: dict[str, Any]) -> None:
    """Losses, gradients and adapters as in one process; adapters the same bit for bit in all."""
    assert len(processes) == 2
    for process in processes:
        torch.testing.assert_close(torch.tensor(process["losses"]), torch.tensor(one["losses"]), **LOSS)
        # Adam would hide gradients that are summed where they should be averaged
        torch.testing.assert_close(torch.tensor(process["norms"]), torch.tensor(one["norms"]), **NORM)
        assert process["adapter"].keys() == one["adapter"].keys()
        for name, value in process["adapter"].items():
            torch.testing.assert_close(value, one["adapter"][name], **VALUE)
            assert torch.equal(value, processes[0]["adapter"][name]), name


def check_saved(folder: Path, adapter: dict[str, Tensor]) -> None:
    """The first process alone has written a normal adapter, which a single process loads as it was trained."""
    assert not (folder / "adapter-1").exists()
    saved = folder / "adapter-0"
    assert {tuple(t.shape) for t in load_file(saved / "adapter_model.safetensors").values()} == {(2, 32), (2,)}
    model = PeftModel.from_pretrained(text_model(), str(saved), is_trainable=True)
    loaded = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert loaded.keys() == adapter.keys()
    assert all(torch.equal(loaded[name], value) for name, value in adapter.items())


def test_ddp_and_shards_of_transformers(tmp_path: Path, one: dict[str, Any]) -> None:
    save_base(tmp_path / "base")
    launch(tmp_path, SCRIPT, tmp_path, "plain", "accumulated", "head", "sharded_on_load", "gradients")
    processes = found(tmp_path, "plain")
    assert [p["processes"] for p in processes] == [2, 2]
    check_same(processes, one)
    check_same(found(tmp_path, "accumulated"), one)
    check_same(found(tmp_path, "head"), in_this_process(tmp_path, "head"))
    check_saved(tmp_path, processes[0]["adapter"])
    on_load = found(tmp_path, "sharded_on_load")
    assert sum(p["frozen_here"] for p in on_load) == one["frozen_here"]
    check_same(on_load, one)
    for both, low, last_only, nowhere in found(tmp_path, "gradients"):
        assert torch.equal(both, torch.full((2, 3), 1.5))
        assert torch.equal(low, torch.full((2, 3), 1.5, dtype=torch.bfloat16))
        assert torch.equal(last_only, torch.full((4,), 1.5))
        assert nowhere is None


def test_fsdp2_shards_the_base_and_keeps_adapters_whole(tmp_path: Path, one: dict[str, Any]) -> None:
    cases = ("plain", "accumulated", "head", "resumed")
    launch(tmp_path, "--config_file", fsdp_config(tmp_path), SCRIPT, tmp_path, *cases)
    processes = found(tmp_path, "plain")
    assert {p["kind"] for p in processes} == {"DistributedType.FSDP"}
    # every base parameter in two pieces, one in each process
    assert sum(p["frozen_here"] for p in processes) == one["frozen_here"]
    assert max(p["frozen_here"] for p in processes) < 0.6 * one["frozen_here"]
    check_same(processes, one)
    check_same(found(tmp_path, "accumulated"), one)
    check_same(found(tmp_path, "head"), in_this_process(tmp_path, "head"))
    check_same(found(tmp_path, "resumed"), one)
    check_saved(tmp_path, processes[0]["adapter"])


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("fsdp_version", 1, "fsdp_version=1"),
        ("cpu_ram_efficient_loading", True, "fsdp_cpu_ram_efficient_loading=True"),
        ("activation_checkpointing", True, "fsdp_activation_checkpointing=True"),
    ],
)
def test_fsdp_that_would_not_keep_adapters_whole_is_refused(field: str, value: Any, name: str) -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    prepare_plugin(plugin)
    setattr(plugin, field, value)
    with pytest.raises(ReftuneError, match=name):
        prepare_plugin(plugin)


def test_fsdp_in_bf16_does_not_round_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    plugin.set_mixed_precision("bf16", override=True)
    before = plugin.mixed_precision_policy
    assert before.output_dtype == torch.bfloat16
    prepare_plugin(plugin)
    after = plugin.mixed_precision_policy
    assert after.output_dtype is None and after.param_dtype == torch.bfloat16


def test_command_in_two_processes_prints_once(tmp_path: Path) -> None:
    save_base(tmp_path / "base")
    write_jsonl(tmp_path / "train.jsonl", PAIRS)
    training = {"per_device_train_batch_size": 2, "num_train_epochs": 2, "save_strategy": "no"}
    config = {"model": "base", "data": "train.jsonl", "output": "out", "training": training}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**config, "reft": {"r": 2, "positions": "f1+l1"}}))
    reftune = Path(sys.executable).with_name("reftune")
    printed = launch(
        tmp_path, "--config_file", fsdp_config(tmp_path), "--no_python", reftune, "train", "run.yaml", "--json"
    )
    result = json.loads(printed)
    # 8 rows, 2 a process
    assert result["steps"] == 4
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert sum(t.numel() for t in saved.values()) == result["trainable_parameters"]


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
def test_zero3(tmp_path: Path, one: dict[str, Any]) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run([*torchrun, SCRIPT, tmp_path, "zero3"], cwd=tmp_path, DS_ACCELERATOR="cpu")
    processes = found(tmp_path, "zero3")
    assert {p["kind"] for p in processes} == {"DistributedType.DEEPSPEED"}
    for process in processes:
        torch.testing.assert_close(torch.tensor(process["losses"]), torch.tensor(one["losses"]), **LOSS)
        torch.testing.assert_close(torch.tensor(process["norms"]), torch.tensor(one["norms"]), **NORM)
        # with the threshold of 0 nothing is whole between the calls
        assert process["frozen_here"] == sum(value.numel() for value in process["adapter"].values()) == 0
    loaded = PeftModel.from_pretrained(text_model(), str(tmp_path / "adapter-0"), is_trainable=True)
    for name, value in loaded.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(value.detach(), one["adapter"][name], **VALUE)
