"""Examples of different lengths to one batch of tensors.

`prompt_length` is always in the batch: labels may be taken away before the model is called (label smoothing, metric
passes), and then nothing else tells where the prompt ends.

Must not know: text, positions, models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reftune.data.tokenize import IGNORE
from reftune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ReftCollator"]


@dataclass(frozen=True)
class _Row:
    input_ids: list[int]
    labels: list[int]
    prompt_length: int
    spans: list[int] | None = None


class ReftCollator:
    """Pads features with `input_ids` and `labels` or `prompt_length` (or both); other columns are ignored.

    The batch: `input_ids`, `attention_mask`, `labels` [B, T] and `prompt_length` [B], the number of prompt tokens of
    each row, its padding not counted.  If the features have `subspaces`, the parts of the rank that a row trains, the
    batch has them as a list of lists.  If they have `spans`, 0 or 1 for each token, the batch has them [B, T].

    With `packing` all features become one row without padding: `input_ids`, `labels` and `position_ids` [1, ΣT], which
    begin anew at each example, and `prompt_length` [B].  There is no mask: a model that is given restarting positions
    lets no example look at another.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        padding_side: str = "right",
        pad_to_multiple_of: int | None = None,
        packing: bool = False,
    ) -> None:
        if padding_side not in ("left", "right"):
            raise DataError(f"padding_side={padding_side!r}; valid: 'left', 'right'")
        if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
            raise DataError(f"pad_to_multiple_of={pad_to_multiple_of}; valid: None or a number from 1")
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        if not isinstance(pad, int):
            raise DataError("the tokenizer has neither a pad nor an eos token: set tokenizer.pad_token")
        if packing and pad_to_multiple_of is not None:
            raise DataError("packing=True has no padding; leave pad_to_multiple_of out")
        self.packing = packing
        self.padding_side = padding_side
        self.pad_to_multiple_of = pad_to_multiple_of
        self._pad = pad

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rows: list[_Row] = []
        for index, feature in enumerate(features):
            try:
                rows.append(_row(feature))
            except DataError as error:
                raise DataError(f"feature {index} of the batch: {error}") from error
        if self.packing:
            return _packed(rows, features)
        length = max(len(row.input_ids) for row in rows)
        step = self.pad_to_multiple_of or 1
        length = -(-length // step) * step
        batch: dict[str, Any] = {
            "input_ids": self._padded([row.input_ids for row in rows], length, self._pad),
            "attention_mask": self._padded([[1] * len(row.input_ids) for row in rows], length, 0),
            "labels": self._padded([row.labels for row in rows], length, IGNORE),
            "prompt_length": torch.tensor([row.prompt_length for row in rows], dtype=torch.long),
        }
        if _have_spans(rows):
            batch["spans"] = self._padded([row.spans or [] for row in rows], length, 0)
        chosen = [feature.get("subspaces") for feature in features]
        if all(choice is not None for choice in chosen):
            batch["subspaces"] = [_ints(choice) for choice in chosen]
        elif any(choice is not None for choice in chosen):
            raise DataError("some rows of the batch have 'subspaces' and some have not; give all of them some")
        return batch

    def _padded(self, rows: list[list[int]], length: int, filler: int) -> Tensor:
        padded: list[list[int]] = []
        for row in rows:
            padding = [filler] * (length - len(row))
            padded.append(padding + row if self.padding_side == "left" else row + padding)
        return torch.tensor(padded, dtype=torch.long)


def _packed(rows: Sequence[_Row], features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if any(feature.get("subspaces") is not None for feature in features):
        raise DataError("packed rows cannot choose 'subspaces', which are chosen by row; leave packing=True out")
    flat: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
    for row in rows:
        flat["input_ids"] += row.input_ids
        # nothing before it predicts the first token of an example
        flat["labels"] += [IGNORE, *row.labels[1:]]
        flat["position_ids"] += range(len(row.input_ids))
    if _have_spans(rows):
        flat["spans"] = [mark for row in rows for mark in row.spans or []]
    batch: dict[str, Any] = {name: torch.tensor([values], dtype=torch.long) for name, values in flat.items()}
    batch["prompt_length"] = torch.tensor([row.prompt_length for row in rows], dtype=torch.long)
    return batch


def _row(feature: Mapping[str, Any]) -> _Row:
    if "input_ids" not in feature:
        raise DataError(f"no 'input_ids'; columns found: {', '.join(sorted(feature)) or 'none'}")
    input_ids = _ints(feature["input_ids"])
    if 0 in _ints(feature.get("attention_mask", [])):
        raise DataError("is padded already ('attention_mask' has zeros): give rows without padding")
    given = None if feature.get("prompt_length") is None else int(feature["prompt_length"])
    if feature.get("labels") is not None:
        labels = _ints(feature["labels"])
    elif given is not None:
        labels = [IGNORE] * given + input_ids[given:]
    else:
        raise DataError("neither 'prompt_length' nor 'labels' tells where the prompt ends")
    if len(labels) != len(input_ids):
        raise DataError(f"{len(labels)} labels for {len(input_ids)} input_ids")
    prompt_length = _leading_ignored(labels) if given is None else given
    if all(label == IGNORE for label in labels):
        raise DataError(f"no response to learn: all {len(labels)} labels are {IGNORE}")
    if not 1 <= prompt_length <= len(input_ids):
        problem = f"its labels do not begin with {IGNORE}" if given is None else f"prompt_length={prompt_length}"
        raise DataError(f"no prompt: {problem}; it needs 1 to {len(input_ids)} prompt tokens")
    spans = None if feature.get("spans") is None else _ints(feature["spans"])
    if spans is not None and (len(spans) != len(input_ids) or not set(spans) <= {0, 1}):
        raise DataError(f"'spans' must be {len(input_ids)} numbers 0 or 1, one for each of the input_ids")
    return _Row(input_ids, labels, prompt_length, spans)


def _have_spans(rows: Sequence[_Row]) -> bool:
    """Whether the rows say which of their tokens are marked."""
    having = [row.spans is not None for row in rows]
    if any(having) and not all(having):
        raise DataError("some rows of the batch have 'spans' and some have not; give all of them some, if only zeros")
    return all(having)


def _leading_ignored(labels: list[int]) -> int:
    return next((index for index, label in enumerate(labels) if label != IGNORE), len(labels))


def _ints(values: Any) -> list[int]:
    """A list out of a list, a tensor or an array."""
    return values.tolist() if hasattr(values, "tolist") else list(values)
