"""Positions as pure functions, against a naive oracle that goes through every token of every row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reftune.errors import PositionError
from reftune.positions import (
    PositionSpec,
    Segments,
    chosen_slots,
    first_edited,
    overlap,
    parse_positions,
    segments_from_mask,
    segments_from_position_ids,
    segments_of_full_rows,
    slots,
    token_mask,
    unit_slices,
)

CPU = torch.device("cpu")

# --- grammar ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("f7+l7", PositionSpec("span", 7, 7)),
        ("F1 + L2", PositionSpec("span", 1, 2)),
        ("f3", PositionSpec("span", 3, 0)),
        ("l12", PositionSpec("span", 0, 12)),
        ("f0+l1", PositionSpec("span", 0, 1)),
        ("prompt", PositionSpec("prompt")),
        ("All", PositionSpec("all")),
        (" response ", PositionSpec("response")),
    ],
)
def test_parse(text: str, spec: PositionSpec) -> None:
    assert parse_positions(text) == spec


@pytest.mark.parametrize("text", ["", "+", "f", "l", "f1+", "+l1", "f1l1", "f-1", "f1.5", "x", "f1 l1"])
def test_parse_refuses_and_quotes(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be read") as caught:
        parse_positions(text)
    assert repr(text) in str(caught.value) and "'f<p>+l<s>'" in str(caught.value)


@pytest.mark.parametrize("value", [None, 7, ["f1"], ("f1",)])
def test_parse_refuses_what_is_no_text(value: Any) -> None:
    with pytest.raises(ValueError, match="is not a text"):
        parse_positions(value)


@pytest.mark.parametrize("text", ["f1048577", "l2000000", "f1+l99999999999", "f" + "9" * 5000])
def test_more_tokens_than_any_text_has_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"more than 1048576 tokens; 'prompt' edits") as caught:
        parse_positions(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "written"), [("L1", "l1"), (" F07 + l7", "f7+l7"), ("f0+l2", "l2"), ("PROMPT", "prompt")]
)
def test_each_spec_is_written_in_one_way(text: str, written: str) -> None:
    assert str(parse_positions(text)) == written


@given(st.integers(0, 99), st.integers(0, 99))
def test_text_of_a_spec_is_read_as_that_spec(p: int, s: int) -> None:
    assert parse_positions(str(PositionSpec("span", p, s))) == PositionSpec("span", p, s)


@pytest.mark.parametrize("scope", ["prompt", "all", "response"])
def test_text_of_a_scope_is_read_as_that_scope(scope: str) -> None:
    assert str(parse_positions(scope)) == scope


# --- ties and overlap -------------------------------------------------------------------------------------------------

small = st.integers(0, 4)


@given(small, small, st.sampled_from(("all", "group", "none")))
def test_units_share_out_the_slots(p: int, s: int, tie: Any) -> None:
    parts = unit_slices(PositionSpec("span", p, s), tie)
    covered = [i for part in parts for i in range(part.start, part.stop)]
    assert covered == list(range(p + s))
    count = {"all": 1, "group": (p > 0) + (s > 0), "none": p + s}[tie]
    assert len(parts) == count


@pytest.mark.parametrize("scope", ["prompt", "all", "response"])
@pytest.mark.parametrize("tie", ["all", "group", "none"])
def test_a_scope_has_one_unit(scope: Any, tie: Any) -> None:
    assert len(unit_slices(PositionSpec(scope), tie)) == 1


spans = st.builds(PositionSpec, st.just("span"), small, small).filter(lambda spec: spec.count > 0)
any_specs = st.one_of(spans, st.builds(PositionSpec, st.sampled_from(("prompt", "all", "response"))))


@given(any_specs, any_specs)
def test_specs_overlap_if_they_share_a_token_of_a_long_prompt(one: PositionSpec, two: PositionSpec) -> None:
    shared = edited_tokens(one, 20, 25) & edited_tokens(two, 20, 25)
    assert overlap(one, two) == overlap(two, one) == bool(shared)


# --- the naive oracle -------------------------------------------------------------------------------------------------


def slot_tokens(p: int, s: int, n: int) -> dict[int, int]:
    """Slot → token of the prompt, as the paper says it."""
    first, last = p, s
    if n < p + s:
        first, last = min(p, n // 2), min(s, (n + 1) // 2)
    prefix = {i: i for i in range(first)}
    suffix = {p + s - k: n - k for k in range(1, last + 1)}
    return prefix | suffix


def edited_tokens(spec: PositionSpec, n: int, total: int) -> set[int]:
    if spec.scope == "span":
        return set(slot_tokens(spec.first, spec.last, n).values())
    return {t for t in range(total) if spec.scope == "all" or (t < n) == (spec.scope == "prompt")}


@dataclass(frozen=True)
class Row:
    """`left` columns of padding, n prompt tokens, m tokens of the response, `right` columns of padding."""

    left: int
    n: int
    m: int
    right: int


@st.composite
def rows_of_one_width(draw: Any, *, min_prompt: int = 0) -> list[Row]:
    side = draw(st.sampled_from(("left", "right")))
    sizes = draw(st.lists(st.tuples(st.integers(min_prompt, 9), st.integers(0, 4)), min_size=1, max_size=4))
    width = max(1, *(n + m for n, m in sizes)) + draw(st.integers(0, 2))
    rows = []
    for n, m in sizes:
        room = width - n - m
        rows.append(Row(room, n, m, 0) if side == "left" else Row(0, n, m, room))
    return rows


def total_width(rows: list[Row]) -> int:
    return rows[0].left + rows[0].n + rows[0].m + rows[0].right


def columns_by_hand(spec: PositionSpec, rows: list[Row]) -> set[tuple[int, int]]:
    return {(b, r.left + t) for b, r in enumerate(rows) for t in edited_tokens(spec, r.n, r.n + r.m)}


def known_segments(rows: list[Row], by: str) -> Segments:
    """Segments of the rows from a mask and from what tells prompt and response apart."""
    mask = torch.tensor([[0] * r.left + [1] * (r.n + r.m) + [0] * r.right for r in rows])
    segments = segments_from_mask(mask)
    if by == "labels":
        labels = [[-100] * (r.left + r.n) + [5] * r.m + [-100] * r.right for r in rows]
        return segments.with_labels(torch.tensor(labels))
    return segments.with_lengths(torch.tensor([r.n for r in rows]))


def edited_columns(spec: PositionSpec, segments: Segments, past: Any, width: int) -> list[tuple[int, int]]:
    """(row, absolute column) of all that the window edits, duplicates kept."""
    if spec.scope == "span":
        found = slots(spec, segments, past, width)
        assert bool(((found.columns >= 0) & (found.columns < width)).all()), "slots that are not valid stay inside"
        pairs = zip(found.rows[found.valid].tolist(), found.columns[found.valid].tolist(), strict=True)
    else:
        hit = token_mask(spec, segments, past, width)
        assert hit.shape == (segments.batch, width) and hit.dtype == torch.bool
        pairs = (tuple(pair) for pair in hit.nonzero().tolist())
    return [(row, column + int(past)) for row, column in pairs]


known_specs = st.one_of(spans, st.builds(PositionSpec, st.sampled_from(("prompt", "response"))))


@settings(max_examples=300)
@given(known_specs, rows_of_one_width(), st.sampled_from(("labels", "lengths")))
def test_padded_rows(spec: PositionSpec, rows: list[Row], by: str) -> None:
    found = edited_columns(spec, known_segments(rows, by), 0, total_width(rows))
    assert len(found) == len(set(found))
    assert set(found) == columns_by_hand(spec, rows)


@settings(max_examples=300)
@given(spans, rows_of_one_width())
def test_each_slot_holds_its_own_token(spec: PositionSpec, rows: list[Row]) -> None:
    found = slots(spec, known_segments(rows, "lengths"), 0, total_width(rows))
    for b, row in enumerate(rows):
        expected = {i: row.left + t for i, t in slot_tokens(spec.first, spec.last, row.n).items()}
        assert {i: int(found.columns[b, i]) for i in range(spec.count) if found.valid[b, i]} == expected


large = st.one_of(st.integers(0, 12), st.just(5000))


@settings(max_examples=300)
@given(st.builds(PositionSpec, st.just("span"), large, large), rows_of_one_width(), st.data())
def test_a_long_span_takes_no_more_room_than_the_window(spec: PositionSpec, rows: list[Row], data: Any) -> None:
    past = data.draw(st.integers(0, total_width(rows) - 1))
    width = data.draw(st.integers(1, total_width(rows) - past))
    found = slots(spec, known_segments(rows, "lengths"), past, width)
    chosen = data.draw(st.sampled_from([range(spec.first), range(spec.first, spec.count), range(spec.count)]))
    kept = chosen_slots(found, chosen, width)
    assert all(t.shape == (len(rows), min(len(chosen), width)) for t in kept)
    for b, row in enumerate(rows):
        tokens = {row.left + t - past for i, t in slot_tokens(spec.first, spec.last, row.n).items() if i in chosen}
        wanted = sorted(column for column in tokens if 0 <= column < width)
        assert sorted(kept.columns[b][kept.valid[b]].tolist()) == wanted
        assert set(kept.rows[b].tolist()) <= {b}


@settings(max_examples=300)
@given(known_specs, rows_of_one_width(), st.data(), st.booleans())
def test_windows_share_out_the_columns(spec: PositionSpec, rows: list[Row], data: Any, as_tensor: bool) -> None:
    """Any cut into windows edits each column once, the mask of each being what is known by then."""
    width, past = total_width(rows), 0
    lengths = torch.tensor([r.n for r in rows])
    mask = torch.tensor([[0] * r.left + [1] * (r.n + r.m) + [0] * r.right for r in rows])
    found: list[tuple[int, int]] = []
    while past < width:
        q = data.draw(st.integers(1, width - past))
        segments = segments_from_mask(mask[:, : past + q]).with_lengths(lengths)
        found += edited_columns(spec, segments, torch.tensor(past) if as_tensor else past, q)
        past += q
    assert sorted(found) == sorted(columns_by_hand(spec, rows))


@settings(max_examples=200)
@given(known_specs, st.lists(st.tuples(st.integers(1, 7), st.integers(0, 3)), min_size=2, max_size=5), st.booleans())
def test_packed_rows(spec: PositionSpec, sizes: list[tuple[int, int]], by_labels: bool) -> None:
    position_ids = torch.tensor([[i for n, m in sizes for i in range(n + m)]])
    segments = segments_from_position_ids(position_ids, 1)
    if segments is None:
        # the sequences follow each other as one would
        assert len(sizes) == 1
        return
    if by_labels:
        segments = segments.with_labels(torch.tensor([[t for n, m in sizes for t in [-100] * n + [5] * m]]))
    else:
        segments = segments.with_lengths(torch.tensor([n for n, _ in sizes]))
    expected, start = set(), 0
    for n, m in sizes:
        expected |= {(0, start + t) for t in edited_tokens(spec, n, n + m)}
        start += n + m
    found = edited_columns(spec, segments, 0, start)
    assert len(found) == len(set(found)) and set(found) == expected


def test_packed_rows_of_a_batch() -> None:
    position_ids = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])
    segments = segments_from_position_ids(position_ids, 2)
    assert segments is not None
    assert segments.rows.tolist() == [0, 0, 1, 1]
    assert segments.start.tolist() == [0, 3, 0, 1]
    assert segments.stop.tolist() == [3, 5, 1, 5]
    last = edited_columns(PositionSpec("span", 0, 1), segments, 0, 5)
    assert set(last) == {(0, 2), (0, 4), (1, 0), (1, 4)}


@pytest.mark.parametrize("position_ids", [[[0, 1, 2]], [[0, 1, 2], [5, 6, 7]], [[4], [4]]])
def test_rows_that_do_not_restart_are_not_packed(position_ids: list[list[int]]) -> None:
    assert segments_from_position_ids(torch.tensor(position_ids), len(position_ids)) is None


@given(spans, st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 3))
def test_repeated_rows(spec: PositionSpec, lengths: list[int], times: int) -> None:
    """Beams: each row is repeated in place."""
    segments = segments_of_full_rows(len(lengths), 9, CPU).with_lengths(torch.tensor(lengths))
    found = set(edited_columns(spec, segments.repeated(times * len(lengths)), 0, 9))
    rows = [n for n in lengths for _ in range(times)]
    assert found == {(b, t) for b, n in enumerate(rows) for t in edited_tokens(spec, n, 9)}


@given(st.lists(any_specs, min_size=1, max_size=4), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_the_first_token_that_a_site_edits(specs: list[PositionSpec], lengths: list[int]) -> None:
    """Spans of one site give way to each other as one span would; a response goes on long enough."""
    spans_here = [spec for spec in specs if spec.scope == "span"]
    joint = PositionSpec("span", max([0, *[s.first for s in spans_here]]), max([0, *[s.last for s in spans_here]]))
    together = [joint, *(spec for spec in specs if spec.scope != "span")]
    none = torch.iinfo(torch.long).max
    expected = [min((t for spec in together for t in edited_tokens(spec, n, n + 1)), default=none) for n in lengths]
    assert first_edited(specs, torch.tensor(lengths)).tolist() == expected


def test_where_nothing_is_edited_there_is_no_first_token() -> None:
    nothing = first_edited([PositionSpec("span", 0, 0)], torch.tensor([3, 1]))
    assert nothing.tolist() == [torch.iinfo(torch.long).max] * 2
    # half a prompt of one token is none, so that the prefix gives way
    assert first_edited([PositionSpec("span", 2, 1)], torch.tensor([1, 2, 3])).tolist() == [0, 0, 0]
    # together they are a span of four, of which a prompt of three has room for half
    assert first_edited([PositionSpec("span", 0, 3), PositionSpec("span", 0, 4)], torch.tensor([3])).tolist() == [1]
    assert first_edited([PositionSpec("span", 0, 2)], torch.tensor([1, 2, 3, 9])).tolist() == [0, 0, 1, 7]


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_repeated() -> None:
    with pytest.raises(PositionError, match="2 rows cannot be mapped onto a batch of 3"):
        segments_of_full_rows(2, 4, CPU).repeated(3)


def test_wrong_number_of_lengths() -> None:
    with pytest.raises(PositionError, match="3 entries for 2 rows of the batch"):
        segments_of_full_rows(2, 4, CPU).with_lengths(torch.tensor([1, 2, 3]))
    packed = segments_from_position_ids(torch.tensor([[0, 1, 0, 1, 0]]), 1)
    assert packed is not None
    with pytest.raises(PositionError, match="2 entries for 3 packed sequences"):
        packed.with_lengths(torch.tensor([1, 1]))


def test_lengths_are_whole_numbers() -> None:
    with pytest.raises(PositionError, match="whole numbers"):
        segments_of_full_rows(2, 4, CPU).with_lengths(torch.tensor([1.5, 2.0]))


def test_a_span_has_no_token_mask() -> None:
    with pytest.raises(ValueError, match="have no token mask"):
        token_mask(PositionSpec("span", 1, 1), segments_of_full_rows(1, 4, CPU), 0, 4)


def test_packed_rows_with_a_mask_of_padding() -> None:
    """Restarts within the tokens that are kept part a row; those of padding do not."""
    position_ids = torch.tensor([[0, 1, 2, 0, 1, 0], [1, 1, 0, 1, 2, 3]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]])
    segments = segments_from_position_ids(position_ids, 2, mask)
    assert segments is not None
    assert segments.rows.tolist() == [0, 0, 1]
    assert segments.start.tolist() == [0, 3, 2]
    assert segments.stop.tolist() == [3, 5, 6]
    assert segments_from_position_ids(position_ids[1:], 1, mask[1:]) is None
