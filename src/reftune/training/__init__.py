"""Training of ReFT adapters.

Must not know: tasks, the command line.
"""

from .gates import Gates
from .groups import parameter_groups
from .many import ManyResult, train_many
from .processes import end_processes
from .run import RunConfig, RunResult, train_run
from .shared import SharedPrefix
from .trainer import ReftTrainer

__all__ = [
    "Gates",
    "ManyResult",
    "ReftTrainer",
    "RunConfig",
    "RunResult",
    "SharedPrefix",
    "end_processes",
    "parameter_groups",
    "train_many",
    "train_run",
]
