"""Adapters in folders made into one in another, with the angles between what they write into.

Must not know: how edits are combined, which is `tuner.together`'s.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..adapter_files import common_style
from ..errors import ReftuneError
from ..files import write_text
from ..tuner.parts import Group
from ..tuner.together import combined, row_space, rows_of
from .parts import base_of, check_output, groups_in, write

__all__ = ["Angles", "merge", "principal_angles", "spaces_of"]

PICTURE = "angles.svg"


class Angles(NamedTuple):
    """Between what two adapters write into at one place: degrees, the largest first; 90 is nothing in common."""

    first: str
    second: str
    component: str
    layer: int
    degrees: list[float]


def principal_angles(one: Tensor, two: Tensor) -> list[float]:
    """Degrees between the spans of two orthonormal bases [d, k], the largest first (Björck and Golub 1973)."""
    if not one.shape[1] or not two.shape[1]:
        return []
    cosines = torch.linalg.svdvals(one.mT @ two).clamp(max=1.0)
    # near 0 an arc cosine has half the digits, so the sine is used there
    sines = torch.linalg.svdvals(two - one @ (one.mT @ two)).flip(0)[: len(cosines)].clamp(max=1.0)
    found = [math.asin(s) if s < 0.7 else math.acos(c) for c, s in zip(cosines.tolist(), sines.tolist(), strict=True)]
    return sorted((math.degrees(angle) for angle in found), reverse=True)


def merge(
    adapters: Sequence[str | Path],
    output: str | Path,
    *,
    mode: str = "sum",
    weights: Sequence[float] | None = None,
    base: str | None = None,
) -> tuple[Path, list[Angles]]:
    """The adapters in these folders as one, whose edits are those of all, each times its weight (1).

    Modes are those of `ReftModel.add_weighted_adapter`.  Of the base model only the configuration is read.  Where
    matplotlib is installed, a picture of the angles lies beside the adapter.

    Raises:
        ReftuneError: they are of other base models or methods, or collide; nothing is written then.
    """
    if len(adapters) < 2:
        raise ReftuneError("one adapter alone cannot be merged; name two or more")
    labels = [str(adapter) for adapter in adapters]
    if len(set(labels)) < len(labels):
        raise ReftuneError(f"the same adapter is named twice: {', '.join(labels)}")
    if weights is not None and len(weights) != len(labels):
        raise ReftuneError(f"{len(weights)} weights for {len(labels)} adapters")
    check_output(output)
    name = base or base_of(labels)
    apart = {label: groups_in(label, base=name) for label in labels}
    own = dict(zip(labels, weights or [1.0] * len(labels), strict=True))
    try:
        groups = combined(apart, own, mode)
    except ValueError as error:
        raise ReftuneError(f"{' and '.join(map(repr, labels))} cannot be merged: {error}") from error
    angles = [found for one, two in combinations(labels, 2) for found in _angles(one, apart[one], two, apart[two])]
    folder = write(groups, base=name, output=output, style=common_style(labels))
    if angles and importlib.util.find_spec("matplotlib") is not None:
        from .merge_picture import picture_of  # noqa: PLC0415 — only now is it known that the extra is there

        write_text(folder / PICTURE, picture_of(angles))
    return folder, angles


def _angles(one: str, first: Sequence[Group], two: str, second: Sequence[Group]) -> list[Angles]:
    """At each place that both edit, whatever their positions; of Φ without rows, none."""
    spaces = [spaces_of(groups) for groups in (first, second)]
    return [
        Angles(one, two, component, layer, principal_angles(spaces[0][component, layer], spaces[1][component, layer]))
        for component, layer in sorted(spaces[0].keys() & spaces[1].keys())
    ]


def spaces_of(groups: Sequence[Group]) -> dict[tuple[str, int], Tensor]:
    """What an adapter writes into at each place: an orthonormal basis [d, k] of all of its Φ there that have rows."""
    rows: dict[tuple[str, int], list[Tensor]] = {}
    for group in groups:
        for layer, parts in group.phis.items():
            for part in parts:
                try:
                    written = rows_of(part, group).W2
                except ValueError:
                    continue
                rows.setdefault((group.component, layer), []).append(written)
    return {place: row_space(torch.cat(found)) for place, found in rows.items()}
