"""The folder of fine-tuning on disk: uploaded files by their content, a folder for each job, one for each adapter.

No name that a client gives is ever part of a path: files are called by the hash of their content, jobs and adapters by
ids that were drawn here.

Must not know: the database, HTTP, models.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from ...errors import ReftuneError
from ...files import sync, told, whole
from ..modules import FILES

__all__ = ["Folder", "suffix_of"]

SUFFIXES = (".jsonl", ".json", ".csv")
# Also of an adapter's folder: its card.
PUBLISHED = (*FILES, "README.md")
PART = ".part"


def suffix_of(filename: str) -> str:
    """The kind of a training file, by its name.

    Raises:
        ReftuneError: it is another.
    """
    found = next((suffix for suffix in SUFFIXES if filename.lower().endswith(suffix)), None)
    if found is None:
        raise ReftuneError(f"the file {filename[-100:]!r} is of an unknown kind; use {', '.join(SUFFIXES)}")
    return found


class Folder:
    """Where everything lies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = path / "files"
        self.jobs = path / "jobs"
        self.adapters = path / "adapters"
        for folder in (self.files, self.jobs, self.adapters):
            with told(folder):
                folder.mkdir(parents=True, exist_ok=True)

    def add(self, content: bytes, suffix: str) -> str:
        """Keep a content; its name, the same for the same content."""
        name = hashlib.sha256(content).hexdigest() + suffix
        path = self.files / name
        if not path.is_file():
            with whole(path) as part:
                part.write_bytes(content)
        return name

    def blob(self, name: str) -> Path:
        return self.files / name

    def job(self, id: str) -> Path:
        return self.jobs / id

    def adapter(self, id: str) -> Path:
        return self.adapters / id

    def publish(self, id: str) -> Path:
        """Take the adapter that a job has trained to where it is served from; whole, or not at all.

        Raises:
            ReftuneError: it cannot be written.
        """
        target = self.adapter(id)
        part = target.with_name(f"{PART}.{id}")
        shutil.rmtree(part, ignore_errors=True)
        with told(target):
            part.mkdir()
            for name in PUBLISHED:
                source = self.job(id) / name
                if source.is_file():
                    shutil.copyfile(source, part / name)
                    sync(part / name)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(part, target)
        return target

    def zipped(self, id: str) -> bytes:
        """The files of an adapter, in a folder of its id."""
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(self.adapter(id).iterdir()):
                file.write(path, f"{id}/{path.name}")
        return made.getvalue()

    def forget_job(self, id: str) -> None:
        shutil.rmtree(self.job(id), ignore_errors=True)

    def forget_adapter(self, id: str) -> None:
        # at once: what is left of it when this is killed has another name
        target = self.adapter(id)
        part = target.with_name(f"{PART}.{id}")
        shutil.rmtree(part, ignore_errors=True)
        with suppress(FileNotFoundError):
            os.replace(target, part)
        shutil.rmtree(part, ignore_errors=True)

    def sweep(self, *, blobs: Collection[str], jobs: Collection[str], adapters: Collection[str]) -> list[str]:
        """Remove all but these, which nobody needs: left by processes that were killed.  What was removed."""
        removed = []
        for folder, kept in ((self.files, blobs), (self.jobs, jobs), (self.adapters, adapters)):
            for path in folder.iterdir():
                if path.name in kept:
                    continue
                removed.append(f"{folder.name}/{path.name}")
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    with suppress(OSError):
                        path.unlink()
        return removed

    def bytes(self) -> int:
        """All that lies here."""
        found = 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                with suppress(OSError):
                    found += os.lstat(os.path.join(folder, name)).st_size
        return found
