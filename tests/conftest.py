"""Shared set-up of all tests: no network, one thread a worker, seeded, hypothesis profiles, device marks.

Must not know: models and adapters (see `models.py`).
"""

from __future__ import annotations

import importlib.util
import os

# Before torch and transformers are imported: both read their environment once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from hypothesis import HealthCheck, settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that each take all cores slow each other down.
    torch.set_num_threads(1)

# No deadline: the first call of a torch function is slow, and machines are shared.
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A bare `pytest` skips what this machine cannot run; `make test` does not even select it."""
    missing = {
        "gpu": None if torch.cuda.is_available() else "needs a CUDA device",
        "vllm": None if importlib.util.find_spec("vllm") else "needs vLLM",
    }
    for item in items:
        for mark, reason in missing.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))
