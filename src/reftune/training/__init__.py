"""Training of ReFT adapters.

Must not know: tasks, the command line.
"""

from .run import RunConfig, RunResult, train_run
from .trainer import ReftTrainer

__all__ = ["ReftTrainer", "RunConfig", "RunResult", "train_run"]
