"""SST-2 (Socher et al. 2013; GLUE, Wang et al. 2018): whether a piece of a film review is positive."""

from __future__ import annotations

from .sentences import sentence_task, sources

__all__ = ["SST2"]

SST2 = sentence_task(
    "sst2",
    "SST-2",
    sources=sources("SST-2", "sst2"),
    template="Review: {a}\nIs this review positive or negative?\nAnswer:",
    names=("negative", "positive"),
    words=("negative", "positive"),
    chance=1 / 2,
)
