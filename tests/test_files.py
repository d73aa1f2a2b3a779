"""Files are written whole or not at all, and what hinders that is one line.

Must not know: what is written.
"""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from reftune import ReftuneError
from reftune.files import check_writable, told, whole, write_text


def full(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_old_content_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    assert path.read_text() == "one"
    write_text(path, "two")
    assert path.read_text() == "two"
    for error in (KeyboardInterrupt, OSError(errno.EDQUOT, "Disk quota exceeded"), AssertionError("a bug")):
        with pytest.raises((KeyboardInterrupt, ReftuneError, AssertionError)), whole(path) as part:
            part.write_text("thr")
            raise error
        assert path.read_text() == "two"
        assert list(path.parent.iterdir()) == [path]


def test_errors_of_files_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(ReftuneError, match=r"a\.txt' cannot be written: Disk quota exceeded$"),
        told(tmp_path / "a.txt"),
    ):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    with pytest.raises(ReftuneError, match=r"cannot be written: Error while serializing: odd$"), told(tmp_path / "a"):
        raise SafetensorError("Error while serializing: odd")
    # torch and safetensors hide the cause
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    for hidden in (RuntimeError("unexpected pos 576 vs 534"), SafetensorError("I/O error (os error 28)")):
        with pytest.raises(ReftuneError, match=r"cannot be written: No space left on device$"), told(tmp_path / "a"):
            raise hidden


def test_errors_of_other_things_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"), told(tmp_path / "a"):
        raise RuntimeError("CUDA out of memory")
    with pytest.raises(ReftuneError, match=r"^ours$"), told(tmp_path / "a"):
        raise ReftuneError("ours")


def test_folders_are_looked_at_before_anything_takes_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "below" / "it"):
        with pytest.raises(ReftuneError, match=r"file' is a file, not a folder"):
            check_writable(folder)
    check_writable(tmp_path)
    check_writable(tmp_path / "not" / "there")
    assert list(tmp_path.iterdir()) == [file]
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(ReftuneError, match=r"there' cannot be written: No space left on device; .*name another"):
        check_writable(tmp_path / "not" / "there")
