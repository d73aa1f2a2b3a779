"""Positions that are put together of terms, said again in plain Python: token by token, each term by itself.

Must not know: reftune.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st


@dataclass(frozen=True)
class Term:
    """One term: its kind and its numbers, as in `f3`, `p[2:]` (None where nothing stands), `id(5,7)`."""

    kind: str
    numbers: tuple[int | None, ...] = ()

    @property
    def text(self) -> str:
        shown = ["" if number is None else str(number) for number in self.numbers]
        if self.kind == "p":
            return f"p[{shown[0]}:{shown[1]}]"
        return f"id({','.join(shown)})" if self.kind == "id" else self.kind + "".join(shown)

    @property
    def size(self) -> int | None:
        """Tokens of a long prompt and response that it names, None if they are not a number."""
        if self.kind == "p":
            sizes = {len(range(n)[slice(*self.numbers)]) for n in (50, 51)}
            return sizes.pop() if len(sizes) == 1 else None
        return self.numbers[0] if self.kind in "flg" else None

    def in_turns(self, i: int, n: int, tokens: Sequence[int], borders: Sequence[int]) -> bool:
        """Whether this f or l names token i, counted in the turns that begin with the prompt and at the borders."""
        if i >= n:
            return False
        begins = [j for j in range(n) if j == 0 or tokens[j] in borders]
        begin = max(j for j in begins if j <= i)
        end = min([j for j in begins if j > i], default=n)
        assert self.numbers[0] is not None
        return i - begin < self.numbers[0] if self.kind == "f" else end - i <= self.numbers[0]

    def slot(self, i: int, n: int, tokens: Sequence[int], marks: Sequence[int] = ()) -> int | None:
        """Which of the tokens that it names token i is, counted as in a long prompt; None if it does not name it."""
        total = len(tokens)
        if self.kind == "span":
            return 0 if i < n and marks[i] else None
        if self.kind == "id":
            return 0 if tokens[i] in self.numbers else None
        if self.kind == "p":
            if i not in range(n)[slice(*self.numbers)]:
                return None
            a = self.numbers[0] or 0
            return i - a if a >= 0 else i - (n + a)
        k = self.numbers[0] if self.numbers else None
        named = {
            "f": range(k or 0),
            "l": range(n - (k or 0), n),
            "g": range(n, n + (k or 0)),
            "prompt": range(n),
            "all": range(total),
            "response": range(n, total),
        }[self.kind]
        # only of l a part may lie before the text
        return named.index(i) if i in named and (i < n or self.kind not in "fl") else None


@dataclass(frozen=True)
class Terms:
    """What is edited and what of it is not."""

    added: tuple[Term, ...]
    without: tuple[Term, ...] = ()
    tie: str = "all"
    borders: tuple[int, ...] = ()
    """Tokens that begin turns, in which f and l are counted; none: they are counted in the prompt."""

    @property
    def text(self) -> str:
        begin = f"turn({','.join(map(str, self.borders))}):" if self.borders else ""
        return begin + "+".join(term.text for term in self.added) + "".join(f"-{term.text}" for term in self.without)

    def units(self, n: int, tokens: Sequence[int], marks: Sequence[int] = ()) -> dict[int, int]:
        """Token → number of the Φ that edits it, in a text whose first n tokens are the prompt."""
        # f and l are numbered first, and give way to each other in short prompts
        order = sorted(self.added, key=lambda term: {"f": 0, "l": 1}.get(term.kind, 2))
        p, s = (next((t.numbers[0] for t in order if t.kind == kind), 0) or 0 for kind in "fl")
        if n < p + s:
            p, s = min(p, n // 2), min(s, (n + 1) // 2)
        found = {}
        for i in range(len(tokens)):
            if any(self._leaves_out(term, i, n, tokens, marks) for term in self.without):
                continue
            before = 0
            for number, term in enumerate(order):
                if self.borders and term.kind in "fl":
                    if term.in_turns(i, n, tokens, self.borders):
                        found[i] = {"all": 0, "group": number}[self.tie]
                        break
                    continue
                slot = term.slot(i, n, tokens, marks)
                if (term.kind == "f" and i >= p) or (term.kind == "l" and i < n - s):
                    slot = None
                if slot is not None:
                    found[i] = {"all": 0, "group": number, "none": before + slot}[self.tie]
                    break
                before += term.size or 0
        return found

    def _leaves_out(self, term: Term, i: int, n: int, tokens: Sequence[int], marks: Sequence[int]) -> bool:
        if self.borders and term.kind in "fl":
            return term.in_turns(i, n, tokens, self.borders)
        return term.slot(i, n, tokens, marks) is not None


bounds = st.one_of(st.none(), st.integers(-4, 5))
counted = st.builds(lambda kind, n: Term(kind, (n,)), st.sampled_from("flg"), st.integers(1, 4))
slices = st.builds(lambda a, b: Term("p", (a, b)), bounds, bounds).filter(lambda term: term.size != 0)
wholes = st.sampled_from([Term("prompt"), Term("all"), Term("response")])
ids = st.lists(st.integers(3, 8), min_size=1, max_size=3, unique=True).map(lambda x: Term("id", tuple(sorted(x))))
any_term = st.one_of(counted, slices, wholes, ids, ids)


def _one_of_each(terms: list[Term]) -> bool:
    return all(sum(term.kind == kind for term in terms) <= 1 for kind in "flg")


@st.composite
def terms_of(draw: st.DrawFn, *, spans: bool = False) -> Terms:
    """Some terms with a tie that they can have, some in turns; with `spans`, marked tokens are likely among them."""
    one = st.one_of(any_term, st.just(Term("span"))) if spans else any_term
    added = draw(st.lists(one, min_size=1, max_size=3, unique=True).filter(_one_of_each))
    without = draw(st.lists(one, max_size=2, unique=True).filter(_one_of_each))
    has_ends = any(term.kind in "fl" for term in (*added, *without))
    borders = tuple(sorted(draw(st.sets(st.integers(3, 8), max_size=2)))) if has_ends else ()
    is_fixed = all(term.size is not None and not (borders and term.kind in "fl") for term in added)
    ties = ["all"] if len(added) == 1 and not without else ["all", "group"]
    return Terms(tuple(added), tuple(without), draw(st.sampled_from([*ties, "none"] if is_fixed else ties)), borders)
