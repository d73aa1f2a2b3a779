"""All that `reftune explain` tells of an adapter, as one dict of plain values.

Must not know: the command line, pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ...errors import ReftuneError
from .directions import Lens, basis_rows, edit_rows
from .edits import edit_sizes
from .effect import along_layers, next_tokens
from .matters import patch, smallest_set, switched_off
from .probe import Probe
from .switches import Text

__all__ = ["PARTS", "explained"]

Progress = Callable[[str, int, int], None]

PARTS = ("size", "direction", "effect", "matters", "patching")


def explained(
    probe: Probe,
    texts: Sequence[Text],
    *,
    parts: Sequence[str] = PARTS,
    count: int = 5,
    keep: float = 0.9,
    limit: int = 8,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The chosen parts: sizes over all texts, what matters over the first `limit`, all else of the first.

    `notes` says what could not be told and why.  `progress` gets what is done, and how much of it of how much.
    """
    with probe.keeping():
        return _explained(probe, texts, parts, count, keep, limit, progress or (lambda what, done, total: None))


def _explained(
    probe: Probe, texts: Sequence[Text], parts: Sequence[str], count: int, keep: float, limit: int, say: Progress
) -> dict[str, Any]:
    first, some, notes = texts[0], texts[:limit], []
    found: dict[str, Any] = {
        "sites": [
            {"site": site.name, "layer": site.layer, "positions": [str(g.spec) for g in groups], "rank": groups[0].r}
            for site in probe.sites
            for groups in [site.module.groups[probe.adapter]]
        ],
        "text": {
            "prompt_length": first.prompt_length,
            "tokens": list(first.pieces),
            "positions": probe.labels(first),
            "answer": first.answer_text,
        },
        "texts": len(texts),
    }
    lens: Lens | None = None
    if {"direction", "effect"} & set(parts):
        try:
            lens = Lens(probe, first)
        except ReftuneError as error:
            notes.append(str(error))
    if "size" in parts:
        what = "where and how much"
        found["size"] = asdict(edit_sizes(probe, texts, progress=lambda done: say(what, done, len(texts))))
    # of the first text the sizes are in its edits
    found["edits"] = edit_rows(probe, first, lens if "direction" in parts else None, count=count)
    if "direction" in parts:
        found["basis"] = [] if lens is None else basis_rows(probe, lens, count=count)
    if "effect" in parts:
        found["next"] = next_tokens(probe, first, count=count)
        found["along"] = [] if lens is None else along_layers(probe, first, lens)
    if "matters" in parts:
        what = f"what matters, in {len(some)} of {len(texts)} texts"
        say(what, 0, len(some))
        off = switched_off(probe, some, progress=lambda done: say(what, done, len(some)))
        found["matters"] = {"texts": len(some), **off}
        try:
            layers = len(probe.layers)
            found["matters"]["smallest"] = smallest_set(
                probe, some, keep=keep, progress=lambda done: say("the smallest set, of layers", done, layers)
            )
        except ReftuneError as error:
            found["matters"]["smallest"] = None
            notes.append(str(error))
    if "patching" in parts:
        found["patching"] = patch(probe, first)
        say("what each edit does alone", 1, 1)
    found["notes"] = notes
    return found
