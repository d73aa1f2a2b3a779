"""What other programs' trainers tell the model card.

Must not know: those programs.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from ..card import tell

__all__ = ["CardCallback", "keep_card"]


class CardCallback(TrainerCallback):
    """When training ends, the adapters' next card gets its settings and losses."""

    def __init__(self, rows: Any = None, data: str | None = None) -> None:
        self.rows, self.data = rows, data

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        tell(kwargs["model"], args, state, rows=self.rows, data=self.data)


def keep_card(trainer: Any) -> None:
    """Have the trainer write no card of its own over reftune's, which says how the adapter is loaded."""
    trainer.create_model_card = lambda *_, **__: None
