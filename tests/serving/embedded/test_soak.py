"""The server on transformers under mixed load: twenty seconds of it, or `REFTUNE_SOAK_SECONDS`.

REFTUNE_SOAK_SECONDS=600 python -m pytest -s tests/serving/embedded/test_soak.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.serving.mixed import Reader, soak
from tests.serving.vllm.servers import loading_from, served, text_world
from tests.training.text_models import word_tokenizer

SECONDS = float(os.environ.get("REFTUNE_SOAK_SECONDS", "20"))
WARM = max(10.0, SECONDS / 10)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts by /proc")
def test_mixed_load(tmp_path: Path) -> None:
    world = text_world(tmp_path / "world")
    tokenizer = word_tokenizer()
    reader = Reader(
        {"logprobs": 0},
        lambda choice: (choice.get("logprobs") or {}).get("tokens") or [],
        lambda ids: [tokenizer.decode([token]) for token in ids],
    )
    log = tmp_path / "log"
    with served(world, world.names[:12], log, *loading_from(world.folder), backend="transformers") as url:
        wrong, before, after = soak(world, url, reader, seconds=SECONDS, warm=WARM)
    assert wrong == []
    # asyncio's pool for reading grows up to its limit
    assert after.threads - before.threads <= (os.cpu_count() or 1) + 4
    assert after.sockets <= before.sockets
    # what the allocator keeps; a leak of one kB a request is more, in ten minutes
    assert after.megabytes - before.megabytes < 0.05 * before.megabytes
    assert "Traceback" not in log.read_text()
