"""Which tokens of a forward call are edited: the only index arithmetic of the project.

Three pure stages: a text (``"f7+l7"``) is parsed into a `PositionSpec`, by `specs`; what is known of the tokens of a
call (mask, labels, lengths, packed position ids) becomes `Segments`, by `segments`, one prompt per segment, in absolute
columns of the padded sequence with the cache counted in (the names of both are here too); and `slots`, `token_mask` or
`token_units` intersect the two with the window of columns that this forward call computes.  A decode step, a prefill
chunk and a draft to be verified are all just windows.  `unit_ranges` says the same of one prompt without a call.

Must not know: models, interventions, adapters.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor

from .segments import Segments, segments_from_mask, segments_from_position_ids, segments_of_full_rows
from .specs import (
    CONTENT,
    MARKED,
    TURN,
    PositionSpec,
    Term,
    Tie,
    content_terms,
    joint_span,
    kinds_of_ids,
    own_slots,
    parse_positions,
    scope_range,
    unit_count,
    unit_slices,
    unresolved_terms,
)
from .texts import resolve_texts

__all__ = [
    "MARKED",
    "TURN",
    "PositionSpec",
    "Segments",
    "Slots",
    "Term",
    "Tie",
    "chosen_slots",
    "columns_of_slots",
    "content_terms",
    "first_edited",
    "joint_span",
    "kinds_of_ids",
    "named_tokens",
    "overlap",
    "own_slots",
    "parse_positions",
    "resolve_texts",
    "scope_range",
    "segments_from_mask",
    "segments_from_position_ids",
    "segments_of_full_rows",
    "slots",
    "term_slots",
    "token_mask",
    "token_units",
    "turn_marks",
    "unit_count",
    "unit_ranges",
    "unit_slices",
    "unresolved_terms",
]

# Where a range of tokens ends that has no end.
FAR = 2**40


class Slots(NamedTuple):
    """P slots for each of N segments: rows [N, P], columns [N, P] within the window, valid [N, P].

    A slot that is not valid points at some column of the window and must not be edited.
    """

    rows: Tensor
    columns: Tensor
    valid: Tensor


def slots(spec: PositionSpec, segments: Segments, past: int | Tensor, width: int) -> Slots:
    """Slots of a span in the window of columns [past, past + width).

    With prompts of n tokens: if n < p + s then p ← min(p, ⌊n/2⌋) and s ← min(s, ⌈n/2⌉), the slots cut off are not
    applied (paper, section 4.1).  Slot i < p is prompt token i; slot p + j is prompt token n − s + j.
    """
    device = segments.start.device
    n = (segments.end - segments.start).clamp(min=0)[:, None]
    first, last = _given_way(spec, n)
    i = torch.arange(spec.first, device=device)[None]
    j = torch.arange(spec.last, device=device)[None]
    prefix = segments.start[:, None] + i
    suffix = segments.end[:, None] - spec.last + j
    columns = torch.cat([prefix, suffix], 1) - past
    valid = torch.cat([i < first, j >= spec.last - last], 1) & (columns >= 0) & (columns < width)
    rows = segments.rows[:, None].expand_as(columns)
    return Slots(rows, columns.clamp(0, width - 1), valid)


def _given_way(spec: PositionSpec, n: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the first and of the last tokens of prompts of n tokens a span has: see `slots`."""
    short = n < spec.count
    first = torch.where(short, torch.clamp(n // 2, max=spec.first), spec.first)
    return first, torch.where(short, torch.clamp((n + 1) // 2, max=spec.last), spec.last)


def columns_of_slots(spec: PositionSpec, length: int) -> list[int | None]:
    """The token of each slot of a span in one prompt of `length` tokens, None where it is too short for the slot."""
    if not spec.count or length < 1:
        return [None] * spec.count
    found = slots(spec, segments_of_full_rows(1, length, torch.device("cpu")), 0, length)
    return [c if ok else None for c, ok in zip(found.columns[0].tolist(), found.valid[0].tolist(), strict=True)]


def chosen_slots(found: Slots, chosen: Sequence[int], width: int) -> Slots:
    """The chosen slots of each segment; where they are more than the `width` columns of the window, not all of them.

    No two slots of a segment are the same token, so that at most `width` are valid: these come first, and what is left
    over is cut.  A span of 100,000 tokens takes no more room than the window.
    """
    at = torch.tensor(chosen, dtype=torch.long, device=found.rows.device)
    kept = Slots(*(t[:, at] for t in found))
    if len(chosen) <= width:
        return kept
    first = kept.valid.to(torch.int8).argsort(dim=1, descending=True)[:, :width]
    return Slots(*(t.gather(1, first) for t in kept))


def token_mask(spec: PositionSpec, segments: Segments, past: int | Tensor, width: int) -> Tensor:
    """[B, width] bool, true on the tokens of the window that a whole scope edits."""
    device = segments.start.device
    columns = torch.arange(width, device=device)[None] + past
    if spec.scope == "prompt":
        hit = (columns >= segments.start[:, None]) & (columns < segments.end[:, None])
    elif spec.scope == "response":
        hit = (columns >= segments.end[:, None]) & (columns < segments.stop[:, None])
    else:
        raise ValueError(f"positions {spec} have no token mask")
    if segments.one_per_row:
        return hit
    counts = torch.zeros(segments.batch, width, dtype=torch.int32, device=device)
    return counts.index_add(0, segments.rows, hit.to(torch.int32)) > 0


def _ranges(spec: PositionSpec, joint: PositionSpec, n: Tensor) -> list[tuple[Term, Tensor, Tensor, Tensor]]:
    """Of each term, those left out behind the others: its tokens [start, stop) in prompts of n, and where slot 0 is.

    f and l give way to each other as in `slots`; in what is left out they do not.
    """
    first, last = _given_way(joint, n)
    zero, far = torch.zeros_like(n), torch.full_like(n, FAR)
    found = []
    for i, term in enumerate((*spec.added, *spec.without)):
        left_out, size = i >= len(spec.added), term.a or 0
        if term.kind == "f":
            start, stop, slot = zero, torch.clamp(n if left_out else first, max=size), zero
        elif term.kind == "l":
            start, stop, slot = n - torch.clamp(n if left_out else last, max=size), n, n - size
        elif term.kind == "p":
            a, b = (end if end is None or end >= 0 else (n + end).clamp(min=0) for end in (term.a, term.b))
            start, stop = zero if a is None else zero + a, n if b is None else torch.minimum(zero + b, n)
            slot = n + size if size < 0 else zero + size
        elif term.kind == "g":
            start, stop, slot = n, n + size, n
        else:
            start, stop = n if term.kind == "response" else zero, n if term.kind in ("prompt", *MARKED) else far
            slot = start
        found.append((term, start, stop, slot))
    return found


def named_tokens(
    terms: Sequence[Term], tokens: Tensor | None, marked: Tensor | None = None, prompts: Segments | None = None
) -> dict[Term, Tensor]:
    """tokens [B, T] of ids, marked [B, T] of 0 and 1 → [B, T] bool of each term that looks at them: what it names.

    Of turns something is named where `prompts` says where the prompts lie, and the tokens are these from column 0 on.
    """
    found = {} if marked is None else {term: marked.bool() for term in terms if term.kind == "span"}
    if tokens is None:
        return found
    if prompts is not None:
        found |= turn_marks(terms, tokens, prompts)
    ids = {
        term: torch.tensor(term.ids, dtype=tokens.dtype, device=tokens.device) for term in terms if term.kind == "id"
    }
    return found | {term: torch.isin(tokens, of_term) for term, of_term in ids.items()}


def turn_marks(terms: Sequence[Term], tokens: Tensor, prompts: Segments) -> dict[Term, Tensor]:
    """tokens [B, T] of ids from column 0 on → [B, T] bool of each term that is counted in turns: what it names.

    A turn begins with the prompt and at each token with one of the term's ids; it ends where the next one begins, or
    with the prompt, whose end must be among the T columns.
    """
    width = tokens.shape[1]
    columns = torch.arange(width, device=tokens.device)
    found: dict[Term, Tensor] = {}
    for term in terms:
        if term.kind not in TURN:
            continue
        # one column more, for prompts that begin or end behind the last
        begins = torch.zeros(tokens.shape[0], width + 1, dtype=torch.bool, device=tokens.device)
        begins[:, :width] = torch.isin(tokens, torch.tensor(term.ids, dtype=tokens.dtype, device=tokens.device))
        begins[prompts.rows, prompts.start.clamp(max=width)] = True
        if term.kind == "turn:f":
            before = columns - torch.where(begins[:, :width], columns, 0).cummax(1).values
        else:
            begins[prompts.rows, prompts.end.clamp(max=width)] = True
            ends = torch.where(begins[:, 1:], columns + 1, width)
            before = ends.flip(1).cummin(1).values.flip(1) - columns - 1
        found[term] = before < (term.a or 0)
    return found


def token_units(
    spec: PositionSpec,
    tie: Tie,
    joint: PositionSpec,
    segments: Segments,
    past: int | Tensor,
    width: int,
    named: Mapping[Term, Tensor] | None = None,
) -> Tensor:
    """[B, width] the number of the Φ that edits each token of the window, −1 for none; of positions of terms.

    A token that several terms name belongs to the first of them.  `joint` is that of all that edit the site; `named`
    [B, width] says of each term that depends on the tokens themselves which it names.
    """
    found = term_slots(spec, joint, segments, past, width, named)
    numbers, count = _first_numbers(spec, tie), len(spec.added)
    unit = torch.full_like(found[0], -1)
    # the first term last, so that its tokens are its own
    for slot, number in reversed(list(zip(found[:count], numbers, strict=True))):
        unit = torch.where(slot > 0, number + (slot - 1 if tie == "none" else 0), unit)
    for slot in found[count:]:
        unit = torch.where(slot > 0, -1, unit)
    return unit


def term_slots(
    spec: PositionSpec,
    joint: PositionSpec,
    segments: Segments,
    past: int | Tensor,
    width: int,
    named: Mapping[Term, Tensor] | None = None,
) -> list[Tensor]:
    """[B, width] of each term, those left out behind the others: which slot of it, from 1, a token is; 0 for none.

    Where the term has no fixed number of slots, all its tokens are slot 1.  For the arguments see `token_units`.
    """
    n = (segments.end - segments.start).clamp(min=0)[:, None]
    at = segments.tokens(past, width)
    found = []
    for term, start, stop, slot in _ranges(spec, joint, n):
        hit = (at >= start) & (at < stop) & (at >= 0)
        if named is not None and term in named:
            hit &= named[term][segments.rows]
        number = torch.where(hit, at - slot + 1 if term.slots is not None else 1, 0)
        if not segments.one_per_row:
            table = torch.zeros(segments.batch, width, dtype=number.dtype, device=number.device)
            number = table.index_add(0, segments.rows, number)
        found.append(number)
    return found


def _first_numbers(spec: PositionSpec, tie: Tie) -> list[int]:
    """The number of each term's first Φ."""
    sizes = [{"all": 0, "group": 1, "none": term.slots or 0}[tie] for term in spec.added]
    return [sum(sizes[:i]) for i in range(len(sizes))]


def unit_ranges(
    spec: PositionSpec, tie: Tie, joint: PositionSpec, length: int, holds: Collection[Term] = ()
) -> list[tuple[int, int | None, int]]:
    """Tokens [start, stop) with the number of the Φ that edits them, in order, for one prompt and its response.

    `holds` are the terms, of those that depend on the tokens themselves, that name a token; all tokens are taken to be
    alike in that.  A stop of None: there is no end.
    """
    return _unit_ranges(spec, tie, _ranges_of_lengths(spec, joint, [length])[0], holds)


def _ranges_of_lengths(
    spec: PositionSpec, joint: PositionSpec, lengths: Sequence[int]
) -> list[list[tuple[Term, int, int, int]]]:
    """`_ranges` of each of the lengths, as numbers."""
    found = [(term, *(x.tolist() for x in at)) for term, *at in _ranges(spec, joint, torch.tensor(lengths))]
    return [[(term, *(x[i] for x in at)) for term, *at in found] for i in range(len(lengths))]


def _unit_ranges(
    spec: PositionSpec, tie: Tie, found: list[tuple[Term, int, int, int]], holds: Collection[Term]
) -> list[tuple[int, int | None, int]]:
    found = [one if one[0].kind not in CONTENT or one[0] in holds else (one[0], 0, 0, 0) for one in found]
    numbers = _first_numbers(spec, tie)
    borders = sorted({0, FAR, *(x for _, start, stop, _ in found for x in (start, stop) if start < stop)})
    ranges: list[tuple[int, int | None, int]] = []
    for a, b in pairwise(borders):
        here = [i for i, (_, start, stop, _) in enumerate(found) if start <= a and b <= stop]
        if not here or here[-1] >= len(spec.added):
            continue
        number, slot = numbers[here[0]], found[here[0]][3]
        if tie == "none":
            ranges += [(t, t + 1, number + t - slot) for t in range(a, b)]
        elif ranges and ranges[-1][1:] == (a, number):
            ranges[-1] = (ranges[-1][0], None if b == FAR else b, number)
        else:
            ranges.append((a, None if b == FAR else b, number))
    return ranges


@lru_cache(maxsize=2**10)
def overlap(one: PositionSpec, other: PositionSpec) -> bool:
    """Whether some text has a token that both edit at one site (paper, Def. 3.2 asks for disjoint positions)."""
    if "terms" not in (one.scope, other.scope):
        return _plain_overlap(one, other)
    joint = joint_span([one, other])
    kinds = [frozenset[Term](), *kinds_of_ids([one, other])]
    lengths = _lengths(one, other)
    pairs = zip(*(_ranges_of_lengths(spec, joint, lengths) for spec in (one, other)), strict=True)
    for (mine, yours), holds in product(pairs, kinds):
        both = _unit_ranges(one, "all", mine, holds), _unit_ranges(other, "all", yours, holds)
        if any(a < (d or FAR) and c < (b or FAR) for a, b, _ in both[0] for c, d, _ in both[1]):
            return True
    return False


def _lengths(*specs: PositionSpec) -> list[int]:
    """Lengths of prompts, one at least of each order in which ends of ranges can lie."""
    terms = [term for spec in specs for term in (*spec.added, *spec.without) if term.kind in ("f", "l", "p")]
    numbers = sorted({0, *(abs(n) for term in terms for n in (term.a, term.b) if n)})
    sums = {a + b for a in numbers for b in numbers}
    return sorted({max(0, n + d) for n in sums for d in (-1, 0, 1)})


def _plain_overlap(one: PositionSpec, other: PositionSpec) -> bool:
    scopes = (one.scope, other.scope)
    if "all" in scopes:
        return True
    if "response" in scopes:
        return one.scope == other.scope
    if "prompt" in scopes:
        return True
    return bool((one.first and other.first) or (one.last and other.last))


def first_edited(
    specs: Sequence[PositionSpec], lengths: Tensor, tokens: Tensor | None = None, marked: Tensor | None = None
) -> Tensor:
    """lengths [N] of prompts → [N] the first token that any of the specs of one site edits.

    A response is edited from its first token on, which is token n.  Where nothing is edited: the largest number.
    tokens [N, T] are prompt and response, by ids, and marked [N, T] says which a span names; without them, none is
    named by id, turn or span.
    """
    none = torch.full_like(lengths, torch.iinfo(lengths.dtype).max)
    found = none
    joint = joint_span(specs)
    rows = torch.arange(len(lengths), device=lengths.device)
    zeros = torch.zeros_like(lengths)
    plain = joint_span([spec for spec in specs if spec.scope == "span"])
    for spec in [plain, *(spec for spec in specs if spec.scope != "span")]:
        if spec.scope == "terms":
            width = int(lengths.max()) + 1 if tokens is None else tokens.shape[1]
            prompts = Segments(
                rows, zeros, lengths, torch.full_like(lengths, width), len(rows), one_per_row=True, gap=None
            )
            content = content_terms([spec])
            named = dict.fromkeys(content, torch.zeros(len(lengths), width, dtype=torch.bool, device=lengths.device))
            named |= named_tokens(content, tokens, marked, prompts)
            hit = token_units(spec, "all", joint, prompts, 0, width, named) >= 0
            first = torch.where(hit, torch.arange(width, device=lengths.device), none[:, None]).amin(1)
        elif spec.scope != "span":
            first = lengths if spec.scope == "response" else torch.zeros_like(lengths)
        elif spec.count == 0:
            first = none
        else:
            prompts = Segments(rows, zeros, lengths, lengths, len(rows), one_per_row=True, gap=None)
            at = slots(joint, prompts, 0, int(lengths.max()))
            own = own_slots(spec, joint)
            first = torch.where(at.valid[:, own], at.columns[:, own], none[:, None]).amin(1)
        found = torch.minimum(found, first)
    return found
