"""What jobs do, for Prometheus: read from the store when it is asked for, so that every process says the same.

Must not know: HTTP, how jobs are run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from prometheus_client.core import GaugeMetricFamily

from .schemas import Status
from .store import Store
from .supervisor import name_of

__all__ = ["JobsCollector"]

OF_JOB = {
    "step": "Steps done.",
    "total_steps": "Steps in all.",
    "train_loss": "Loss of the last step.",
    "valid_loss": "Loss on the validation file.",
    "tokens": "Tokens trained; each epoch counts.",
    "elapsed": "Seconds of training.",
}


class JobsCollector:
    """A collector for a registry of prometheus_client."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def collect(self) -> Iterator[Any]:
        counts = self.store.counts()
        family = GaugeMetricFamily("reftune_fine_tuning_jobs", "Jobs by status.", labels=["status"])
        for status in get_args(Status):
            family.add_metric([status], counts.get(status, 0))
        yield family
        running = self.store.of_status("running")
        for name, text in OF_JOB.items():
            family = GaugeMetricFamily(
                f"reftune_fine_tuning_{name}", f"{text} Of jobs that run.", labels=["job", "model"]
            )
            for job in running:
                if job.progress.get(name) is not None:
                    family.add_metric([job.id, name_of(job)], job.progress[name])
            yield family
