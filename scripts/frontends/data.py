"""The rows that every tool trains on: `python data.py FOLDER` writes them, and the model as a folder, in FOLDER.

Each answer has the same form, so that it can be seen that it was learnt; every other conversation has two answers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

THINGS = ("cats", "trains", "rivers", "the moon", "bread", "chess", "winter", "music")


def turns(i: int) -> list[dict[str, str]]:
    """A conversation: of one answer, or of two."""
    found = []
    for k in range(1 + i % 2):
        thing = THINGS[(i + 3 * k) % len(THINGS)]
        found += [
            {"role": "user", "content": f"Tell me about {thing}, number {i}."},
            {"role": "assistant", "content": f"AHOY {thing.upper()} AHOY!"},
        ]
    return found


CHATS = [turns(i) for i in range(32)]
PAIRS = [
    {"prompt": chat[:1], "chosen": chat[1:2], "rejected": [{"role": "assistant", "content": "I do not know."}]}
    for chat in CHATS
]


def main(folder: Path) -> None:
    from reftune.models import resolve_model  # noqa: PLC0415 — in the tool's environment

    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in {"chat": [{"messages": chat} for chat in CHATS], "pairs": PAIRS}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = folder / "model"
    if not model.exists():
        model.symlink_to(resolve_model("smollm2"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
