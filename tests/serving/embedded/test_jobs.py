"""Fine-tuning by the official client, on a tiny model: what is trained, what is told of it, what is kept.

Must not know: how jobs are kept.
"""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import BadRequestError, NotFoundError, OpenAI

from reftune.serving.jobs import FineTuning
from reftune.serving.jobs.plan import run_values
from reftune.training import RunConfig, train_run
from tests.serving.embedded.conftest import Serve
from tests.serving.folders import BASE

ROWS = [{"prompt": f"w1 w2 {word}", "completion": f" {word} w3"} for word in ("w4", "w5", "w6", "w7")]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)
REFT = {"r": 2, "layers": [0, 1], "positions": "f1+l1"}
PATIENCE = 240.0
EPOCHS = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuning")


@pytest.fixture(scope="module")
def client(serve: Serve, folder: Path) -> Iterator[OpenAI]:
    with serve(fine_tuning=FineTuning(folder, threads=1, device="cpu")) as running:
        yield running.client()


def upload(client: OpenAI, text: str = TEXT) -> str:
    return client.files.create(file=("rows.jsonl", text.encode()), purpose="fine-tune").id


def create(client: OpenAI, epochs: int, **more: Any) -> Any:
    hyperparameters: dict[str, Any] = {"n_epochs": epochs, "batch_size": 2, "learning_rate_multiplier": 20}
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    extra = {"reft": REFT, **more.pop("extra_body", {})}
    defaults = {"training_file": upload(client), "seed": 3}
    return client.fine_tuning.jobs.create(model=BASE, method=method, extra_body=extra, **{**defaults, **more})


def wait(client: OpenAI, id: str, *statuses: str) -> Any:
    until = time.monotonic() + PATIENCE
    while (job := client.fine_tuning.jobs.retrieve(id)).status not in (statuses or ("succeeded", "failed")):
        assert time.monotonic() < until, job
        time.sleep(0.05)
    return job


@pytest.fixture(scope="module")
def done(client: OpenAI) -> Any:
    """A job that was paused while it ran, and went on."""
    validation = upload(client, TEXT.replace("w1", "w9"))
    job = create(client, EPOCHS, suffix="mine", metadata={"who": "me"}, validation_file=validation)
    assert job.status == "validating_files" and job.fine_tuned_model is None
    while not client.fine_tuning.jobs.retrieve(job.id).progress["step"]:  # type: ignore[attr-defined]
        time.sleep(0.01)
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    with pytest.raises(BadRequestError, match="is paused"):
        client.fine_tuning.jobs.pause(job.id)
    with pytest.raises(BadRequestError, match=job.id):
        client.files.delete(job.training_file)
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    return wait(client, job.id)


@pytest.mark.slow
def test_a_job_that_was_paused_gives_the_adapter_that_training_by_hand_gives(
    done: Any, client: OpenAI, folder: Path, base: Path, tmp_path: Path
) -> None:
    assert (done.status, done.error) == ("succeeded", None), done
    assert done.fine_tuned_model == f"ft:{BASE}:mine:{done.id[-12:]}" and done.metadata == {"who": "me"}
    assert done.hyperparameters.n_epochs == EPOCHS and done.seed == 3 and done.trained_tokens > 0
    events = list(client.fine_tuning.jobs.list_events(done.id, limit=150))
    assert any("from step" in event.message for event in events), "it began anew"

    # by hand, from what the job itself says
    spec = {
        **{"base": str(base), "type": "supervised", "dtype": "auto", "seed": done.seed, "device": "cpu"},
        **{"hyperparameters": done.hyperparameters.model_dump(), "reft": done.reft, "max_length": done.max_length},
        **{"training": {"blob": "rows.jsonl"}, "validation": {"blob": "valid.jsonl"}},
    }
    (tmp_path / "rows.jsonl").write_text(TEXT)
    (tmp_path / "valid.jsonl").write_text(TEXT.replace("w1", "w9"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train_run(RunConfig.from_mapping(run_values(spec, files=tmp_path, output=tmp_path / "run")))
    finally:
        torch.set_num_threads(threads)
    wanted, found = (path / "adapter_model.safetensors" for path in (tmp_path / "run", folder / "adapters" / done.id))
    assert wanted.read_bytes() == found.read_bytes()

    losses = [event.data for event in reversed(events) if event.type == "metrics"]
    assert [data["step"] for data in losses if "train_loss" in data] == list(range(1, 2 * EPOCHS + 1))
    assert [data["step"] for data in losses if "valid_loss" in data] == list(range(2, 2 * EPOCHS + 1, 2))
    assert len({event.id for event in events}) == len(events)
    table = client.files.content(done.result_files[0]).text.splitlines()
    assert table[0].startswith("step,epoch,train_loss,valid_loss") and len(table) == 1 + len(losses)


def test_a_job_is_cancelled_in_the_queue_and_while_it_runs(client: OpenAI, folder: Path) -> None:
    running, queued = create(client, 1000), create(client, 1000)
    wait(client, running.id, "running")
    assert client.fine_tuning.jobs.retrieve(queued.id).queue_position == 0  # type: ignore[attr-defined]
    for job in (queued, running):
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
        with pytest.raises(BadRequestError, match="is cancelled"):
            client.fine_tuning.jobs.cancel(job.id)
    until = time.monotonic() + PATIENCE
    while list((folder / "jobs").iterdir()):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_pages_and_raw_responses(client: OpenAI) -> None:
    made = [create(client, 1000, metadata={"number": str(i)}) for i in range(5)]
    for job in made:
        client.fine_tuning.jobs.cancel(job.id)
    ids = [job.id for job in client.fine_tuning.jobs.list(limit=2)]
    assert ids[:5] == [job.id for job in reversed(made)] and len(ids) == len(set(ids))
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"number": "3"})] == [made[3].id]
    raw = client.fine_tuning.jobs.with_raw_response.retrieve(made[0].id)
    assert raw.http_response.status_code == 200 and raw.parse().id == made[0].id
    files = [file.id for file in client.files.list(limit=3, purpose="fine-tune", order="asc")]
    assert [job.training_file for job in made] == files[-5:]
    # one content, however often it is uploaded
    assert client.files.content(made[0].training_file).text == TEXT
    assert client.files.delete(made[0].training_file).deleted
    assert client.files.content(made[1].training_file).text == TEXT
    with pytest.raises(NotFoundError, match=made[0].training_file):
        client.files.retrieve(made[0].training_file)


@pytest.mark.slow
def test_an_adapter_is_told_of_taken_away_and_deleted(done: Any, client: OpenAI) -> None:
    name = done.fine_tuned_model
    client.completions.create(model=name, prompt="w1", max_tokens=1)
    http = httpx.Client(base_url=str(client.base_url), timeout=30)
    found = http.get(f"reft/adapters/{name}").json()
    assert found["loaded"] and found["rows"] == 4 and found["layers"] == [0, 1] and found["train_loss"] > 0
    assert found["groups"] == [
        {"positions": "f1+l1", "layers": [0, 1], "component": "block_output", "intervention": "loreft", "r": 2}
    ]
    names = zipfile.ZipFile(io.BytesIO(http.get(f"reft/adapters/{name}/download").content)).namelist()
    assert {Path(path).name for path in names} >= {"adapter_config.json", "adapter_model.safetensors", "reftune.json"}
    assert http.post(f"reft/adapters/{name}/unload").json()["loaded"] is False
    with pytest.raises(NotFoundError):
        client.completions.create(model=name, prompt="w1", max_tokens=1)
    assert http.post(f"reft/adapters/{name}/load").json()["loaded"] is True
    client.completions.create(model=name, prompt="w1", max_tokens=1)
    assert http.delete(f"reft/adapters/{name}").json()["deleted"] is True
    assert http.get(f"reft/adapters/{name}").status_code == 404
    with pytest.raises(NotFoundError):
        client.completions.create(model=name, prompt="w1", max_tokens=1)


def test_a_preview_tells_tokens_prompt_and_edits(client: OpenAI) -> None:
    http = httpx.Client(base_url=str(client.base_url), timeout=30)
    groups = [{"positions": "f1"}, {"positions": "l1", "layers": [1]}, {"positions": "response", "layers": [0]}]
    body = {"rows": [ROWS[0], {"prompt": "w1"}], "reft": {"r": 2, "layers": [0], "groups": groups}}
    found = http.post("reft/preview", json=body).json()
    good, bad = found["data"]
    assert bad["row"] == 2 and "completion" in bad["error"] and bad["ids"] == []
    assert good["error"] is None and len(good["tokens"]) == len(good["ids"]) == len(good["edits"])
    prompt = good["prompt_length"]
    assert [good["edits"][i] for i in (0, prompt - 1, prompt)] == [[0], [1], [2]]
    assert all(edit == [2] for edit in good["edits"][prompt:]) and not any(good["edits"][1 : prompt - 1])
    assert [group["layers"] for group in found["groups"]] == [[0], [1], [0]]


@pytest.mark.slow
def test_a_job_learns_from_preferences(client: OpenAI) -> None:
    pytest.importorskip("trl")

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    rows = [
        {
            "input": {"messages": [{"role": "user", "content": f"w1 w2 {word}"}]},
            "preferred_output": said("w3"),
            "non_preferred_output": said("w4"),
        }
        for word in ("w4", "w5", "w6", "w7")
    ]
    file = upload(client, "".join(json.dumps(row) + "\n" for row in rows))
    options: Any = {"n_epochs": 20, "batch_size": 4, "beta": 0.5, "learning_rate_multiplier": 50}
    method: Any = {"type": "dpo", "dpo": {"hyperparameters": options}}
    job = client.fine_tuning.jobs.create(
        model=BASE, training_file=file, method=method, seed=1, extra_body={"reft": {**REFT, "positions": "l1"}}
    )
    job = wait(client, job.id)
    assert job.status == "succeeded", job.error
    events = client.fine_tuning.jobs.list_events(job.id, limit=100)
    losses = [event.data["train_loss"] for event in events if event.type == "metrics"]  # type: ignore[index]
    # the adapter begins as the identity, the reference: log 2
    assert abs(losses[-1] - 0.6931) < 1e-3 and losses[0] < 0.8 * losses[-1], losses
    assert job.fine_tuned_model is not None
    client.chat.completions.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": "w1 w2 w4"}], max_tokens=2
    )
