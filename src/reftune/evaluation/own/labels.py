"""Answers that are one of a few labels: how an output names one, and precision, recall and confusion of each.

Must not know: files, models.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

__all__ = ["NO_LABEL", "Labels", "plain"]

NO_LABEL = "no label"
# of what stands around a label: quotes, brackets, the end of a sentence
_AROUND = " \t\r\n\"'`*_.,:;!?()[]{}<>“”‘’„«»"


def plain(text: str) -> str:
    """In small letters, with single blanks."""
    return " ".join(text.casefold().split())


@dataclass(frozen=True)
class Labels:
    """Labels, the most frequent writing of each, sorted."""

    names: tuple[str, ...]

    @staticmethod
    def of(answers: Sequence[str]) -> Labels:
        """Of right answers; what differs in capitals or blanks only is one label."""
        written = Counter(" ".join(answer.split()) for answer in answers)
        names: dict[str, str] = {}
        for text, _ in sorted(written.items(), key=lambda item: (-item[1], item[0])):
            names.setdefault(plain(text), text)
        return Labels(tuple(sorted(names.values())))

    @cached_property
    def _by_key(self) -> Mapping[str, str]:
        return {plain(name): name for name in self.names}

    @cached_property
    def _bare(self) -> Mapping[str, str]:
        """Without signs around them; nothing where labels differ in these only, as A and A* do."""
        found = {key.strip(_AROUND): name for key, name in self._by_key.items()}
        return found if len(found) == len(self.names) else {}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Any label as words of its own, the longest first."""
        keys = sorted(self._by_key, key=len, reverse=True)
        return re.compile("|".join(rf"(?<!\w){re.escape(key)}(?!\w)" for key in keys))

    def canonical(self, answer: str) -> str:
        """A right answer as its label is written."""
        return self._by_key[plain(answer)]

    def read(self, output: str) -> str | None:
        """The label that an output or its first line is, else the only one that it names; None otherwise."""
        lines = output.strip().splitlines()
        for text in (output, lines[0] if lines else ""):
            key = plain(text)
            found = self._by_key.get(key) or self._bare.get(key.strip(_AROUND))
            if found is not None:
                return found
        named = {self._by_key[match] for match in self._pattern.findall(plain(output))}
        return named.pop() if len(named) == 1 else None

    def details(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Precision, recall and F1 of each label, their macro mean, and how often each was taken for each."""
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support  # noqa: PLC0415  (optional extra)

        wanted = [example["reference"] for example in examples]
        given = [NO_LABEL if example["answer"] is None else example["answer"] for example in examples]
        # a label that no row has, and that none is taken for, has no precision and no recall
        names = [name for name in self.names if name in wanted or name in given]
        zero: Any = 0
        each: Any = precision_recall_fscore_support(wanted, given, labels=names, zero_division=zero)
        columns = [*names, *([NO_LABEL] if NO_LABEL in given and NO_LABEL not in names else [])]
        matrix = confusion_matrix(wanted, given, labels=columns)
        return {
            "macro_f1": float(each[2].mean()),
            "labels": [
                {"label": n, "precision": float(p), "recall": float(r), "f1": float(f), "rows": int(s)}
                for n, p, r, f, s in zip(names, *each, strict=True)
            ],
            "confusion": {"columns": columns, "rows": matrix[: len(names)].tolist()},
        }
