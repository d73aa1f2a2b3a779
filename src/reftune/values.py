"""Values of a configuration, whoever wrote them: lists and numbers as JSON has them, and regexes that are module paths.

Must not know: the fields of a configuration, models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

__all__ = ["PATH", "literal_paths", "literal_regex", "of_layers", "plain", "ranges", "shown"]

# of a module within a model
PATH = re.compile(r"[\w-]+(?:\.[\w-]+)*", re.ASCII)
SHOWN = 200
# lists in lists that a valid field can have, and more
DEEPEST = 8


def plain(name: str, value: Any, depth: int = 0) -> Any:
    """As JSON has it: lists for tuples, ranges, sets and arrays, and Python's numbers for those of numpy and torch.

    Raises:
        ValueError: it is nested deeper, or a number is larger, than anything that is valid.
    """
    if depth > DEEPEST:
        raise ValueError(f"{name} is nested in more than {DEEPEST} lists; nothing that is valid is")
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: plain(f"{name}: {key}"[:SHOWN], item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, range, set, frozenset)):
        items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [plain(name, item, depth + 1) for item in items]
    if isinstance(value, int) and value.bit_length() > 31:
        raise ValueError(f"{name} has a whole number of more than 31 bits; nothing that is valid is as large")
    return value


def literal_regex(paths: Iterable[str]) -> str:
    """The regex that matches these module paths and nothing else: the only form in which reftune writes one."""
    return "|".join(re.escape(path) for path in paths)


def literal_paths(text: str) -> list[str] | None:
    r"""The module paths that a regex names, None if it is not of the form that `literal_regex` writes.

    That form is whole paths, escaped, with | between them: `model\.layers\.1|model\.layers\.2`.  To match it takes
    time in proportion to its length.  Any other regex from a file can take for ever, so it is not matched at all.
    """
    paths = text.replace("\\", "").split("|")
    if literal_regex(paths) != text or not all(PATH.fullmatch(path) for path in paths):
        return None
    return paths


def of_layers(regex: str) -> bool:
    """Whether it is what is written beside layers: whole paths, each with the number of a block in it."""
    paths = literal_paths(regex)
    return paths is not None and all(any(part.isdecimal() for part in path.split(".")) for path in paths)


def shown(value: Any, most: int = SHOWN) -> str:
    """As Python writes it, cut where it is long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        # nested too deep, or a number of thousands of digits
        return "<too large to be shown>"
    return text if len(text) <= most else f"{text[:most]}..."


def ranges(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 → "0–2, 5"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
