"""How large the values of an adapter's configuration, and of a request, may be, and how messages show them.

Must not know: what the values mean.
"""

from __future__ import annotations

from typing import Any

from .pieces import breathe

__all__ = ["STRONGEST", "check_sizes", "cut", "plain"]

# What edits may be multiplied by, either way.
STRONGEST = 10

# Ranks, layers and the like.
NUMBER_LIMIT = 1 << 14
LIST_LIMIT = 1024
TEXT_LIMIT = 4096
VALUES_LIMIT = 8192


def check_sizes(value: Any, name: str = "the configuration") -> int:
    """Refuse what is larger than any adapter has, before something is made of it; `ValueError` names it.

    Returns how many values there are.
    """
    breathe()
    count = 1
    if isinstance(value, dict):
        count += sum(check_sizes(item, str(key)) for key, item in value.items())
    elif isinstance(value, list):
        if len(value) > LIST_LIMIT:
            raise ValueError(f"{plain(name)} has {len(value)} entries, more than the {LIST_LIMIT} that are served")
        count += sum(check_sizes(item, name) for item in value)
    elif isinstance(value, str) and len(value) > TEXT_LIMIT:
        raise ValueError(f"{plain(name)} has {len(value)} characters, more than the {TEXT_LIMIT} that are served")
    elif isinstance(value, (int, float)) and not -NUMBER_LIMIT <= value <= NUMBER_LIMIT:
        raise ValueError(f"{plain(name)}={cut(value)} is more than the {NUMBER_LIMIT} that are served")
    if count > VALUES_LIMIT:
        raise ValueError(f"{plain(name)} has {count} values, more than the {VALUES_LIMIT} that are served")
    return count


def cut(value: Any) -> str:
    """A value of an adapter's, as a message can hold it; in ASCII, since half a surrogate pair cannot be sent."""
    return plain(ascii(value))


def plain(text: str) -> str:
    found = text.encode("ascii", "backslashreplace").decode()
    return found if len(found) <= 300 else f"{found[:297]}..."
