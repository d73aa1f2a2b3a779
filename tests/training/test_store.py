"""Where frozen prefixes are kept: memory or memory-mapped files, by size; whole or not at all; found again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import reftune.training.store as store_module
from reftune.training.reuse import FrozenPrefix
from reftune.training.store import GB, DiskStore, Entry, MemoryStore, choose_store
from tests.models import tiny_model
from tests.training.fast_models import (
    RowData,
    adapted,
    assert_same,
    course_of,
    off_lines,
    on_lines,
    plain_course,
    ragged,
)
from tests.training.fast_models import trainer_of as trainer_of_rows

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")

CPU = torch.device("cpu")
ROWS = ragged(10)
# long enough that another window is another window
LONG_ROWS = ragged(8, seed=4, prompts=(5, 14))
ON_DISK = {"reuse_limit_gb": 0.0}


def trainer_of(folder: Path, **arguments: Any) -> Any:
    return trainer_of_rows(folder, adapted(), ROWS, **arguments)


def entries(count: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Entry]:
    """Of windows that differ, the first one of nothing before it and the second one of nothing behind it."""
    draw = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    hidden, kv = {1: 0}, {0: 0}
    return {
        f"{seed:x}{i:x}": Entry(values(hidden.get(i, i + 1), 8), values(2, 2, 3, kv.get(i, i + 2), 4))
        for i in range(count)
    }


def assert_holds(store: Any, expected: dict[str, Entry]) -> None:
    for key, entry in expected.items():
        assert key in store
        for tensor, wanted in zip(store[key], entry, strict=True):
            assert tensor.dtype == wanted.dtype and torch.equal(tensor, wanted)


def files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# --- one store -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda folder: MemoryStore(CPU), DiskStore], ids=["memory", "disk"])
@pytest.mark.parametrize("shard", [1, 10**9])
def test_entries_come_back_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Any], dtype: torch.dtype, shard: int
) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", shard)
    store, some, more = make(tmp_path / "a"), entries(4, dtype=dtype), entries(3, seed=1, dtype=dtype)
    assert "00" not in store
    store.add(some)
    store.add(more)
    assert_holds(store, {**some, **more})
    assert "ff" not in store
    with pytest.raises(KeyError):
        store["ff"]
    store.close(keep=False)
    assert "00" not in store
    assert not (tmp_path / "a").exists()


def test_files_are_found_again(tmp_path: Path) -> None:
    store, some = DiskStore(tmp_path), entries(4)
    store.add(some)
    store.close(keep=True)
    assert len(files_below(tmp_path)) == 1
    again = DiskStore(tmp_path)
    assert_holds(again, some)
    later = entries(2, seed=1)
    again.add(later)
    again.close(keep=True)
    assert_holds(DiskStore(tmp_path), {**some, **later})
    again = DiskStore(tmp_path)
    again.close(keep=True)
    assert len(files_below(tmp_path)) == 2


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some, real = entries(4), store_module.save_file
    whole = DiskStore(tmp_path)
    whole.add(some)
    whole.close(keep=True)

    def interrupted(tensors: Any, path: str) -> None:
        real(tensors, path)
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module, "save_file", interrupted)
    store = DiskStore(tmp_path)
    store.add(entries(3, seed=1))
    with pytest.raises(KeyboardInterrupt):
        store.close(keep=True)
    monkeypatch.undo()
    assert [Path(name).suffix for name in files_below(tmp_path)].count(".safetensors") == 1
    again = DiskStore(tmp_path)
    assert_holds(again, some)
    assert not [key for key in entries(3, seed=1) if key in again]
    # and what was half is in nobody's way
    again.add(entries(3, seed=1))
    again.close(keep=True)
    assert_holds(DiskStore(tmp_path), {**some, **entries(3, seed=1)})


@pytest.mark.parametrize("content", [b"not whole", b"", bytes(100)])
def test_a_broken_file_is_removed(tmp_path: Path, content: bytes) -> None:
    store = DiskStore(tmp_path)
    store.add(entries(4))
    store.close(keep=True)
    (tmp_path / "abc.safetensors").write_bytes(content)
    assert_holds(DiskStore(tmp_path), entries(4))
    assert len(files_below(tmp_path)) == 1


def free(monkeypatch: pytest.MonkeyPatch, *, memory: float, disk: float) -> None:
    """Pretend that so many GB are free."""
    monkeypatch.setattr(store_module.psutil, "virtual_memory", lambda: SimpleNamespace(available=memory * GB))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=disk * GB))


@pytest.mark.parametrize(
    ("size", "limit", "kind"),
    [
        # half of the 10 GB of memory, half of the 100 GB on disk
        (5.0, None, MemoryStore),
        (5.1, None, DiskStore),
        (50.0, None, DiskStore),
        (50.1, None, str),
        # a limit may be more than half, but never more than there is
        (1.0, 1.0, MemoryStore),
        (1.1, 1.0, DiskStore),
        (8.0, 8.0, MemoryStore),
        (9.5, 20.0, DiskStore),
        (0.1, 0.0, DiskStore),
        (50.1, 0.0, str),
    ],
)
def test_the_first_place_that_is_large_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: float, limit: float | None, kind: type
) -> None:
    free(monkeypatch, memory=10, disk=100)
    found = choose_store(int(size * GB), device=CPU, folder=tmp_path / "a", limit_gb=limit)
    assert isinstance(found, kind)
    if isinstance(found, str):
        assert f"{size:.1f} GB fit neither in memory" in found and "half of what is free: 50.0 GB" in found


# --- in training -----------------------------------------------------------------------------------------------------


class _Look(TrainerCallback):
    """Files below a folder and those of them that this process maps, at the end of each step."""

    def __init__(self, folder: Path, *, stop: bool = False) -> None:
        self.folder = folder
        self.stop = stop
        self.files: list[list[str]] = []
        self.maps: list[str] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.files.append(files_below(self.folder))
        maps = Path("/proc/self/maps")
        self.maps.append(maps.read_text() if maps.exists() else "")
        if self.stop:
            raise KeyboardInterrupt


def test_on_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 1)
    # a few rows at a time, so that there are several files
    monkeypatch.setattr("reftune.training.reuse.FILL_TOKENS", 60)
    look = _Look(tmp_path / "frozen-prefix")
    found = course_of(trainer_of(tmp_path, max_steps=3, callbacks=[look], more=ON_DISK))
    assert_same(found, plain_course(adapted(), ROWS, steps=3))
    assert f"files below {tmp_path / 'frozen-prefix'}" in on_lines(caplog)[0]
    assert len(look.files[0]) > 1 and {Path(name).suffix for name in look.files[0]} == {".safetensors"}
    # nothing is written after the first step
    assert look.files == [look.files[0]] * 3
    if any(look.maps):
        assert all(name in look.maps[-1] for name in look.files[0])
    assert not (tmp_path / "frozen-prefix").exists()


def test_what_fills_no_shard_is_on_disk_too(tmp_path: Path) -> None:
    look = _Look(tmp_path / "frozen-prefix")
    trainer_of(tmp_path, max_steps=2, callbacks=[look], more=ON_DISK).train()
    assert len(look.files[0]) >= 1


def test_a_run_in_memory_removes_what_an_interrupted_one_left(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path, max_steps=3, callbacks=[_Look(tmp_path, stop=True)], more=ON_DISK).train()
    assert (tmp_path / "frozen-prefix").exists()
    trainer_of(tmp_path, max_steps=3).train()
    assert not (tmp_path / "frozen-prefix").exists()


def test_an_interrupted_run_finds_its_entries_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path, max_steps=3, callbacks=[_Look(tmp_path, stop=True)], more=ON_DISK).train()
    kept = files_below(tmp_path / "frozen-prefix")
    assert kept
    told: list[tuple[int, int]] = []
    look = _Look(tmp_path / "frozen-prefix")
    more = {**ON_DISK, "on_fill": lambda done, total: told.append((done, total))}
    found = course_of(trainer_of(tmp_path, max_steps=3, callbacks=[look], more=more))
    assert_same(found, plain_course(adapted(), ROWS, steps=3))
    assert told == [(10, 10)]
    assert look.files == [kept] * 3
    assert files_below(tmp_path) == []


def stop_after(count: int) -> Callable[[int, int], None]:
    def stop(done: int, total: int) -> None:
        if done > count:
            raise KeyboardInterrupt

    return stop


def test_an_interrupted_fill_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reftune.training.reuse.FILL_TOKENS", 20)

    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path, max_steps=3, more={**ON_DISK, "on_fill": stop_after(5)}).train()
    told: list[int] = []
    more = {**ON_DISK, "on_fill": lambda done, total: told.append(done)}
    found = course_of(trainer_of(tmp_path, max_steps=3, more=more))
    assert_same(found, plain_course(adapted(), ROWS, steps=3))
    assert 5 < told[0] < told[-1] == 10
    assert files_below(tmp_path) == []


def test_without_room_there_is_no_reuse(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, memory=10, disk=0)
    found = course_of(trainer_of(tmp_path, max_steps=3, more=ON_DISK))
    assert_same(found, plain_course(adapted(), ROWS, steps=3))
    said = off_lines(caplog)
    assert len(said) == 1 and "fit neither in memory (limit 0.0 GB; reuse_limit_gb) nor on the disk" in said[0]
    assert not on_lines(caplog) and files_below(tmp_path) == []


def full(tensors: Any, path: str) -> None:
    Path(path).write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_a_disk_that_fills_up_meanwhile_only_ends_the_reuse(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "save_file", full)
    assert_same(course_of(trainer_of(tmp_path, max_steps=3, more=ON_DISK)), plain_course(adapted(), ROWS, steps=3))
    assert "cannot be written: No space left on device" in off_lines(caplog)[0]
    assert files_below(tmp_path) == []


def test_an_interruption_stays_one_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskStore(tmp_path)
    store.add(entries(2))
    monkeypatch.setattr(store_module, "save_file", full)
    store.close(keep=True)
    assert files_below(tmp_path) == []


def test_a_folder_that_cannot_be_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    found = str(choose_store(10**9, device=CPU, folder=tmp_path / "a" / "0", limit_gb=0.0))
    assert "do not fit in memory" in found and "is a file, not a folder" in found


def test_what_is_computed_together_does_not_depend_on_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run that was killed would end in other bits.  Three of the longest rows are taken at once here."""
    monkeypatch.setattr("reftune.training.reuse.FILL_TOKENS", 60)
    monkeypatch.setattr("reftune.training.reuse.call_tokens", lambda device: 1)
    monkeypatch.setattr(store_module, "SHARD_BYTES", 1)
    parts, record = list[tuple[int, ...]](), FrozenPrefix._record

    def recorded(self: Any, rows: Any, starts: Any) -> Any:
        parts.append(tuple(hash(tuple(row.ids)) for row in rows))
        return record(self, rows, starts)

    monkeypatch.setattr(FrozenPrefix, "_record", recorded)
    trainer_of(tmp_path / "whole", max_steps=1, more=ON_DISK).train()
    whole = list(parts)

    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path / "part", max_steps=1, more={**ON_DISK, "on_fill": stop_after(2)}).train()
    parts.clear()
    trainer_of(tmp_path / "part", max_steps=1, more=ON_DISK).train()
    assert len(parts) < len(whole) and set(parts) <= set(whole)


# --- what entries on disk are found again for ------------------------------------------------------------------------


def of_base(**overrides: Any) -> Any:
    return adapted(base=tiny_model("llama", layers=3, overrides=overrides))


def of_other_weights() -> Any:
    return adapted(base=tiny_model("llama", layers=3, seed=1))


def with_eager_attention() -> Any:
    base = tiny_model("llama", layers=3)
    base.set_attn_implementation("eager")
    return adapted(base=base)


def of_permuted_weights() -> Any:
    """Two tokens change places, neither of which is in the rows with which the replay is tried."""
    tried = {token for row in LONG_ROWS[:2] for token in row["input_ids"]}
    later = (row["input_ids"][: row["prompt_length"] - 1] for row in LONG_ROWS[2:])
    one, other = sorted({token for tokens in later for token in tokens} - tried)[:2]
    base = tiny_model("llama", layers=3)
    with torch.no_grad():
        table = base.get_input_embeddings().weight
        table[[one, other]] = table[[other, one]].clone()
    return adapted(base=base)


SECOND_RUNS: dict[str, tuple[Callable[[], Any], list[RowData], bool]] = {
    "the same": (adapted, LONG_ROWS, True),
    "another rank and start": (lambda: adapted(r=3, seed=5), LONG_ROWS, True),
    "another window": (lambda: adapted(positions="l2"), LONG_ROWS, False),
    "another block": (lambda: adapted(layers=[0]), LONG_ROWS, False),
    "other weights": (of_other_weights, LONG_ROWS, False),
    "permuted weights": (of_permuted_weights, LONG_ROWS, False),
    "another configuration": (lambda: of_base(rms_norm_eps=0.1), LONG_ROWS, False),
    "another attention": (with_eager_attention, LONG_ROWS, False),
    "other tokens": (
        adapted,
        [{**row, "input_ids": [3, *row["input_ids"][1:]]} for row in LONG_ROWS],
        False,
    ),
}


@pytest.mark.parametrize("name", SECOND_RUNS)
def test_entries_serve_the_same_run_only(tmp_path: Path, name: str) -> None:
    make, rows, serves = SECOND_RUNS[name]
    with pytest.raises(KeyboardInterrupt):
        trainer_of_rows(
            tmp_path, adapted(), LONG_ROWS, max_steps=3, callbacks=[_Look(tmp_path, stop=True)], more=ON_DISK
        ).train()
    told: list[int] = []
    more = {**ON_DISK, "on_fill": lambda done, total: told.append(done)}
    found = course_of(trainer_of_rows(tmp_path, make(), rows, max_steps=2, more=more))
    assert_same(found, plain_course(make(), rows, steps=2))
    assert told[-1] == len(rows)
    # otherwise the first few, with which the replay was tried, are all there is
    assert (told[0] == len(rows)) is serves


def test_entries_of_another_arithmetic_do_not_serve(tmp_path: Path) -> None:
    first = {"max_steps": 3, "bf16": True, "callbacks": [_Look(tmp_path, stop=True)], "more": ON_DISK}
    with pytest.raises(KeyboardInterrupt):
        trainer_of_rows(tmp_path, adapted(), LONG_ROWS, **first).train()
    assert list((tmp_path / "frozen-prefix").rglob("*.safetensors"))
    told: list[int] = []
    more = {**ON_DISK, "on_fill": lambda done, total: told.append(done)}
    found = course_of(trainer_of_rows(tmp_path, adapted(), LONG_ROWS, max_steps=2, more=more))
    assert_same(found, plain_course(adapted(), LONG_ROWS, steps=2))
    assert told[0] < told[-1] == len(LONG_ROWS)
