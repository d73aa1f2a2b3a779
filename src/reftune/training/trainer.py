"""`ReftTrainer`: transformers' Trainer, told of `prompt_length`.

Must not know: tasks, the command line.
"""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from ..data import ReftCollator
from ..errors import DataError

__all__ = ["ReftTrainer"]

COLUMNS = ("prompt_length", "subspaces")


class ReftTrainer(Trainer):
    """`transformers.Trainer` for a PEFT model with a ReFT adapter.

    Differences: the column `prompt_length` of the data reaches the collator, and the default collator is
    `ReftCollator`, so that the prompt is known even where labels are not passed to the model.

    Raises:
        DataError: no collator is given and no tokenizer to make one from.
    """

    def __init__(
        self,
        model: PeftModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        if data_collator is None:
            tokenizer = getattr(processing_class, "tokenizer", processing_class)
            if not isinstance(tokenizer, PreTrainedTokenizerBase):
                raise DataError(
                    "ReftTrainer needs processing_class=tokenizer, from which it makes a ReftCollator, or a "
                    "data_collator of your own that adds prompt_length"
                )
            data_collator = ReftCollator(tokenizer)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )

    def _set_signature_columns_if_needed(self) -> None:
        # Trainer drops what forward() does not name; these two are taken off by the model's hooks
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns or []
        self._signature_columns = [*columns, *(name for name in COLUMNS if name not in columns)]
