"""`reftune search`: which layers, positions, rank and learning rate fit a task, found on training rows alone.

`settings` (what is asked for), `budget`, `space` (what is tried, and what is tried first), `rows` (what is trained on,
what chooses), `bench` (one frozen base on which trials are trained and scored), `study` (Optuna's file, and who works
on it), `search` (trials until the budget is spent, then the best again with several seeds), `summary` and `report`
(what is told), `picks` (one of them as a run of `reftune train`).  Optuna is in the extra `search`.

Must not know: the command line.
"""
