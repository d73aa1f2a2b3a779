"""Positions as they are written, and what follows of them without a prompt: a text (``"f7+l7"``) is a `PositionSpec`.

Needs no torch, so that an adapter's files can be told of in a moment.

Must not know: models, interventions, adapters, tensors.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, NamedTuple

__all__ = [
    "MARKED",
    "TURN",
    "PositionSpec",
    "Term",
    "Tie",
    "content_terms",
    "joint_span",
    "kinds_of_ids",
    "own_slots",
    "parse_positions",
    "scope_range",
    "unit_count",
    "unit_slices",
    "unresolved_terms",
]

Scope = Literal["span", "prompt", "all", "response", "terms"]
Tie = Literal["all", "group", "none"]

GRAMMAR = (
    "'f<p>', 'l<s>', 'f<p>+l<s>', 'prompt', 'all', 'response', 'g<k>', 'p[a:b]', 'id(13,30)', 'text(\".\")', 'span', "
    "several of these joined by '+', '-' before what is left out, and 'turn:' before all of it, which counts f and l "
    "in each turn"
)
# More than any text has; every number takes room in every call.
MOST_TOKENS = 2**20
MOST_TERMS = 8
# f and l that are counted within each turn of the prompt.
TURN = ("turn:f", "turn:l")
# What is named by more of the prompt than a token itself.
MARKED = ("span", *TURN)
# What depends on the tokens themselves, not on where they are.
CONTENT = ("id", "text", *MARKED)
BORDERS = re.compile(r'turn(?:\((?:(?P<ids>\d+(?:,\d+)*)|(?P<texts>"\d+"(?:,"\d+")*))\))?:', re.ASCII)
TERM = re.compile(
    r"(?P<sign>[+-])(?:(?P<kind>[flg])(?P<number>\d+)|p\[(?P<a>-?\d+|):(?P<b>-?\d+|)\]|id\((?P<ids>\d+(?:,\d+)*)\)"
    r'|text\((?P<texts>"\d+"(?:,"\d+")*)\)|(?P<whole>prompt|all|response|span))',
    re.ASCII,
)


class Term(NamedTuple):
    """One of what positions are put together of.

    kind `f`, `l`, `g`: the first, the last prompt tokens, the first generated ones, `a` of them; `p`: prompt tokens
    [a:b]; `id`: tokens with one of the `ids`; `text`: with one of the `texts`; `span`: prompt tokens that are marked;
    `turn:f`, `turn:l`: the first, the last `a` of each turn of the prompt, a turn beginning at a token with one of the
    `ids`; `prompt`, `all`, `response`.
    """

    kind: str
    a: int | None = None
    b: int | None = None
    ids: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.kind in TURN:
            return f"{_borders(self)}{self.kind[-1]}{self.a}"
        if self.kind in ("f", "l", "g"):
            return f"{self.kind}{self.a}"
        if self.kind == "p":
            return f"p[{'' if self.a is None else self.a}:{'' if self.b is None else self.b}]"
        if self.kind == "id":
            return f"id({','.join(map(str, self.ids))})"
        if self.kind == "text":
            return f"text({','.join(json.dumps(text, ensure_ascii=False) for text in self.texts)})"
        return self.kind

    @property
    def slots(self) -> int | None:
        """How many tokens it names in a long prompt; None where that depends on the prompt."""
        if self.kind in ("f", "l", "g"):
            return self.a
        if self.kind != "p":
            return None
        a, b = self.a, self.b
        if a is not None and a < 0 and (b is None or b < 0):
            return max(0, (b or 0) - a)
        if (a is None or a >= 0) and b is not None and b >= 0:
            return max(0, b - (a or 0))
        return None

    @property
    def needs_end(self) -> bool:
        """Whether it depends on where the prompt ends, however long that is."""
        if self.kind == "p":
            return self.b is None or self.b < 0 or (self.a or 0) < 0
        return self.kind in ("l", "g", "prompt", "response", *TURN)

    @property
    def reach(self) -> float:
        """How many tokens of the response it can name."""
        if self.kind == "g":
            return self.a or 0
        return 0 if self.kind in ("f", "l", "p", "prompt", *MARKED) else inf


@dataclass(frozen=True)
class PositionSpec:
    """Positions as numbers: the first `first` and the last `last` prompt tokens, or a whole scope; or `terms`.

    With the scope `terms` those tokens are edited that `first`, `last` or one of the `terms` names, but none that one
    of `without` names.
    """

    scope: Scope
    first: int = 0
    last: int = 0
    terms: tuple[Term, ...] = ()
    without: tuple[Term, ...] = ()

    @property
    def count(self) -> int:
        """Number of slots P that a row has; 0 for whole scopes, which have no slots."""
        return self.first + self.last

    @property
    def added(self) -> tuple[Term, ...]:
        """What names the tokens that are edited, in the order in which ties number it."""
        if self.scope not in ("span", "terms"):
            return (Term(self.scope),)
        ends = [Term(kind, n) for kind, n in (("f", self.first), ("l", self.last)) if n]
        return (*ends, *self.terms)

    @property
    def longest(self) -> int:
        """From twice this length of the prompt on, nothing that it names meets anything else that it names."""
        terms = (*self.added, *self.without)
        return sum(abs(n) for term in terms if term.kind in ("f", "l", "p") for n in (term.a, term.b) if n)

    @property
    def reach(self) -> float:
        """How many tokens of the response can be edited."""
        if any(term.kind in ("response", "all") for term in self.without):
            return 0
        return max((term.reach for term in self.added), default=0)

    @property
    def needs_end(self) -> bool:
        """Whether the positions depend on where the prompt ends, however long it is."""
        return any(term.needs_end for term in (*self.added, *self.without))

    @property
    def needs_prompt(self) -> bool:
        """Whether they depend on where the prompt lies at all."""
        return any(term.kind not in ("all", "id", "text") for term in (*self.added, *self.without))

    @property
    def needs_rank(self) -> bool:
        """Whether they depend on which token of the response one is."""
        return any(term.kind == "g" for term in (*self.added, *self.without))

    def __str__(self) -> str:
        begin = next((_borders(term) for term in (*self.terms, *self.without) if term.kind in TURN), "")
        added, without = ([str(t).removeprefix(begin) for t in terms] for terms in (self.added, self.without))
        return begin + "+".join(added or ["f0"]) + "".join(f"-{term}" for term in without)


def _borders(term: Term) -> str:
    """What stands before positions whose f and l are counted within turns."""
    names = ",".join(map(str, term.ids) if term.ids else (json.dumps(text, ensure_ascii=False) for text in term.texts))
    return f"turn({names}):" if names else "turn:"


def parse_positions(text: str) -> PositionSpec:
    """``"f7+l7"`` → `PositionSpec("span", 7, 7)`.

    Grammar: `f<p>` the first p prompt tokens, `l<s>` the last s, `prompt` every prompt token (so nothing at decode),
    `all` every token of prompt and response, `response` every token after the prompt, `g<k>` the first k of these,
    `p[a:b]` a slice of the prompt as Python has it, `span` prompt tokens that the data mark, `id(13,30)` tokens of
    prompt and response with these ids, `text(".","\\n")` the same by text, which `resolve_texts` makes ids of.  `+`
    joins what is edited, and what stands behind a `-` is left out, wherever it stands.  With `turn:` before all of it,
    f and l are counted in each turn of the prompt: the first turn begins with it, others at the tokens by which the
    chat template begins a message, or at those that `turn(<ids>):` or `turn("<text>"):` names.  Case and spaces do not
    matter outside of quotes; `str` of the result is the one way to write it.

    Raises:
        ValueError: the text is not of this form; the message quotes it.
    """
    if not isinstance(text, str):
        raise ValueError(f"positions={text!r} is not a text; valid are {GRAMMAR}")
    quoted: list[str] = []

    def put_aside(match: re.Match[str]) -> str:
        quoted.append(match[0])
        return f'"{len(quoted) - 1}"'

    cleaned = re.sub(r'"(?:[^"\\]|\\.)*"', put_aside, text, flags=re.DOTALL).replace(" ", "").lower()
    turns = BORDERS.match(cleaned)
    cleaned = "+" + cleaned[turns.end() if turns else 0 :]
    added: list[Term] = []
    without: list[Term] = []
    at = 0
    while at < len(cleaned):
        match = TERM.match(cleaned, at)
        if match is None:
            raise ValueError(f"positions={reprlib.repr(text)} cannot be read; valid are {GRAMMAR}, such as 'f7+l7'")
        (added if match["sign"] == "+" else without).append(_term(match, quoted, text))
        at = match.end()
        if len(added) + len(without) > MOST_TERMS:
            raise ValueError(f"positions={reprlib.repr(text)} has more than {MOST_TERMS} terms")
    if turns is not None:
        added, without = ([_in_turns(term, turns, quoted, text) for term in terms] for terms in (added, without))
        if not any(term.kind in TURN for term in (*added, *without)):
            raise ValueError(f"positions={reprlib.repr(text)} cannot be read: 'turn:' is for f<p> and l<s>")
    return _spec(added, without, text)


def _in_turns(term: Term, turns: re.Match[str], quoted: list[str], text: str) -> Term:
    """f and l, counted within turns; any other term as it is."""
    if term.kind not in ("f", "l"):
        return term
    return Term(f"turn:{term.kind}", term.a, ids=_ids(turns, text), texts=_texts(turns, quoted, text))


def _ids(match: re.Match[str], text: str) -> tuple[int, ...]:
    return tuple(sorted({_number(n, text, 2**31 - 1) for n in match["ids"].split(",")})) if match["ids"] else ()


def _texts(match: re.Match[str], quoted: list[str], text: str) -> tuple[str, ...]:
    if not match["texts"]:
        return ()
    try:
        # as in JSON, but a line may end within the quotes
        texts = [json.loads(quoted[int(n.strip('"'))], strict=False) for n in match["texts"].split(",")]
    except ValueError as error:
        raise ValueError(f"positions={reprlib.repr(text)} cannot be read: {error}; valid are {GRAMMAR}") from error
    if "" in texts:
        raise ValueError(f"positions={reprlib.repr(text)}: no token has an empty text")
    return tuple(dict.fromkeys(texts))


def _term(match: re.Match[str], quoted: list[str], text: str) -> Term:
    if match["whole"]:
        return Term(match["whole"])
    if match["kind"]:
        return Term(match["kind"], _number(match["number"], text))
    if match["ids"]:
        return Term("id", ids=_ids(match, text))
    if match["texts"]:
        return Term("text", texts=_texts(match, quoted, text))
    a, b = (_number(end, text) if end else None for end in (match["a"], match["b"]))
    return Term("p", a, b)


def _number(digits: str, text: str, most: int = MOST_TOKENS) -> int:
    sign, digits = digits.startswith("-"), digits.lstrip("-").lstrip("0") or "0"
    # Python refuses to read thousands of digits
    number = int(digits) if len(digits) < 12 else most + 1
    if number > most:
        what = f"more than {most} tokens; 'prompt' edits every prompt token"
        what = what if most == MOST_TOKENS else "an id that no token has"
        raise ValueError(f"positions={reprlib.repr(text)} names {what}")
    return -number if sign else number


def _spec(added: Iterable[Term], without: Iterable[Term], text: str) -> PositionSpec:
    """The one way to say it: what names no token is left out, and f and l have fields of their own."""
    added, without = (
        [*dict.fromkeys(t for t in terms if t.slots != 0 and (t.kind not in TURN or t.a))] for terms in (added, without)
    )
    for kind in ("f", "l", "g", *TURN):
        if sum(term.kind == kind for term in added) > 1:
            raise ValueError(f"positions={reprlib.repr(text)} cannot be read: it names {kind[-1]}<…> twice")
    if not added:
        return PositionSpec("span")
    added.sort(key=lambda term: TURN.index(term.kind) if term.kind in TURN else len(TURN))
    first = next((term.a for term in added if term.kind == "f"), 0) or 0
    last = next((term.a for term in added if term.kind == "l"), 0) or 0
    others = tuple(term for term in added if term.kind not in ("f", "l"))
    if not others and not without:
        return PositionSpec("span", first, last)
    kind: Any = others[0].kind if len(others) == 1 else None
    if kind in ("prompt", "all", "response") and not (first or last or without):
        return PositionSpec(kind)
    return PositionSpec("terms", first, last, others, tuple(without))


def content_terms(specs: Sequence[PositionSpec], *kinds: str) -> tuple[Term, ...]:
    """Each term of the specs that depends on the tokens themselves, once."""
    terms = [term for spec in specs for term in (*spec.terms, *spec.without) if term.kind in (kinds or CONTENT)]
    return tuple(dict.fromkeys(terms))


def kinds_of_ids(specs: Sequence[PositionSpec]) -> frozenset[frozenset[Term]]:
    """The sets of terms that name a token together, by its id or as it is marked; but for that no term names it."""
    by_id = content_terms(specs, "id")
    kinds = {frozenset(term for term in by_id if i in term.ids) for i in {i for t in by_id for i in t.ids}}
    kinds |= {frozenset()}
    if marks := content_terms(specs, "span"):
        kinds |= {kind | frozenset(marks) for kind in kinds}
    of_turns = content_terms(specs, *TURN)
    for borders in {term.ids for term in of_turns}:
        here = [term for term in of_turns if term.ids == borders]
        # which of these name a token depends on how far it is from the begin and from the end of its turn
        sizes = [(term.kind, term.a or 0, term) for term in here]
        sides = [
            {frozenset[Term](), *(frozenset(t for k, n, t in sizes if k == kind and n >= size) for _, size, _ in sizes)}
            for kind in TURN
        ]
        kinds = {kind | begin | end for kind in kinds for begin in sides[0] for end in sides[1]}
    return frozenset(kinds - {frozenset()})


def unresolved_terms(specs: Sequence[PositionSpec]) -> tuple[Term, ...]:
    """Each term of which it is not known yet which ids it means, once."""
    return tuple(term for term in content_terms(specs, "text", *TURN) if not term.ids)


def unit_slices(spec: PositionSpec, tie: Tie) -> list[slice]:
    """Slots of a row that share one Φ, in the order in which the Φ of a layer are numbered.

    `all`: one Φ; `group`: one for the prefix, one for the suffix; `none`: one a position.  Of positions that are put
    together of terms, `group` is one Φ a term, and `none` one for each token of each; a token that several name belongs
    to the first of them.  Such have no slots: slice i is [i, i + 1), the number of the Φ.
    """
    if spec.scope == "terms":
        return [slice(i, i + 1) for i in range(unit_count(spec, tie))]
    if spec.scope != "span" or tie == "all":
        return [slice(0, spec.count)]
    if tie == "group":
        halves = [slice(0, spec.first), slice(spec.first, spec.count)]
        return [half for half in halves if half.stop > half.start]
    return [slice(i, i + 1) for i in range(spec.count)]


def unit_count(spec: PositionSpec, tie: Tie) -> int:
    """How many slices `unit_slices` has, without making them."""
    if spec.scope not in ("span", "terms") or tie == "all":
        return 1
    return len(spec.added) if tie == "group" else sum(term.slots or 0 for term in spec.added)


def joint_span(specs: Sequence[PositionSpec]) -> PositionSpec:
    """The span of all that edit one site together: on a short prompt, prefixes and suffixes give way to each other."""
    return PositionSpec("span", max([0, *[s.first for s in specs]]), max([0, *[s.last for s in specs]]))


def own_slots(spec: PositionSpec, joint: PositionSpec) -> list[int]:
    """Which slots of `joint` are those of `spec`, in the order of its own."""
    return [*range(spec.first), *range(joint.count - spec.last, joint.count)]


def scope_range(spec: PositionSpec, length: int) -> tuple[int, int | None]:
    """Tokens [first, stop) that a whole scope edits of a prompt of `length` tokens and its response; None: no end."""
    if spec.scope == "prompt":
        return 0, length
    if spec.scope == "response":
        return length, None
    if spec.scope == "all":
        return 0, None
    raise ValueError(f"positions {spec} are no whole scope")
