"""Training that is killed at random moments, finds a full disk or a read-only folder: `--resume` gives the same bits.

`REFTUNE_KILLS` is the number of moments (8), `REFTUNE_KILL_SEED` what they are drawn from.  Half of them wait for a
file of a checkpoint, of the frozen prefix or of the adapter to appear, so that writing is what is broken off.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from reftune.training.checkpoints import MARK, checkpoints_in, damage
from tests.training.killed_run import start
from tests.training.text_models import PAIRS, save_base, write_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs signals and forks")]

KILLS = int(os.environ.get("REFTUNE_KILLS", "8"))
SEED = int(os.environ.get("REFTUNE_KILL_SEED", "0"))
# The end is no end of an epoch, of which there are three steps each.
STEPS, EVERY = 25, 4
FILES = ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "training_args.bin", "optimizer.pt")
FILES += ("scheduler.pt", "rng_state.pth", "trainer_state.json", f".{MARK}.*", MARK)
# with what is kept in memory, and on disk
WAYS: dict[str, dict[str, Any]] = {"memory": {}, "disk": {"reuse_limit_gb": 0.0}}
PATIENCE = 300.0
# Room for three checkpoints and more, and little enough to be filled at once.
DISK_MB = 3


class Place:
    """A folder for runs, with all that they need and what they end in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save_base(folder / "base")
        write_jsonl(folder / "rows.jsonl", [*PAIRS, *PAIRS[:4]])
        # the first process waits for all to be imported, which would count as the time of a run
        wait(start(["--help"], folder / "help.log"))
        self.seconds: dict[str, float] = {}
        self.expected: dict[str, dict[str, bytes]] = {}
        for way in WAYS:
            begin = time.monotonic()
            process = start(self.arguments(way, folder / way), folder / f"{way}.log")
            assert wait(process) == 0, (folder / f"{way}.log").read_text()
            self.seconds[way] = time.monotonic() - begin
            self.expected[way] = files_of(folder / way)

    def arguments(self, way: str, output: Path) -> list[str]:
        """Of `reftune train`."""
        training = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": EVERY, "learning_rate": 2e-2}
        training |= {"per_device_train_batch_size": 4, "logging_steps": 1, "lr_scheduler_type": "constant"}
        values = {"model": str(self.folder / "base"), "data": str(self.folder / "rows.jsonl"), "output": str(output)}
        values |= {"reft": {"r": 2, "positions": "l1", "layers": [1], "dropout": 0.1}, "training": training}
        config = self.folder / f"{way}.yaml"
        config.write_text(yaml.safe_dump({**values, **WAYS[way]}))
        return [str(config), "--output", str(output)]


def files_of(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


def wait(process: Any) -> int:
    process.join(PATIENCE)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def until(process: Any, seen: Callable[[], Any]) -> None:
    """Wait for something, or for the end of the process."""
    while process.is_alive() and not seen():
        time.sleep(0.0002)


def drawn_target(draw: random.Random, output: Path, way: str) -> tuple[Path, str]:
    """A file whose appearance is waited for."""
    name = f"checkpoint-{draw.choice([*range(EVERY, STEPS, EVERY), STEPS])}"
    targets = [(output / "checkpoints" / name, file) for file in FILES]
    targets += [(output, "reftune.json"), (output, ".saving.*/*"), (output, "adapter_config.json")]
    if way == "disk":
        targets += [(output / "checkpoints" / "frozen-prefix" / "0", "*")] * 2
    return draw.choice(targets)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("killed"))


def assert_same_in_the_end(place: Place, way: str, output: Path, log: Path) -> str:
    """Resume, or where one line says why that cannot be, start anew; how it went."""
    process = start([*place.arguments(way, output), "--resume"], log)
    how = "resumed"
    if wait(process) != 0:
        lines = log.read_text().splitlines()
        assert len(lines) == 1 and lines[0].startswith("reftune: "), lines
        assert "there is no checkpoint" in lines[0] or "is whole" in lines[0], lines
        # which is only right where none had been finished
        assert not [path for path in checkpoints_in(output / "checkpoints") if (path / MARK).exists()]
        how, flags = "anew", ["--overwrite"] if "is whole" in lines[0] else []
        assert wait(start([*place.arguments(way, output), *flags], log)) == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert files_of(output) == place.expected[way]
    left = checkpoints_in(output / "checkpoints")
    assert [path.name for path in left] == [f"checkpoint-{STEPS - STEPS % EVERY}", f"checkpoint-{STEPS}"]
    assert [damage(path) for path in left] == [None, None]
    assert sorted((output / "checkpoints").iterdir()) == sorted(left)
    assert not [path for path in output.iterdir() if path.name.startswith(".")]
    return how


def test_killed(place: Place) -> None:
    draw, counts = random.Random(SEED), Counter[str]()
    print(f"REFTUNE_KILL_SEED={SEED} REFTUNE_KILLS={KILLS}")
    for moment in range(KILLS):
        way = draw.choice(list(WAYS))
        output, log = place.folder / f"out-{moment}", place.folder / f"out-{moment}.log"
        process = start(place.arguments(way, output), log)
        if moment % 2:
            folder, pattern = drawn_target(draw, output, way)
            what = f"{folder.name}/{pattern}"
            until(process, lambda folder=folder, pattern=pattern: next(folder.glob(pattern), None))
            time.sleep(draw.random() * 0.002)
        else:
            seconds = draw.random() * place.seconds[way]
            what = f"{seconds:.2f} s"
            process.join(seconds)
        process.kill()
        wait(process)
        checkpoints = output / "checkpoints"
        broken = [path.name for path in checkpoints_in(checkpoints) if damage(path)]
        half = "in a checkpoint" if broken else "elsewhere"
        if next(output.glob(".saving.*"), None):
            half = "in the adapter"
        elif next(checkpoints.glob("frozen-prefix/0/.*"), None):
            half = "in the frozen prefix"
        how = assert_same_in_the_end(place, way, output, log)
        counts.update([half, how])
        print(f"{moment}: killed at {what} ({way}): {half} {broken or ''}, {how}, the same bits")
        shutil.rmtree(output)
    print(dict(counts))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    try:
        allowed = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        allowed = False
    if not allowed:
        pytest.skip("needs to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(path: Path) -> bool:
    """Take all that is free, and nothing else: it says that it is not done."""
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return False


# The mark is there so briefly before it has its name that it may be seen only then.
@pytest.mark.parametrize("file", ["adapter_config.json", "optimizer.pt", f"*{MARK}*"])
def test_a_disk_that_fills_up(place: Place, small_disk: Path, tmp_path: Path, file: str) -> None:
    output, log = small_disk / "out", tmp_path / "log"
    process = start(place.arguments("memory", output), log)
    checkpoints = output / "checkpoints"
    until(process, lambda: (checkpoints / "checkpoint-8" / MARK).exists())
    until(process, lambda: next(checkpoints.glob(f"checkpoint-12/{file}"), None))
    # again and again, since room that an older checkpoint leaves would do for the next
    until(process, lambda: fill(small_disk / "others"))
    assert wait(process) == 1
    lines = [line for line in log.read_text().splitlines() if line.startswith("reftune: ")]
    assert "Traceback" not in log.read_text()
    assert len(lines) == 1 and "No space left on device" in lines[0] and "stands" in lines[0], lines
    # and so it goes on being said while nothing is done about it
    assert wait(start([*place.arguments("memory", output), "--resume"], log)) == 1
    assert log.read_text().startswith("reftune: ") and "No space left on device" in log.read_text()
    assert len(log.read_text().splitlines()) == 1
    (small_disk / "others").unlink()
    assert assert_same_in_the_end(place, "memory", output, log) == "resumed"


def test_a_folder_that_becomes_read_only(place: Place, tmp_path: Path) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    checkpoints = output / "checkpoints"
    process = start(place.arguments("memory", output), log, bound=True)
    until(process, lambda: (checkpoints / "checkpoint-8" / MARK).exists())
    for folder in (output, checkpoints):
        folder.chmod(0o555)
    assert wait(process) == 1
    lines = [line for line in log.read_text().splitlines() if line.startswith("reftune: ")]
    assert "Traceback" not in log.read_text()
    assert len(lines) == 1 and "Permission denied" in lines[0] and "stands" in lines[0], lines
    process = start([*place.arguments("memory", output), "--resume"], log, bound=True)
    assert wait(process) == 1
    assert log.read_text().startswith("reftune: ") and "Permission denied" in log.read_text()
    assert len(log.read_text().splitlines()) == 1
    for folder in (output, checkpoints):
        folder.chmod(0o755)
    assert assert_same_in_the_end(place, "memory", output, log) == "resumed"
