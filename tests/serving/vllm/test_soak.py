"""vLLM under mixed load for ten minutes.

`REFTUNE_SOAK_SECONDS` makes it shorter or longer.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.serving.mixed import Reader, soak
from tests.serving.vllm.engines import prepare
from tests.serving.vllm.servers import loading_from, served, text_world

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SECONDS = float(os.environ.get("REFTUNE_SOAK_SECONDS", "600"))


def test_mixed_load(tmp_path: Path) -> None:
    prepare()
    world = text_world(tmp_path / "world")
    reader = Reader({"return_token_ids": True}, lambda choice: choice.get("token_ids") or [])
    more = (*loading_from(world.folder), "--max-num-batched-tokens", "32")
    with served(world, world.names[:12], tmp_path / "log", *more) as url:
        wrong, before, after = soak(world, url, reader, seconds=SECONDS, warm=max(20.0, SECONDS / 10))
    assert wrong == []
    assert after.sockets <= before.sockets
    # the tables of plans and of what was read, for each of some hundred loads, and the allocator's slack
    assert after.megabytes - before.megabytes < 0.03 * before.megabytes
    assert "Traceback" not in (tmp_path / "log").read_text()
