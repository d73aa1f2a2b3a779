"""Positions put together of terms, as pure functions, against an oracle that goes through the tokens one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reftune.positions import (
    Segments,
    content_terms,
    first_edited,
    joint_span,
    named_tokens,
    overlap,
    parse_positions,
    resolve_texts,
    segments_of_full_rows,
    slots,
    token_mask,
    token_units,
    turn_marks,
    unit_count,
    unit_slices,
)
from tests.training.text_models import word_tokenizer

from .term_oracle import Term, Terms, terms_of

texts = st.lists(st.integers(3, 9), min_size=1, max_size=14)


def resolved(terms: Terms, n: int, tokens: list[int], marks: list[int], past: int, width: int) -> dict[int, int]:
    """Token → Φ of the window, as reftune has it."""
    spec, tie = parse_positions(terms.text), terms.tie
    segments = segments_of_full_rows(1, len(tokens), torch.device("cpu"))._replace(end=torch.tensor([n]))
    window = torch.tensor([tokens[past : past + width]])
    if spec.scope == "terms":
        named = named_tokens(content_terms([spec]), window, torch.tensor([marks[past : past + width]]))
        turns = turn_marks(content_terms([spec]), torch.tensor([tokens]), segments)
        named |= {term: mark[:, past : past + width] for term, mark in turns.items()}
        found = token_units(spec, tie, joint_span([spec]), segments, past, width, named)[0].tolist()  # type: ignore[arg-type]
    elif spec.scope == "span":
        at = slots(spec, segments, past, width)
        found = [-1] * width
        for unit, part in enumerate(unit_slices(spec, tie)):  # type: ignore[arg-type]
            for column, ok in zip(at.columns[0, part].tolist(), at.valid[0, part].tolist(), strict=True):
                found[column] = unit if ok else found[column]
    else:
        hit = [True] * width if spec.scope == "all" else token_mask(spec, segments, past, width)[0].tolist()
        found = [0 if x else -1 for x in hit]
    return {past + i: unit for i, unit in enumerate(found) if unit >= 0}


@settings(max_examples=200)
@given(terms_of(spans=True), texts, st.data())
def test_any_window_of_a_text(terms: Terms, tokens: list[int], data: Any) -> None:
    n = data.draw(st.integers(1, len(tokens)))
    marks = data.draw(st.lists(st.integers(0, 1), min_size=len(tokens), max_size=len(tokens)))
    past = data.draw(st.integers(0, len(tokens) - 1))
    width = data.draw(st.integers(1, len(tokens) - past))
    wanted = {i: unit for i, unit in terms.units(n, tokens, marks).items() if past <= i < past + width}
    assert resolved(terms, n, tokens, marks, past, width) == wanted
    spec = parse_positions(terms.text)
    assert parse_positions(str(spec)) == spec
    assert all(unit < unit_count(spec, terms.tie) for unit in wanted.values())  # type: ignore[arg-type]


@settings(max_examples=80)
@given(terms_of(spans=True), texts, st.data())
def test_the_first_edited_token(terms: Terms, tokens: list[int], data: Any) -> None:
    """What reuse keeps lies before it."""
    n = data.draw(st.integers(1, len(tokens)))
    marks = data.draw(st.lists(st.integers(0, 1), min_size=len(tokens), max_size=len(tokens)))
    # a response goes on for longer than is asked here
    edited = terms.units(n, tokens, marks)
    found = int(
        first_edited([parse_positions(terms.text)], torch.tensor([n]), torch.tensor([tokens]), torch.tensor([marks]))
    )
    assert min(edited, default=len(tokens)) == min(found, len(tokens))


@settings(max_examples=80)
@given(terms_of(), terms_of(), texts, st.data())
def test_what_is_disjoint_never_meets(one: Terms, other: Terms, tokens: list[int], data: Any) -> None:
    n = data.draw(st.integers(1, len(tokens)))
    both = parse_positions(one.text), parse_positions(other.text)
    joint = joint_span(both)
    segments = segments_of_full_rows(1, len(tokens), torch.device("cpu"))._replace(end=torch.tensor([n]))
    ids = torch.tensor([tokens])
    marks = [
        token_units(s, "all", joint, segments, 0, len(tokens), named_tokens(content_terms([s]), ids, None, segments))
        >= 0
        for s in both
    ]
    if bool((marks[0] & marks[1]).any()):
        assert overlap(*both) and overlap(*reversed(both))


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("f7+l7", "p[7:-7]", False),
        ("f7", "p[6:9]", True),
        ("id(3)", "id(4,5)", False),
        ("id(3)", "f1", True),
        ("id(3)", "all-id(3,4)", False),
        ("g3", "l4", False),
        ("g3", "response-g3", False),
        ("prompt-f1", "f1", False),
        ("f2", "prompt-f1", True),
        ("span", "l1", True),
        ("span", "all-span", False),
        ("span", "response", False),
        ("id(3)+span", "prompt-span-id(3)", False),
        ("turn(1):f2", "turn(1):prompt-f2", False),
        ("turn(1):f2", "turn(1):prompt-f3", False),
        ("turn(1):f3", "turn(1):prompt-f2", True),
        ("turn(1):f1", "turn(1):l1", True),  # a turn of one token
        ("turn(1):f1", "turn(2):prompt-f1", True),
        ("turn(1):f1+l9", "response", False),
        ("turn(1):l1", "g1", False),
        ("turn(1):f1+id(7)", "turn(1):prompt-f1-id(7)", False),
    ],
)
def test_overlap(one: str, other: str, meet: bool) -> None:
    assert overlap(parse_positions(one), parse_positions(other)) is meet


@settings(max_examples=60)
@given(terms_of(), st.lists(texts, min_size=1, max_size=4), st.data())
def test_packed_texts(terms: Terms, packed: list[list[int]], data: Any) -> None:
    spec = parse_positions(terms.text)
    if spec.scope != "terms":
        return
    prompts = [data.draw(st.integers(1, len(tokens))) for tokens in packed]
    starts = torch.tensor([0, *map(len, packed)]).cumsum(0)
    segments = Segments(
        torch.zeros(len(packed), dtype=torch.long),
        starts[:-1],
        starts[:-1] + torch.tensor(prompts),
        starts[1:],
        1,
        one_per_row=False,
        gap=None,
    )
    ids = torch.tensor([[t for tokens in packed for t in tokens]])
    named = named_tokens(content_terms([spec]), ids, None, segments)
    found = token_units(spec, terms.tie, joint_span([spec]), segments, 0, ids.shape[1], named)[0].tolist()  # type: ignore[arg-type]
    for tokens, n, start in zip(packed, prompts, starts.tolist(), strict=False):
        wanted = terms.units(n, tokens)
        assert found[start : start + len(tokens)] == [wanted.get(i, -1) for i in range(len(tokens))]


@pytest.mark.parametrize(
    "text",
    [
        "-f1",
        "p[1]",
        "p[1:2:3]",
        "id()",
        "id(-1)",
        "text(.)",
        "f1+",
        "all-",
        "g",
        "f1+x",
        "turn:",
        "f1+turn:l1",
        "turn():f1",
    ],
)
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be read") as caught:
        parse_positions(text)
    assert repr(text) in str(caught.value) and "'p[a:b]'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("f1+f2", "twice"),
        ("turn:f1+f2", "twice"),
        ("turn:prompt", "'turn:' is for f<p> and l<s>"),
        ("g1+l1+g2", "twice"),
        ("p[:9999999]", "more than"),
        ("id(99999999999)", "no token has"),
        ('text("")', "empty"),
        ("+".join(f"p[{i}:{i + 1}]" for i in range(9)), "more than 8 terms"),
    ],
)
def test_what_cannot_be_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_positions(text)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        (" L4 + g4", "l4+g4"),
        ("g4+L4+f1", "f1+l4+g4"),
        ("id(30, 13,13)", "id(13,30)"),
        ('TEXT(".", "A b\\n")', 'text(".","A b\\n")'),
        ('text("\n")', 'text("\\n")'),
        ("l1+f1", "f1+l1"),
        ("all - p[ : 4 ]", "all-p[:4]"),
        ("f0+prompt", "prompt"),
        ("Turn: l2 + f1", "turn:f1+l2"),
        ("turn(9, 3):g1+l2-f1", "turn(3,9):l2+g1-f1"),
        ('turn("<A>"):f1+text("turn:")', 'turn("<A>"):f1+text("turn:")'),
    ],
)
def test_each_is_written_in_one_way(text: str, written: str) -> None:
    assert str(parse_positions(text)) == written


class Words:
    """A tokenizer of a few words."""

    words = (".", " .", "a", "\n", " a b")

    def get_vocab(self) -> dict[str, int]:
        return {word: i + 10 for i, word in enumerate(self.words)}

    def batch_decode(self, ids: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        return [self.words[i - 10] for (i,) in ids]

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [10, 12]}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.words[i - 10] for i in ids]


def test_texts_become_ids() -> None:
    assert resolve_texts('f1+text(".","\\n")-text("a b")', Words()) == "f1+id(10,11,13)-id(14)"
    assert resolve_texts("f1+l1", Words()) == "f1+l1"
    with pytest.raises(ValueError, match=r"'.a' is no token of this tokenizer, which reads it as \['.', 'a'\]"):
        resolve_texts('text(".a")', Words())


LOOP = "{% for m in messages %}"


@pytest.mark.parametrize(
    ("template", "ids"),
    [
        # as ChatML: one token begins a message of any role; with a system turn of its own, and a token before all
        (
            LOOP + "<s> {{ m.role }} {{ m.content }} </s> {% endfor %}{% if add_generation_prompt %}<s> w1 {% endif %}",
            "1",
        ),
        (
            "<pad> <s> w9 </s> "
            + LOOP
            + "<s> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<s> {% endif %}",
            "1",
        ),
        # one for each role, and no answer begun
        (LOOP + "{{ '<s>' if m.role == 'user' else '<pad>' }} {{ m.content }} {% endfor %}", "0,1"),
        # an answer begins with itself; a word begins messages; the last message is told apart; no roles but user
        (LOOP + "{{ '<s> ' if m.role == 'user' else '' }}{{ m.content }} </s> {% endfor %}", None),
        (LOOP + "w5 {{ m.content }} {% endfor %}{% if add_generation_prompt %}w5 {% endif %}", None),
        (LOOP + "<s> {{ m.content }} {% if loop.last %}</s>{% endif %}{% endfor %}", None),
        ("{{ raise_exception('no answers') if messages | length > 1 }}<s> {{ messages[0].content }}", None),
        (None, None),
    ],
)
def test_turns_begin_where_the_template_begins_messages(template: str | None, ids: str | None) -> None:
    tokenizer = word_tokenizer(template=template)
    if ids is not None:
        assert resolve_texts("turn:f1+l2-text('w3')".replace("'", '"'), tokenizer) == f"turn({ids}):f1+l2-id(10)"
        return
    with pytest.raises(ValueError, match=r"begins messages with no tokens of its own|turn\(<ids>\):"):
        resolve_texts("turn:f1", tokenizer)
    assert resolve_texts('turn("<user>","<assistant>"):f1', tokenizer) == "turn(4,5):f1"


def test_oracle_knows_python() -> None:
    """The oracle itself, by hand."""
    assert Terms((Term("p", (-3, -1)), Term("g", (1,))), (), "none").units(5, [3] * 7) == {2: 0, 3: 1, 5: 2}
    assert Terms((Term("all"),), (Term("id", (4,)),)).units(2, [4, 3, 4, 3]) == {1: 0, 3: 0}
    turns = Terms((Term("f", (1,)), Term("l", (2,))), (), "group", (4,))
    assert turns.units(6, [3, 3, 3, 4, 4, 3, 4]) == {0: 0, 1: 1, 2: 1, 3: 0, 4: 0, 5: 1}
