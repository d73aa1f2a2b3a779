"""Shared set-up of all tests: no network, one thread a worker, seeded, hypothesis profiles, device marks.

Must not know: models and adapters (see `models.py`).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from typing import Any

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


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# nothing but the page is to be reached
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]


# The device of the tests marked gpu; cpu runs them without one, to see that they run.
GPU_TESTS = os.environ.get("REFTUNE_GPU_TESTS", "cuda")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without a network of its own."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _our_logger_stays() -> Iterator[None]:
    """A test, or a command that it calls, that leaves our logger quiet makes others fail that look for its lines."""
    logger = logging.getLogger("reftune")
    before = (logger.level, logger.disabled, logger.propagate)
    yield
    after = (logger.level, logger.disabled, logger.propagate)
    logger.level, logger.disabled, logger.propagate = before
    assert after == before, f"our logger is left with level, disabled, propagate = {after}, it had {before}"


def in_turn(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With PART=k/n leave out all but the k-th of n parts of what is slow, and of the files of tests with vLLM.

    What is left out is another part's, so that all of it runs in n runs.
    """
    if not os.environ.get("PART"):
        return
    part, parts = map(int, os.environ["PART"].split("/"))
    others = [
        item
        for item in items
        if (name := item.nodeid.split("::")[0] if item.get_closest_marker("vllm") else item.nodeid)
        and (item.get_closest_marker("slow") or item.get_closest_marker("vllm"))
        and zlib.crc32(name.encode()) % parts != part % parts
    ]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in set(others)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A bare `pytest` skips what this machine cannot run; `make test` does not even select it."""
    in_turn(config, items)
    missing = {
        "gpu": None if GPU_TESTS == "cpu" or torch.cuda.is_available() else "needs a CUDA device",
        "vllm": None if importlib.util.find_spec("vllm") else "needs vLLM",
    }
    for item in items:
        for mark, reason in missing.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))
