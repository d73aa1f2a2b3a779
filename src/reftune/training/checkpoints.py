"""Checkpoints on disk: written whole, told from those that are not, with room for them, by one run at a time.

Trainer writes the files of a checkpoint one after the other into the folder where they stay.  Here a mark is written
last, which lists them with their digests: without it, or with other files, a checkpoint is not whole.

Must not know: models, what a run trains.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import ReftuneError
from ..files import existing_part, sync, told, write_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["MARK", "Room", "checkpoints_in", "damage", "last_whole", "only_run", "rotate", "saving", "seal"]

logger = logging.getLogger("reftune")

NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")
MARK = "whole.json"
LOCK = ".lock"
# transformers removes this one when a checkpoint made on SIGTERM is done
NOT_OURS = {MARK, "checkpoint-is-incomplete.txt"}
# Of weights: themselves, and the two moments of Adam.
WEIGHTS_KEPT = 3
# Tokenizers are saved into each checkpoint: measured 100 (Gemma) to 130 (Llama 3) bytes a token.
TOKEN_BYTES = 130
READ_BYTES = 1 << 20
MB = 1e6


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints below a folder, by their steps."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(
        (p for p in found if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", p.name) and p.is_dir()), key=step_of
    )


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


# --- whole or not ---------------------------------------------------------------------------------------------------


@contextmanager
def saving(checkpoint: Path) -> Iterator[None]:
    """Inside, the files of a checkpoint are written and sealed; what is not ends as no checkpoint.

    Raises:
        ReftuneError: files cannot be written; the message says what is left.
    """
    try:
        with told(checkpoint):
            (checkpoint / MARK).unlink(missing_ok=True)
            yield
    except BaseException as error:
        shutil.rmtree(checkpoint, ignore_errors=True)
        if not isinstance(error, ReftuneError):
            raise
        left = [path.name for path in checkpoints_in(checkpoint.parent) if step_of(path) < step_of(checkpoint)]
        stands = f"{left[-1]} stands: mend that, and resume" if left else "there is none before it"
        raise ReftuneError(f"{error}; {stands}") from error


def seal(checkpoint: Path) -> None:
    """Write the mark, when everything else is written."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name not in NOT_OURS)
    for file in files:
        sync(file)
    digests = {file.relative_to(checkpoint).as_posix(): digest(file) for file in files}
    write_text(checkpoint / MARK, json.dumps(digests, indent=1) + "\n")


def digest(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(READ_BYTES):
            found.update(part)
    return found.hexdigest()


def damage(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be resumed from; None if it is whole."""
    if not checkpoint.is_dir():
        return "there is no such folder"
    mark = checkpoint / MARK
    if not mark.is_file():
        return "it was not written to its end, or with save_only_model"
    try:
        digests = json.loads(mark.read_bytes())
        for name, wanted in digests.items():
            if not (checkpoint / name).is_file():
                return f"{name} is missing"
            if digest(checkpoint / name) != wanted:
                return f"{name} is damaged"
    except (AttributeError, ValueError):
        return f"{MARK} is damaged"
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    return None


def last_whole(folder: Path, *, quiet: bool = False) -> Path:
    """The checkpoint to go on from; a line says which later ones are not whole, unless `quiet`.

    Raises:
        ReftuneError: there is none.
    """
    skipped: list[str] = []
    for checkpoint in reversed(checkpoints_in(folder)):
        why = damage(checkpoint)
        if why is None:
            if skipped and not quiet:
                logger.warning("not whole: %s; training goes on from %s", "; ".join(skipped), checkpoint.name)
            return checkpoint
        skipped.append(f"{checkpoint.name} ({why})")
    if skipped:
        raise ReftuneError(
            f"no checkpoint below {str(folder)!r} is whole: {'; '.join(skipped)}; remove that folder, or use "
            "--overwrite, to start anew"
        )
    raise ReftuneError(f"there is no checkpoint below {str(folder)!r} to resume from; train without --resume")


def rotate(run: Path, step: int, *, limit: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints before the one of this step, so that `limit` are left; `best` is one of them.

    Later ones are of a run that this one has gone back behind: they do not count.
    """
    if not limit or limit < 1:
        return
    earlier = [path for path in checkpoints_in(run) if step_of(path) < step]
    others = [path for path in earlier if best is None or path.absolute() != Path(best).absolute()]
    kept = max(0, limit - 1 - (len(earlier) - len(others)))
    for path in others[: len(others) - kept]:
        shutil.rmtree(path, ignore_errors=True)


# --- room -----------------------------------------------------------------------------------------------------------


class Room(TrainerCallback):
    """Refuses a training whose checkpoints do not fit on the disk, as far as that can be known."""

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, processing_class: Any = None, **kwargs: Any
    ) -> None:
        left = state.max_steps - state.global_step
        if args.save_strategy == "no" or not args.should_save or left <= 0:
            return
        folder = Path(args.output_dir)
        weights = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        tokens = len(processing_class) if hasattr(processing_class, "__len__") else 0
        size = weights * (1 if args.save_only_model else WEIGHTS_KEPT) + tokens * TOKEN_BYTES
        by_steps = args.save_strategy == "steps" and state.save_steps > 0
        count = math.ceil(left / state.save_steps if by_steps else args.num_train_epochs * left / state.max_steps)
        if args.save_total_limit:
            # one more while it is written
            count = min(count, max(1, args.save_total_limit + 1 - len(checkpoints_in(folder))))
        need, free = count * size + weights, shutil.disk_usage(existing_part(folder)).free
        if need > free:
            raise ReftuneError(
                f"the disk of {str(folder)!r} has {free / MB:.1f} MB free, and training needs about {need / MB:.1f} MB "
                f"(checkpoints: {count} of {size / MB:.1f} MB); make room, or keep fewer by save_total_limit"
            )


# --- one run --------------------------------------------------------------------------------------------------------


@contextmanager
def only_run(output: Path) -> Iterator[None]:
    """Inside, no other process may be so with this folder.  A process that is killed holds nothing.

    Raises:
        ReftuneError: another process is; or the folder cannot be made.
    """
    with told(output):
        output.mkdir(parents=True, exist_ok=True)
        file = _locked(output / LOCK)
    try:
        yield
    finally:
        # unlinked before it is let go: whoever waits for it looks whether it is still the one with this name
        with suppress(OSError):
            (output / LOCK).unlink()
        file.close()
        with suppress(OSError):
            # where nothing came of it
            output.rmdir()


def _locked(path: Path) -> Any:
    while True:
        # unbuffered: on a full disk nothing is left to be written when it is closed
        file = path.open("ab+", buffering=0)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read().decode(errors="replace") or "another process"
            file.close()
            raise ReftuneError(
                f"another run trains into {str(path.parent)!r} now ({who}); wait for its end, or use another --output"
            ) from None
        except OSError:
            # a file system without locks
            return file
        with suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()
    with suppress(OSError):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    return file
