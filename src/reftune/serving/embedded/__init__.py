"""The OpenAI API on transformers alone, for machines without vLLM: many ReFT adapters in each batch.

`settings` (what can be chosen), `text` (tokens to text, stop strings), `sampling` (a token for each row), `rows` (one
answer in the making), `sites` (adapters compared with the model and made ready), `bank` (put on it and taken away),
`engine` (queue, batches, the thread that runs them), `schemas`, `replies`, `api`, `gate` (limits, key), `metrics`,
`server`.  FastAPI, uvicorn and prometheus-client are in the extra `serve`; this module imports none of them.

Must not know: training, the command line, vLLM.
"""

from __future__ import annotations

import importlib.util

from ...errors import MissingExtraError
from .settings import ServeSettings

__all__ = ["ServeSettings", "serve_embedded"]


def serve_embedded(settings: ServeSettings) -> None:
    """Load the model and its adapters, answer requests until SIGTERM or SIGINT, finish what runs, and return.

    Raises:
        MissingExtraError: FastAPI, uvicorn or prometheus-client are not installed.
        ReftuneError: the model or an adapter cannot be loaded.
    """
    for module, package in (("fastapi", "fastapi"), ("uvicorn", "uvicorn"), ("prometheus_client", "prometheus-client")):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(package, extra="serve")
    from .server import run  # noqa: PLC0415 — only now is it known that the extra is there

    run(settings)
