"""Which tokens of one request are edited by what, as ranges; and what of that a block of its KV cache depends on.

The arithmetic is that of `reftune.positions`; here its answers for one prompt are put in order.  Plain numbers and
texts only, as they travel between processes.

Must not know: weights, models, backends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch

from ..positions import (
    MARKED,
    PositionSpec,
    Term,
    columns_of_slots,
    content_terms,
    joint_span,
    kinds_of_ids,
    own_slots,
    parse_positions,
    scope_range,
    segments_of_full_rows,
    turn_marks,
    unit_ranges,
    unit_slices,
)
from .pieces import breathe

__all__ = [
    "Edit",
    "Marks",
    "Part",
    "Ranges",
    "Sites",
    "block_key",
    "kinds_of_tokens",
    "marks_of",
    "most_sets",
    "plan",
    "plan_of_tokens",
    "ranges_of",
    "sets_by_length",
    "sites_from_wire",
]

# Groups of one adapter that edit the same layers, each as (number of the group, positions, tie).
Site = tuple[tuple[int, str, str], ...]
Sites = tuple[Site, ...]
# Of each term that names tokens of a prompt by where they are marked, in order, these tokens: ranges [start, stop).
Ranges = tuple[tuple[int, int], ...]
Marks = tuple[Ranges, ...]


class Part(NamedTuple):
    """One Φ of an adapter: number of the site, of the group, of the Φ within the group."""

    site: int
    group: int
    unit: int


class Edit(NamedTuple):
    """Tokens [start, stop) of a request, counted from its first, are edited by these Φ; None: there is no end."""

    start: int
    stop: int | None
    parts: tuple[Part, ...]


def sites_from_wire(value: Any) -> Sites:
    """Lists, which is what tuples become on their way between processes, as tuples again."""
    return tuple(tuple((int(group), str(text), str(tie)) for group, text, tie in site) for site in value)


@lru_cache(maxsize=2**12)
def plan(sites: Sites, length: int, holds: frozenset[Term] = frozenset()) -> tuple[Edit, ...]:
    """All edits of a request whose prompt has `length` tokens, in order, none overlapping.

    Where some depend on the tokens themselves, these are the edits if every token is of the kind that just the terms
    `holds` name; `plan_of_tokens` puts together what the tokens are.
    """
    ranges: list[tuple[int, int | None, Part]] = []
    for number, site in enumerate(sites):
        specs = [(group, parse_positions(text), tie) for group, text, tie in site]
        joint = joint_span([spec for _, spec, _ in specs])
        columns = columns_of_slots(joint, length)
        for group, spec, tie in specs:
            if spec.scope == "terms":
                found = unit_ranges(spec, tie, joint, length, holds)  # type: ignore[arg-type]
                ranges += [(start, stop, Part(number, group, unit)) for start, stop, unit in found]
                continue
            if spec.scope != "span":
                ranges.append((*scope_range(spec, length), Part(number, group, 0)))
                continue
            own = own_slots(spec, joint)
            for unit, part in enumerate(unit_slices(spec, tie)):  # type: ignore[arg-type]
                runs = _runs([columns[slot] for slot in own[part]])
                ranges += [(start, stop, Part(number, group, unit)) for start, stop in runs]
    return _merged(ranges)


def plan_of_tokens(
    sites: Sites,
    length: int,
    start: int,
    stop: int,
    tokens: Callable[[], Sequence[int]],
    marks: Marks = (),
) -> tuple[Edit, ...]:
    """The edits of tokens [start, stop) at least, of a request whose prompt has `length` tokens, in order.

    `tokens` gives the ids of just these, and is called only if something depends on them; `marks` are those of the
    prompt, as `marks_of` says.
    """
    by_id = kinds_of_tokens(sites)
    named: dict[int, list[Term]] = {}
    for term, ranges in zip(_marked_terms(sites), marks, strict=False):
        for a, b in ranges:
            for i in range(max(a, start), min(b, stop, length)):
                named.setdefault(i, []).append(term)
    if not by_id and not named:
        return plan(sites, length)
    nothing: frozenset[Term] = frozenset()
    kinds = [by_id.get(token, nothing) for token in tokens()] if by_id else [nothing] * (stop - start)
    for i, terms in named.items():
        kinds[i - start] |= frozenset(terms)
    found: list[Edit] = []
    at = start
    for holds, run in groupby(kinds):
        end = at + sum(1 for _ in run)
        for edit in plan(sites, length, holds):
            a, b = max(edit.start, at), end if edit.stop is None else min(edit.stop, end)
            if a >= b:
                continue
            if found and found[-1].stop == a and found[-1].parts == edit.parts:
                found[-1] = found[-1]._replace(stop=b)
            else:
                found.append(Edit(a, b, edit.parts))
        at = end
    if at != stop:
        raise ValueError(f"{at - start} tokens were given for [{start}, {stop})")
    return tuple(found)


def marks_of(sites: Sites, ids: Sequence[int], spans: Ranges = ()) -> Marks:
    """What the terms that look for marks name of the prompt `ids`; `spans` are the ranges that it marks itself."""
    terms = _marked_terms(sites)
    if all(term.kind == "span" for term in terms):
        return tuple(spans for _ in terms)
    prompt = segments_of_full_rows(1, len(ids), torch.device("cpu"))
    turns = {term: ranges_of(hit[0].tolist()) for term, hit in turn_marks(terms, torch.tensor([ids]), prompt).items()}
    return tuple(turns.get(term, spans) for term in terms)


def ranges_of(marks: Sequence[int] | None) -> Ranges:
    """0 or 1 of each token → the ranges of those with a 1."""
    return tuple(_runs([i for i, mark in enumerate(marks or ()) if mark]))


@lru_cache(maxsize=2**12)
def _marked_terms(sites: Sites) -> tuple[Term, ...]:
    return content_terms(_specs(sites), *MARKED)


@lru_cache(maxsize=2**12)
def kinds_of_tokens(sites: Sites) -> dict[int, frozenset[Term]]:
    """Each id that some term names → the terms that name it."""
    terms = content_terms(_specs(sites), "id")
    return {i: frozenset(term for term in terms if i in term.ids) for i in sorted({i for t in terms for i in t.ids})}


def _specs(sites: Sites) -> list[PositionSpec]:
    return [parse_positions(text) for site in sites for _, text, _ in site]


def _runs(columns: Sequence[int | None]) -> list[tuple[int, int]]:
    """Columns in order → ranges without a gap."""
    found: list[tuple[int, int]] = []
    for column in columns:
        if column is None:
            continue
        if found and found[-1][1] == column:
            found[-1] = (found[-1][0], column + 1)
        else:
            found.append((column, column + 1))
    return found


def _merged(ranges: Sequence[tuple[int, int | None, Part]]) -> tuple[Edit, ...]:
    begin: dict[int, list[Part]] = {}
    end: dict[int, list[Part]] = {}
    for start, stop, part in ranges:
        if start != stop:
            begin.setdefault(start, []).append(part)
            if stop is not None:
                end.setdefault(stop, []).append(part)
    borders: list[int | None] = [*sorted(begin.keys() | end.keys()), None]
    found: list[Edit] = []
    here: set[Part] = set()
    for start, stop in pairwise(borders):
        assert start is not None
        here.difference_update(end.get(start, ()))
        here.update(begin.get(start, ()))
        parts = tuple(sorted(here))
        if not parts:
            continue
        if found and found[-1].stop == start and found[-1].parts == parts:
            found[-1] = found[-1]._replace(stop=stop)
        else:
            found.append(Edit(start, stop, parts))
    return tuple(found)


@lru_cache(maxsize=2**12)
def sets_by_length(sites: Sites) -> tuple[frozenset[tuple[Part, ...]], ...]:
    """The sets of Φ that edit some token, for prompts of each length up to where they stay the same."""
    specs = _specs(sites)
    spans = [joint_span([parse_positions(text) for _, text, _ in site]).count for site in sites]
    # above it, nothing is cut off; far above it, no prefix meets a suffix
    longest = 2 * max([0, *spans, sum(spec.longest for spec in specs if spec.scope == "terms")]) + 1
    kinds = {frozenset[Term](), *kinds_of_ids(specs)}
    found = []
    for length in range(1, longest + 1):
        here: set[tuple[Part, ...]] = set()
        for holds in kinds:
            breathe()
            # not from the cache, which is for requests
            here |= {edit.parts for edit in plan.__wrapped__(sites, length, holds)}
        found.append(frozenset(here))
    return tuple(found)


def most_sets(sites: Sites) -> int:
    """How many different sets of Φ a single request can need, whatever the length of its prompt."""
    return max(map(len, sets_by_length(sites)))


def block_key(digest: str, edits: Sequence[Edit], start: int, end: int, *, strength: float = 1.0) -> str | None:
    """What the keys and values of tokens [start, end) depend on besides the tokens; None if on nothing.

    That is which of them are edited by what and how strongly.  What is edited before them is in the keys of the blocks
    before.
    """
    inside = []
    for edit in edits:
        a, b = max(edit.start, start), end if edit.stop is None else min(edit.stop, end)
        if a < b:
            inside.append(f"{a}-{b}:" + ",".join(".".join(map(str, part)) for part in edit.parts))
    turned = "" if strength == 1 else f"*{strength!r}"
    return f"{digest}{turned}/{';'.join(inside)}" if inside else None
