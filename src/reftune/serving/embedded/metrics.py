"""What happens, counted for Prometheus, in a registry of the server's own.

Must not know: models, adapters' contents.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .engine import Watcher
from .rows import Row

__all__ = ["Metrics"]

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
PATHS = frozenset(
    {
        "/health",
        "/metrics",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/load_reft_adapter",
        "/tokenize",
        "/v1/models",
        "/v1/reft_adapters",
        "/v1/unload_reft_adapter",
        "/v1/files",
        "/v1/fine_tuning/jobs",
        "/v1/reft/adapters",
        "/v1/reft/preview",
    }
)


class Metrics(Watcher):
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        labels = ("path", "status")
        self._requests = Counter("reftune_requests", "Requests answered.", labels, registry=registry)
        self._seconds = Histogram(
            "reftune_request_seconds", "From request to end of answer.", ("path",), buckets=SECONDS, registry=registry
        )
        self._first = Histogram(
            "reftune_first_piece_seconds", "From request to first text.", buckets=SECONDS, registry=registry
        )
        self._batches = Histogram("reftune_batch_rows", "Rows of a batch.", buckets=ROWS, registry=registry)
        self._prompt_tokens = Counter("reftune_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._made_tokens = Counter("reftune_generated_tokens", "Tokens of answers.", registry=registry)
        self._answers = Counter("reftune_answers", "Answers by how they ended.", ("finish",), registry=registry)

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value that is read when it is asked for."""
        Gauge(f"reftune_{name}", text, registry=self.registry).set_function(read)

    def request(self, path: str, status: int, seconds: float) -> None:
        # paths are what clients send: no more series than there are routes
        known = path if path in PATHS else "other"
        self._requests.labels(known, str(status)).inc()
        self._seconds.labels(known).observe(seconds)

    def first_piece(self, seconds: float) -> None:
        self._first.observe(seconds)

    def batch(self, rows: int) -> None:
        self._batches.observe(rows)

    def row_done(self, row: Row) -> None:
        self._answers.labels(str(row.finish)).inc()
        self._prompt_tokens.inc(len(row.request.prompt))
        self._made_tokens.inc(len(row.tokens))

    def page(self) -> tuple[bytes, str]:
        """The text that Prometheus reads, and its type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
