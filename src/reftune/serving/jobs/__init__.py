"""Fine-tuning by API: files are uploaded, jobs train adapters of the model that is served, which then has them.

`settings` (what can be chosen, the flags), `schemas` (OpenAI's objects, and ours), `store` (SQLite), `blobs` (the
folder), `rows` (what of a file can be trained on), `plan` (what a job does, in numbers), `work` and `dpo` (the process
of a job), `supervisor` (which begins and ends them), `preview`, `service` and `shelf` (what the routes do), `routes`,
`metrics`.  One piece of code for both servers, which tell it of themselves by a `Host`.

Must not know: the backends, the command line; only the process of a job knows training.
"""

from __future__ import annotations

from .settings import FineTuning, add_flags, fine_tuning_of

__all__ = ["FineTuning", "add_flags", "fine_tuning_of"]
