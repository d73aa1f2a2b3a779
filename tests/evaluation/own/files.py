"""Files of records as people have them, for tests of tasks of their own.

Must not know: what is tested with them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["KINDS", "jsonl", "messages"]

KINDS = ("refund", "delivery", "praise")


def messages(count: int, *, first: int = 0) -> list[dict[str, str]]:
    """Messages of a shop, of three kinds in turn, each with a text of its own; words of the tests' tokenizer."""
    return [
        {"prompt": f"w{i % 50} w{i // 50} w{7 * i % 50}", "completion": KINDS[i % 3]}
        for i in range(first, first + count)
    ]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
