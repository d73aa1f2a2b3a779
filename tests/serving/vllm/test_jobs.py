"""Fine-tuning by the official client on vLLM's server: the adapter is served by every API process, and once more later.

Must not know: how jobs are kept.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import httpx
from openai import BadRequestError, OpenAI

from tests.serving.vllm.servers import BASE, served, text_world

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

ROWS = [
    {"messages": [{"role": "user", "content": f"w1 w2 {word}"}, {"role": "assistant", "content": "w3"}]}
    for word in ("w4", "w5", "w6", "w7")
]
PATIENCE = 300.0


def test_what_is_trained_is_served_by_all_processes_and_after_a_restart(tmp_path: Path) -> None:
    world = text_world(tmp_path / "world")
    flags = ("--fine-tuning", str(tmp_path / "tuning"), "--fine-tuning-device", "cpu", "--api-server-count", "2")
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    asked: Any = {"messages": [{"role": "user", "content": "w1 w2 w9"}], "max_tokens": 6, "temperature": 0}
    with served(world, world.names[:1], tmp_path / "log", *flags) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        file = client.files.create(file=("rows.jsonl", text.encode()), purpose="fine-tune")
        with pytest.raises(BadRequestError, match="act_fn"):
            client.fine_tuning.jobs.create(
                model=BASE, training_file=file.id, extra_body={"reft": {"intervention": "direft", "act_fn": "relu"}}
            )
        with pytest.raises(BadRequestError, match="--reft-max-rank 32"):
            client.fine_tuning.jobs.create(
                model=BASE, training_file=file.id, extra_body={"reft": {"r": 32, "positions": "l1"}}
            )
        method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 10}}}
        job = client.fine_tuning.jobs.create(model=BASE, training_file=file.id, method=method, seed=1)
        until = time.monotonic() + PATIENCE
        while (found := client.fine_tuning.jobs.retrieve(job.id)).status not in ("succeeded", "failed"):
            assert time.monotonic() < until, found
            time.sleep(0.2)
        assert found.status == "succeeded", found.error
        name = found.fine_tuned_model
        assert name is not None
        # connections of their own, which either process may take
        answers = {answer(url, name, asked) for _ in range(8)}
        assert len(answers) == 1
        adapters = httpx.get(f"{url}/v1/reft/adapters").json()["data"]
        assert [(a["id"], a["loaded"], a["rows"]) for a in adapters] == [(name, True, 4), (world.names[0], True, None)]
    with served(world, world.names[:1], tmp_path / "log2", *flags) as url:
        assert {answer(url, name, asked) for _ in range(4)} == answers
        assert httpx.post(f"{url}/v1/reft/adapters/{name}/unload").json()["loaded"] is False
        assert httpx.get(f"{url}/v1/models").text.count(name) == 0
        assert httpx.delete(f"{url}/v1/reft/adapters/{name}").json()["deleted"] is True
    assert not list((tmp_path / "tuning" / "adapters").iterdir())


def answer(url: str, name: str, asked: Any) -> str:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        return str(client.chat.completions.create(model=name, **asked).choices[0].message.content)
