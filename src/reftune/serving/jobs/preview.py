"""How rows will be trained on, before anything is: their tokens, where the prompt ends, which tokens are edited.

Must not know: HTTP, the database, models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...data import Example, tokenize_record
from ...data.kinds import check_record, with_usual_names
from ...data.records import Rows
from ...errors import DataError
from ..pieces import breathe
from ..plans import Sites, marks_of, plan_of_tokens, ranges_of
from .plan import Base, sites_of
from .schemas import PreviewRow

__all__ = ["preview_rows", "token_texts"]

# In tokens: bytes of UTF-8.
LONGEST_CHARACTER = 4


def preview_rows(
    rows: Rows, reft: Mapping[str, Any], base: Base, tokenizer: Any, *, first: int, limit: int, max_length: int
) -> list[PreviewRow]:
    """`limit` rows from number `first` on; one that cannot be used says why in its place."""
    sites = sites_of(reft, base)
    found = []
    for index in range(first, min(first + limit, len(rows))):
        breathe()
        number = index + 1 if rows.numbers is None else rows.numbers[index]
        try:
            record = with_usual_names(rows.records[index])
            check_record(record)
            example = tokenize_record(record, tokenizer, max_length=max_length)
            found.append(_shown(number, example, sites, tokenizer))
        except (DataError, TypeError) as error:
            found.append(PreviewRow(row=number, error=str(error)))
    return found


def _shown(number: int, example: Example, sites: Sites, tokenizer: Any) -> PreviewRow:
    ids, length = example.input_ids, example.prompt_length
    edits: list[set[int]] = [set() for _ in ids]
    marks = marks_of(sites, ids[:length], ranges_of(example.spans))
    for edit in plan_of_tokens(sites, length, 0, len(ids), lambda: ids, marks):
        for i in range(len(ids))[edit.start : edit.stop]:
            edits[i].update(part.group for part in edit.parts)
    return PreviewRow(
        row=number,
        ids=ids,
        tokens=token_texts(ids, tokenizer),
        prompt_length=length,
        cut=example.prompt_cut,
        edits=[sorted(groups) for groups in edits],
    )


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """What each token adds to the text; of a character in several tokens, the last has it and the others nothing."""

    def read(window: Sequence[int]) -> str:
        return tokenizer.decode(window, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    texts, pending = [], 0
    for i in range(len(ids)):
        # behind one that is whole: tokenizers drop the space of a first word
        known = ids[max(0, pending - 1) : pending]
        text = read([*known, *ids[pending : i + 1]])[len(read(known)) :]
        if text.endswith("\ufffd") and i - pending < LONGEST_CHARACTER:
            texts.append("")
            continue
        texts.append(text)
        pending = i + 1
    return texts
