"""Checkpoints of a trainer of transformers, ours or TRL's, that are whole or none (see `checkpoints`).

Must not know: what is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.trainer import TRAINING_ARGS_NAME, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .checkpoints import rotate, saving, seal

__all__ = ["WholeCheckpoints"]


if TYPE_CHECKING:
    Base = Trainer
else:
    # whichever trainer's class is named behind
    Base = object


class WholeCheckpoints(Base):
    """To be named before a trainer's class."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run, step, limit = Path(self._get_output_dir(trial=trial)), self.state.global_step, self.args.save_total_limit
        checkpoint = run / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        with saving(checkpoint):
            # else Trainer would remove older ones before this one is known to be whole
            self.args.save_total_limit = None
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = limit
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                if (checkpoint / TRAINING_ARGS_NAME).exists():
                    # with the limit
                    torch.save(self.args, checkpoint / TRAINING_ARGS_NAME)
                self._save_more(checkpoint)
                if not self.args.save_only_model:
                    seal(checkpoint)
        if self.args.should_save:
            rotate(run, step, limit=limit, best=self.state.best_model_checkpoint)

    def _save_more(self, checkpoint: Path) -> None:
        """What else belongs into a checkpoint."""
