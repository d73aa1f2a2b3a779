"""What is said of a task of one's own: a file, and how it is scored; by its name alone or as keys and values.

Must not know: what is in the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ...errors import ReftuneError
from ..tasks import GROUPS, TASKS
from .readings import check_score

__all__ = ["OwnEntry", "is_file"]

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class OwnEntry:
    """A task as `tasks` of a comparison has it.  Unknown keys are refused."""

    file: str
    """Records to score; with `split` also those to train on."""
    train: str | None = None
    """Records to train on."""
    split: float | None = None
    """The part of `file` that is scored and not trained on, where there is no `train`."""
    score: str | None = None
    """How answers are scored; none: as fits them."""
    answer: str | None = None
    """Column of the right answer; none: the response of the record."""
    name: str | None = None
    """In results; none: that of the file without its suffix."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "split" and value is not None and (not isinstance(value, str) or not value.strip()):
                raise ReftuneError(f"tasks: {field.name}={value!r} is not valid; it is a text")
        if not self.file:
            raise ReftuneError("tasks: an entry needs file: a name such as test.jsonl")
        if self.train is not None and self.split is not None:
            raise ReftuneError(f"{self.file}: give train or split, not both: a split makes rows to train on by itself")
        if self.split is not None:
            check_split(self.split)
        if self.score is not None:
            check_score(self.score)
        if self.name is not None and (self.name in TASKS or self.name in GROUPS or Path(self.name).name != self.name):
            raise ReftuneError(f"tasks: name={self.name!r} is not valid; use a plain name that no other task has")

    @classmethod
    def of(cls, value: Any) -> OwnEntry:
        """From a file's name, or from keys and values.

        Raises:
            ReftuneError: it is neither, or a key is unknown.
        """
        if isinstance(value, str):
            return cls(value)
        valid = [field.name for field in fields(cls)]
        if not isinstance(value, Mapping):
            raise ReftuneError(
                f"tasks: {value!r} is not valid; give names, files, or keys and values: {', '.join(valid)}"
            )
        unknown = sorted(map(str, set(value) - set(valid)))
        if unknown:
            raise ReftuneError(f"tasks has unknown keys {', '.join(map(repr, unknown))}; valid are {', '.join(valid)}")
        if value.get("file") is None:
            raise ReftuneError(f"tasks: {dict(value)!r} lacks file, such as test.jsonl")
        return cls(**{key: given for key, given in value.items() if given is not None})

    @property
    def task_name(self) -> str:
        """Names a file of answers; never that of a benchmark set, whose published numbers would stand beside it."""
        if self.name is not None:
            return self.name
        stem = Path(self.file).name.partition(".")[0] or Path(self.file).name
        return f"own-{stem}" if stem in TASKS or stem in GROUPS or stem in ("settings", "summary") else stem

    @property
    def title(self) -> str:
        """As tables show it."""
        return self.name or Path(self.file).name

    def values(self) -> dict[str, Any]:
        """What `of` takes, without what is not given."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def check_split(value: Any) -> None:
    """Make sure that a split is a part of a whole.

    Raises:
        ReftuneError: it is not.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not 0 < value < 1:
        raise ReftuneError(f"split={value!r} is not valid; use the part of the rows to score, such as 0.2")


def is_file(name: str) -> bool:
    """Whether a name in a list of tasks is that of a file, be it there or not."""
    if name in TASKS or name in GROUPS:
        return False
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    return "/" in name or "\\" in name or any(suffix in SUFFIXES for suffix in suffixes) or Path(name).exists()
