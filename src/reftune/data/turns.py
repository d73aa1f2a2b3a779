"""Conversations with several answers, as one row for each answer: what lies before it is its prompt, whole.

That is what the model sees when it gives that answer.  In one row for the whole conversation, the prompt of the second
answer would have to be edited at its end while the first answer's edits stay where they were, which no generation has.

Must not know: positions, models, the files' formats.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from reftune.data.kinds import MESSAGES, Record, check_record, is_conversation
from reftune.data.records import load_datasets
from reftune.errors import DataError

if TYPE_CHECKING:
    import datasets

__all__ = ["IGNORE", "TRAIN_ON", "split_record", "split_turns"]

TRAIN_ON = ("last", "all")
IGNORE = -100
"""The label that cross-entropy leaves out."""
# Columns that say which tokens are trained, where there are no labels, as TRL has them.
MASKS = ("assistant_masks", "completion_mask")


def split_record(record: Record) -> list[Record]:
    """One record for each answer of a conversation, in order; any other record is returned as it is.

    An answer is a turn of the assistant that something stands before; calls of tools are answers too.  The chat
    template writes each record anew, so that what it does to earlier turns (leave out their thoughts, say) is as it
    is when that answer is asked for.

    Raises:
        DataError: the record cannot be used.
    """
    kind = check_record(record)
    if kind is MESSAGES:
        messages = record["messages"]
        return [{**record, "messages": messages[: i + 1]} for i in _answers(messages) if i]
    if kind.prompt == "prompt" and is_conversation(record["prompt"]):
        prompt, completion = record["prompt"], record["completion"]
        return [
            {**record, "prompt": [*prompt, *completion[:i]], "completion": [completion[i]]}
            for i in _answers(completion)
        ]
    return [record]


def _answers(messages: Any) -> Iterator[int]:
    return (i for i, turn in enumerate(messages) if turn["role"] == "assistant")


def split_turns(dataset: datasets.Dataset) -> datasets.Dataset:
    """Tokenised rows of any framework, one for each labelled stretch: it ends the row, and all before it is prompt.

    Takes `input_ids` and `labels` (or TRL's `assistant_masks` or `completion_mask`); other columns with a value for
    each token are cut alike, the rest is repeated.  The rows have `labels` and `prompt_length`.  Where the chat
    template writes earlier turns otherwise than the last, split the records (`split_record`, `train_on="all"`).

    Raises:
        DataError: there are no such columns, or a row without any labelled token, or with one at its very beginning.
    """
    names = set(dataset.column_names)
    mask = next((name for name in MASKS if name in names), None)
    if "input_ids" not in names or ("labels" not in names and mask is None):
        raise DataError(
            f"split_turns needs the columns 'input_ids' and 'labels' (or {' or '.join(map(repr, MASKS))}); there are "
            f"{', '.join(sorted(names)) or 'none'}"
        )

    def split(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {name: [] for name in (*batch, "labels", "prompt_length")}
        for i, number in enumerate(numbers):
            row = {name: values[i] for name, values in batch.items()}
            for name, value in _split_row(row, mask, number):
                found[name].append(value)
        return found

    return load_datasets().Dataset.map(
        dataset, split, with_indices=True, batched=True, remove_columns=dataset.column_names
    )


def _split_row(row: dict[str, Any], mask: str | None, number: int) -> Iterator[tuple[str, Any]]:
    ids = row["input_ids"]
    if row.get("labels") is not None:
        trained = [label != IGNORE for label in row["labels"]]
    else:
        trained = [bool(value) for value in row[mask or ""]]
    if len(trained) != len(ids):
        raise DataError(f"row {number + 1}: {len(ids)} tokens, but labels for {len(trained)}")
    begins = [i for i, on in enumerate(trained) if on and not (i and trained[i - 1])]
    if not begins or begins[0] == 0:
        what = "no token is labelled" if not begins else "its first token is labelled, so there is no prompt"
        raise DataError(f"row {number + 1}: {what}")
    for begin in begins:
        end = next((i for i in range(begin, len(ids)) if not trained[i]), len(ids))
        values = {name: value[:end] if _by_token(value, len(ids)) else value for name, value in row.items()}
        values |= {"labels": [IGNORE] * begin + list(ids[begin:end]), "prompt_length": begin}
        if mask in values:
            values[mask] = [0] * begin + [1] * (end - begin)
        yield from values.items()


def _by_token(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count
