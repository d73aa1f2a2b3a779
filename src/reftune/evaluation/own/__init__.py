"""Tasks of people's own: files of records, as training takes them, in place of a benchmark set.

`entry` (what was asked for), `rows` (files → rows to train on and to score, and what is odd about them), `readings`
(how an output is read and scored), `guess` (which of these fits the answers), `labels` (what is told of each label),
`task` (all of it as a `Task`).

Must not know: models, training, the command line.
"""

from .entry import OwnEntry
from .readings import FORMS
from .task import own_task, task_of, tasks_of

__all__ = ["FORMS", "OwnEntry", "own_task", "task_of", "tasks_of"]
