"""Edits of a request as ranges, against what the tuner would edit; and keys of blocks."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reftune.positions import (
    joint_span,
    own_slots,
    parse_positions,
    segments_of_full_rows,
    slots,
    token_mask,
    unit_slices,
)
from reftune.serving.plans import (
    Part,
    block_key,
    marks_of,
    most_sets,
    plan,
    plan_of_tokens,
    ranges_of,
    sets_by_length,
    sites_from_wire,
)
from tests.term_oracle import Terms, terms_of

RESPONSE = 5

positions = st.one_of(
    st.sampled_from(["prompt", "all", "response"]),
    st.builds(lambda p, s: f"f{p}+l{s}", st.integers(1, 9), st.integers(1, 9)),
    st.builds(lambda p: f"f{p}", st.integers(1, 9)),
    st.builds(lambda s: f"l{s}", st.integers(1, 9)),
)
groups = st.tuples(positions, st.sampled_from(["all", "group", "none"]))


@st.composite
def sites(draw: Any) -> Any:
    number = 0
    found = []
    for site in draw(st.lists(st.lists(groups, min_size=1, max_size=3), min_size=1, max_size=3)):
        found.append(tuple((number + i, text, tie) for i, (text, tie) in enumerate(site)))
        number += len(site)
    return tuple(found)


def edited(value: Any, length: int) -> list[set[Part]]:
    """Of each token of prompt and response, by one forward call over both."""
    total = length + RESPONSE
    segments = segments_of_full_rows(1, total, torch.device("cpu"))
    segments = segments._replace(end=torch.tensor([length]))
    found: list[set[Part]] = [set() for _ in range(total)]
    for number, site in enumerate(value):
        specs = [parse_positions(text) for _, text, _ in site]
        joint = joint_span(specs)
        for (group, _, tie), spec in zip(site, specs, strict=True):
            if spec.scope == "all":
                hits = range(total)
            elif spec.scope != "span":
                hits = token_mask(spec, segments, 0, total)[0].nonzero()[:, 0].tolist()
            else:
                at = slots(joint, segments, 0, total)
                for unit, part in enumerate(unit_slices(spec, tie)):
                    for slot in own_slots(spec, joint)[part]:
                        if at.valid[0, slot]:
                            found[int(at.columns[0, slot])].add(Part(number, group, unit))
                continue
            for column in hits:
                found[column].add(Part(number, group, 0))
    return found


@given(sites(), st.integers(1, 30))
def test_plan_is_what_one_call_edits(value: Any, length: int) -> None:
    found: list[set[Part]] = [set() for _ in range(length + RESPONSE)]
    last = -1
    for edit in plan(value, length):
        assert edit.start >= last and edit.parts
        last = len(found) if edit.stop is None else edit.stop
        for token in range(edit.start, min(last, len(found))):
            found[token] |= set(edit.parts)
    assert found == edited(value, length)


@given(sites(), st.integers(1, 60))
def test_no_request_needs_more_sets_than_are_counted(value: Any, length: int) -> None:
    assert len({edit.parts for edit in plan(value, length)}) <= most_sets(value)


@given(sites(), st.integers(1, 40), st.integers(1, 40), st.integers(1, 4))
def test_blocks_have_one_key_if_and_only_if_they_are_edited_alike(value: Any, one: int, other: int, block: int) -> None:
    size = 4 * block
    for start in range(0, max(one, other) + 8, size):
        keys = [block_key("a", plan(value, length), start, start + size) for length in (one, other)]
        marks = []
        for length in (one, other):
            found = edited(value, max(length, 1))
            # the response goes on for ever
            found += [found[-1]] * (2 * size + 60)
            marks.append(found[start : start + size])
        assert (keys[0] == keys[1]) == (marks[0] == marks[1])
        assert (keys[0] is None) == (not any(marks[0]))


@settings(max_examples=100)
@given(
    st.lists(terms_of(spans=True), min_size=1, max_size=2),
    st.lists(st.integers(3, 9), min_size=1, max_size=14),
    st.integers(1, 9),
    st.data(),
)
def test_windows_of_terms_are_edited_as_the_oracle_says(
    several: list[Terms], tokens: list[int], length: int, data: Any
) -> None:
    """Any window of prompt and response, by its tokens alone."""
    length = min(length, len(tokens))
    start = data.draw(st.integers(0, len(tokens) - 1))
    stop = data.draw(st.integers(start + 1, len(tokens)))
    # each a site, since f and l of one site give way to each other
    value = tuple(((i, str(parse_positions(terms.text)), terms.tie),) for i, terms in enumerate(several))
    found: dict[int, set[Part]] = {i: set() for i in range(start, stop)}
    spans = data.draw(st.lists(st.integers(0, 1), min_size=length, max_size=length))
    marks = marks_of(value, tokens[:length], ranges_of(spans))
    edits = plan_of_tokens(value, length, start, stop, lambda: tokens[start:stop], marks)
    for edit in edits:
        for i in range(max(edit.start, start), stop if edit.stop is None else min(edit.stop, stop)):
            found[i] |= set(edit.parts)
    wanted: dict[int, set[Part]] = {i: set() for i in range(start, stop)}
    for number, terms in enumerate(several):
        for i, unit in terms.units(length, tokens, spans).items():
            if start <= i < stop:
                wanted[i].add(Part(number, number, unit))
    assert found == wanted
    assert {edit.parts for edit in edits} <= frozenset().union(*sets_by_length(value))
    # a block's key says just this, wherever the block ends
    whole = plan_of_tokens(value, length, 0, len(tokens), lambda: tokens, marks)
    assert block_key("a", whole, start, stop) == block_key("a", edits, start, stop)
    assert (block_key("a", edits, start, stop) is None) == (not any(found.values()))


def test_generated_tokens_behind_the_first_ones_have_no_key() -> None:
    edits = plan((((0, "l4+g4", "group"),),), 40)
    assert [(edit.start, edit.stop) for edit in edits] == [(36, 40), (40, 44)]
    assert block_key("a", edits, 32, 48) and block_key("a", edits, 48, 64) is None


def test_keys_tell_adapters_apart() -> None:
    edits = plan((((0, "l1", "all"),),), 40)
    assert block_key("a", edits, 0, 32) is None
    assert block_key("a", edits, 32, 64) != block_key("b", edits, 32, 64)


def test_sites_travel() -> None:
    value = (((0, "f7+l7", "none"), (1, "prompt", "all")), ((2, "l1", "group"),))
    assert sites_from_wire(json.loads(json.dumps(value))) == value


@pytest.mark.parametrize(("length", "wanted"), [(1, [(0, 1)]), (2, [(0, 2)]), (20, [(0, 7), (13, 20)])])
def test_short_prompts(length: int, wanted: list[tuple[int, int]]) -> None:
    assert [(edit.start, edit.stop) for edit in plan((((0, "f7+l7", "all"),),), length)] == wanted
