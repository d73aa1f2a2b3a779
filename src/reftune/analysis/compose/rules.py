"""How an answer is scored without a reference: by a rule that looks at the text, from 0 to 1.

Must not know: where answers come from.
"""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

from ...errors import MissingExtraError, ReftuneError

__all__ = ["RULES", "Rule", "guess_rule", "rule"]

DETECTOR = "py3langid"
# An answer is as its data are where it has this much of the rule; the mean over answers of a set, too.
FITS = 0.8
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE)
COUNTED = re.compile(rf"\b({'|'.join(NUMBERS)}|[2-9]|10)\b(?:\s+\w+)?\s+\w+s\b", re.IGNORECASE)
LISTED = re.compile(r"\b(?:list|steps|bullet points|outline)\b", re.IGNORECASE)
SHORT = re.compile(r"\b(?:one word|single word|one sentence|a sentence|yes or no)\b", re.IGNORECASE)
FEWEST_WORDS = 10
MOST_REPEATS = 3


class Rule(NamedTuple):
    """`score(prompt, answer)` is from 0 to 1."""

    name: str
    says: str
    score: Callable[[str, str], float]


def language_share(code: str, prompt: str, answer: str) -> float:
    """The share of the answer's letters that stand in sentences of the language."""
    sentences = [part for part in re.split(r"(?<=[.!?])\s+|\n+", answer) if any(map(str.isalpha, part))]
    sizes = [sum(map(str.isalpha, part)) for part in sentences]
    right = sum(size for part, size in zip(sentences, sizes, strict=True) if _language(part) == code)
    return right / sum(sizes) if sizes else 0.0


@cache
def _language(text: str) -> str:
    if importlib.util.find_spec(DETECTOR) is None:
        raise MissingExtraError(DETECTOR, extra="language")
    import py3langid  # noqa: PLC0415 — only now is it known that the extra is there

    return str(py3langid.classify(text)[0])


def capitals(prompt: str, answer: str) -> float:
    """The share of capitals among the letters that have a case."""
    cased = [letter for letter in answer if letter.lower() != letter.upper()]
    return sum(map(str.isupper, cased)) / len(cased) if cased else 0.0


def emoji(prompt: str, answer: str) -> float:
    """The share of pictures among the characters that are seen; what only joins pictures counts as none."""
    joins = ("Mn", "Cf", "Sk", "Zs", "Cc")
    seen = [letter for letter in answer if unicodedata.category(letter) not in joins]
    return sum(unicodedata.category(letter) == "So" for letter in seen) / len(seen) if seen else 0.0


def word_count(low: int, high: int, prompt: str, answer: str) -> float:
    """1 where the answer has so many words, else 0."""
    return float(low <= len(answer.split()) <= high)


def instruction(prompt: str, answer: str) -> float:
    """1 where length and form are those of an answer to the prompt, else 0.

    It has at least ten words unless the prompt asks for a word or a sentence; does not say a sentence three times or
    the prompt itself; and has as many items as the prompt asks for, at least two where it asks for a list.
    """
    words = answer.split()
    if not words or (len(words) < FEWEST_WORDS and not SHORT.search(prompt)):
        return 0.0
    sentences = [part.strip().lower() for part in re.split(r"[.!?\n]+", answer) if part.strip()]
    if max((sentences.count(each) for each in set(sentences)), default=0) >= MOST_REPEATS or _goes_round(words):
        return 0.0
    if " ".join(prompt.lower().split()) in " ".join(words).lower():
        return 0.0
    counted = COUNTED.search(prompt)
    wanted = (NUMBERS.get(counted[1].lower()) or int(counted[1])) if counted else 2 if LISTED.search(prompt) else 0
    return float(len(ITEM.findall(answer)) >= wanted)


def _goes_round(words: Sequence[str]) -> bool:
    """Whether the same four words come three times."""
    fours = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return any(fours.count(four) >= MOST_REPEATS for four in set(fours))


# name → what it says, and the function, or what makes one of what stands behind the colon
RULES: dict[str, tuple[str, Any]] = {
    "language": ("language:de: the share of letters in sentences of that language, as py3langid tells it", str),
    "capitals": ("the share of capital letters", capitals),
    "emoji": ("the share of emoji among characters", emoji),
    "words": ("words:1-3: whether the answer has so many words", str),
    "instruction": (
        "whether length and form are those of an answer: ten words or more, nothing said three times, not the prompt, "
        "as many items as are asked for",
        instruction,
    ),
}


def rule(name: str) -> Rule:
    """A rule by its name.

    Raises:
        ReftuneError: there is none of that name, or it lacks what stands behind the colon.
    """
    kind, colon, value = name.partition(":")
    says, score = RULES.get(kind, ("", None))
    if kind == "language" and re.fullmatch(r"[a-z]{2,3}", value):
        return Rule(
            name, f"the share of letters in sentences of the language {value!r}", partial(language_share, value)
        )
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", value)
    if kind == "words" and match and int(match[1]) <= int(match[2] or match[1]):
        low, high = int(match[1]), int(match[2] or match[1])
        return Rule(name, f"whether the answer has {value} words", partial(word_count, low, high))
    if score in (None, str) or colon:
        raise ReftuneError(f"the rule {name!r} is not valid; valid are language:de, words:1-3, {', '.join(_plain())}")
    return Rule(name, says, score)


def _plain() -> list[str]:
    return [name for name, (_, score) in RULES.items() if score is not str]


def guess_rule(prompts: Sequence[str], answers: Sequence[str]) -> Rule:
    """The first rule that the answers of a set follow: a language other than English, capitals, emoji, few words; else
    `instruction`.  Languages are looked for where py3langid is installed."""
    candidates = [rule("capitals"), rule("emoji"), rule("words:1-3")]
    if importlib.util.find_spec(DETECTOR) is not None:
        told = [_language(answer) for answer in answers]
        most = max(set(told), key=told.count)
        candidates += [rule(f"language:{most}")] if most != "en" else []
    for candidate in candidates:
        scores = [candidate.score(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        if sum(scores) / len(scores) >= FITS:
            return candidate
    return rule("instruction")
