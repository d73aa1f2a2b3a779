"""Where labels of points go: near their points, over no other label, marker or line if there is room.

Plain geometry; the same input gives the same places.

Must not know: matplotlib, results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

__all__ = ["Box", "apart", "clashes", "leader", "place", "stack"]

Point = tuple[float, float]

DISTANCES = (4.0, 9.0, 16.0, 25.0, 36.0, 50.0, 70.0, 95.0, 130.0)
ANGLES = 16
PASSES = 4
# what a square unit of overlap costs, beside a unit of distance; and a leader that crosses another
OVER_LABEL, OVER_MARK, OVER_LINE, CROSSED = 8.0, 5.0, 0.4, 25.0


@dataclass(frozen=True)
class Box:
    """A rectangle with its sides along the axes."""

    left: float
    bottom: float
    right: float
    top: float

    def shared(self, other: Box) -> float:
        """Area of the overlap."""
        return float(_shared(_array([self]), _array([other]))[0, 0])

    def nearest(self, point: Point) -> Point:
        """The point of the box that is nearest."""
        x, y = point
        return min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)


def place(
    points: Sequence[Point],
    sizes: Sequence[Point],
    area: Box,
    *,
    marks: Sequence[Box] = (),
    lines: Sequence[Box] = (),
    over_line: float = OVER_LINE,
) -> list[Box]:
    """A box of each size for each point, inside `area`.

    Each label goes where it costs least: by its distance and what it and its leader lie over.  Crowded ones choose
    first; then all choose again, seeing where the others are.
    """
    order = sorted(range(len(points)), key=lambda i: (-_neighbours(points, i), i))
    options = [_options(point, size, area) for point, size in zip(points, sizes, strict=True)]
    alone = [
        _distances(point, boxes)
        + OVER_MARK * _shared(boxes, _array(marks)).sum(axis=1)
        + over_line * _shared(boxes, _array(lines)).sum(axis=1)
        for point, boxes in zip(points, options, strict=True)
    ]
    chosen: dict[int, int] = {}
    for _ in range(PASSES):
        before = dict(chosen)
        for i in order:
            others = [j for j in chosen if j != i]
            cost = alone[i]
            if others:
                placed = np.stack([options[j][chosen[j]] for j in others])
                cost = cost + _cost_beside(points[i], options[i], np.array([points[j] for j in others]), placed)
            chosen[i] = int(np.argmin(cost))
        if chosen == before:
            break
    return [Box(*map(float, options[i][chosen[i]])) for i in range(len(points))]


def stack(points: Sequence[Point], sizes: Sequence[Point], area: Box, *, left: float) -> list[Box]:
    """Boxes one below the other from `left` on, in the order of the points and each as near to its own as it can."""
    heights = [height for _, height in sizes]
    order = sorted(range(len(points)), key=lambda i: points[i][1])
    middles = apart([points[i][1] for i in order], [heights[i] for i in order], area.bottom, area.top)
    at = dict(zip(order, middles, strict=True))
    return [Box(left, at[i] - heights[i] / 2, left + sizes[i][0], at[i] + heights[i] / 2) for i in range(len(points))]


def apart(wanted: Sequence[float], sizes: Sequence[float], low: float, high: float) -> list[float]:
    """Middles of things in a row that do not overlap, in the order given, near to where each is wanted.

    Neighbours that would overlap are moved as one, to the mean of what they want.  If all together are longer than the
    row, they begin at `low` and leave it.
    """
    groups: list[tuple[list[int], float]] = []
    for i in range(len(wanted)):
        group, middle = [i], wanted[i]
        while True:
            length = sum(sizes[j] for j in group)
            middle = max(min(middle, high - length / 2), low + length / 2)
            if not groups:
                break
            last, last_middle = groups[-1]
            if last_middle + sum(sizes[j] for j in last) / 2 <= middle - length / 2 + 1e-9:
                break
            groups.pop()
            group = last + group
            middle = _middle(group, wanted, sizes)
        groups.append((group, middle))
    found: list[float] = []
    for group, middle in groups:
        edge = middle - sum(sizes[j] for j in group) / 2
        for j in group:
            found.append(edge + sizes[j] / 2)
            edge += sizes[j]
    return found


def _middle(group: Sequence[int], wanted: Sequence[float], sizes: Sequence[float]) -> float:
    """Of a group laid end to end, where its members are nearest to what they want, in the mean."""
    edge, offsets = 0.0, []
    for j in group:
        offsets.append(wanted[j] - edge - sizes[j] / 2)
        edge += sizes[j]
    return sum(offsets) / len(offsets) + edge / 2


def clashes(boxes: Sequence[Box], marks: Sequence[Box]) -> int:
    """How many labels lie over another label or a marker."""
    found = _array(boxes)
    over = _shared(found, found)
    np.fill_diagonal(over, 0)
    return int(np.count_nonzero((over.sum(axis=1) + _shared(found, _array(marks)).sum(axis=1)) > 0))


def leader(point: Point, box: Box) -> tuple[Point, Point]:
    """The line between a point and its label."""
    return point, box.nearest(point)


def _array(boxes: Sequence[Box]) -> np.ndarray:
    return np.array([astuple(box) for box in boxes], dtype=float).reshape(-1, 4)


def _shared(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Areas of the overlaps [some, others]."""
    a, b = some[:, None], others[None]
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    return np.clip(width, 0, None) * np.clip(height, 0, None)


def _options(point: Point, size: Point, area: Box) -> np.ndarray:
    """Places around the point, and if the area is too small for any, the one inside it that is nearest."""
    (x, y), (width, height) = point, size
    angle = 2 * np.pi * np.arange(ANGLES) / ANGLES
    distance = np.array(DISTANCES)[:, None]
    # the box touches the circle: its centre is farther out by as much of it as lies on this side
    cx = (x + np.cos(angle) * (distance + width / 2)).ravel()
    cy = (y + np.sin(angle) * (distance + height / 2)).ravel()
    boxes = np.stack([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2], axis=1)
    inside = (boxes[:, :2] >= (area.left, area.bottom)).all(axis=1) & (boxes[:, 2:] <= (area.right, area.top)).all(
        axis=1
    )
    if inside.any():
        return boxes[inside]
    left = max(area.left, min(x + DISTANCES[0], area.right - width))
    bottom = max(area.bottom, min(y - height / 2, area.top - height))
    return np.array([[left, bottom, left + width, bottom + height]])


def _ends(point: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Of the leaders, at the boxes."""
    return np.clip(point, boxes[..., :2], boxes[..., 2:])


def _distances(point: Point, boxes: np.ndarray) -> np.ndarray:
    at = np.array(point)
    return np.linalg.norm(_ends(at, boxes) - at, axis=1)


def _cost_beside(point: Point, boxes: np.ndarray, points: np.ndarray, placed: np.ndarray) -> np.ndarray:
    over = _shared(boxes, placed)
    a, b = np.array(point), _ends(np.array(point), boxes)[:, None]
    c, d = points[None], _ends(points, placed)[None]
    crossed = (_side(a, b, c) * _side(a, b, d) < 0) & (_side(c, d, a) * _side(c, d, b) < 0)
    return (OVER_LABEL * over + CROSSED * ((over > 0) + crossed.astype(float))).sum(axis=1)


def _side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """On which side of the line from a to b each c lies, as a sign; 0 on it."""
    return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])


def _neighbours(points: Sequence[Point], index: int, reach: float = 40.0) -> int:
    return sum(math.dist(points[index], other) < reach for other in points)
