"""Training of ReFT adapters.

Must not know: tasks, the command line.
"""

from .groups import parameter_groups
from .processes import end_processes
from .run import RunConfig, RunResult, train_run
from .trainer import ReftTrainer

__all__ = ["ReftTrainer", "RunConfig", "RunResult", "end_processes", "parameter_groups", "train_run"]
