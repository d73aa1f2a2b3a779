"""What is wrong with requests and files for fine-tuning is told: one error each, by its place, and nothing is left.

Must not know: how jobs are run; none is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from reftune.serving.jobs import FineTuning
from tests.serving.embedded.conftest import Running, Serve
from tests.serving.folders import BASE, CONTEXT

GOOD = '{"prompt": "one two", "completion": "three"}\n'
PAIR = {"input": {"messages": [{"role": "user", "content": "one"}]}}
ANSWERS = {
    "preferred_output": [{"role": "assistant", "content": "two"}],
    "non_preferred_output": [{"role": "assistant", "content": "three"}],
}
MOST_ROWS, MOST_BYTES = 50, 20_000


@pytest.fixture(scope="module")
def tuning(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("tuning")
    settings = FineTuning(folder, max_rows=MOST_ROWS, max_file_bytes=MOST_BYTES)
    with serve(fine_tuning=settings) as running:
        yield running


@pytest.fixture(scope="module")
def http(tuning: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tuning.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def good(http: httpx.Client) -> str:
    return upload(http, GOOD * 4)


def upload(http: httpx.Client, content: str | bytes, name: str = "rows.jsonl") -> str:
    reply = http.post("/v1/files", files={"file": (name, content)}, data={"purpose": "fine-tune"})
    assert reply.status_code == 200, reply.text
    return reply.json()["id"]


def hyper(**values: Any) -> dict[str, Any]:
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": values}}}


# (what is put into a body that is right; the parameter that is told; a word of the message)
BODIES: list[tuple[dict[str, Any], str | None, str]] = [
    ({"model": None}, "model", "string"),
    ({"model": ""}, "model", "character"),
    ({"model": 5}, "model", "string"),
    ({"model": "gpt-4"}, "model", "gpt-4"),
    ({"model": "x" * 300}, "model", "256"),
    ({"training_file": None}, "training_file", "string"),
    ({"training_file": 1}, "training_file", "string"),
    ({"training_file": ["a"]}, "training_file", "string"),
    ({"training_file": "file-none"}, "training_file", "file-none"),
    ({"training_file": "../../etc/passwd"}, "training_file", "no file"),
    ({"training_file": "file-\x00"}, "training_file", "no file"),
    ({"validation_file": "file-none"}, "validation_file", "file-none"),
    ({"validation_file": 3.5}, "validation_file", "string"),
    ({"suffix": "a b"}, "suffix", "pattern"),
    ({"suffix": "../up"}, "suffix", "pattern"),
    ({"suffix": "a/b"}, "suffix", "pattern"),
    ({"suffix": "a:b"}, "suffix", "pattern"),
    ({"suffix": ".hidden"}, "suffix", "pattern"),
    ({"suffix": "line\n"}, "suffix", "pattern"),
    ({"suffix": ""}, "suffix", "pattern"),
    ({"suffix": "é"}, "suffix", "pattern"),
    ({"suffix": "x" * 65}, "suffix", "64"),
    ({"suffix": 7}, "suffix", "string"),
    ({"seed": -1}, "seed", "0"),
    ({"seed": 1 << 31}, "seed", "less"),
    ({"seed": 1.5}, "seed", "integer"),
    ({"seed": "1"}, "seed", "integer"),
    ({"seed": True}, "seed", "integer"),
    ({"metadata": {"a": 1}}, "metadata", "string"),
    ({"metadata": [1]}, "metadata", "dict"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "16"),
    ({"metadata": {"k" * 65: ""}}, "metadata", "64"),
    ({"metadata": {"k": "v" * 513}}, "metadata", "512"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, None, "integrations"),
    ({"colour": 1}, "colour", "no such parameter"),
    ({"max_length": 1}, "max_length", "2"),
    ({"max_length": CONTEXT + 1}, "max_length", str(CONTEXT)),
    ({"max_length": "10"}, "max_length", "integer"),
    ({"hyperparameters": {"n_epochs": 1}, **hyper()}, None, "method"),
    ({"hyperparameters": {"epochs": 1}}, "hyperparameters", "no such parameter"),
    ({"method": "supervised"}, "method", "object"),
    ({"method": {}}, "method", "required"),
    ({"method": {"type": "reinforcement"}}, "method", "supervised"),
    ({"method": {"type": "supervised", "dpo": {}}}, "method", "dpo"),
    ({"method": {"type": "dpo", "supervised": {}}}, "method", "supervised"),
    (hyper(n_epochs=0), "method", "1"),
    (hyper(n_epochs=1001), "method", "1000"),
    (hyper(n_epochs="many"), "method", "auto"),
    (hyper(n_epochs=1.5), "method", "integer"),
    (hyper(batch_size=0), "method", "1"),
    (hyper(batch_size=257), "method", "256"),
    (hyper(batch_size=[]), "method", "auto"),
    (hyper(learning_rate_multiplier=0), "method", "0"),
    (hyper(learning_rate_multiplier=-1), "method", "0"),
    (hyper(learning_rate_multiplier=101), "method", "100"),
    (hyper(learning_rate_multiplier="1"), "method", "auto"),
    (hyper(beta=0.1), "method", "dpo"),
    (hyper(warmup=1), "method", "no such parameter"),
    ({"reft": []}, "reft", "dict"),
    ({"reft": {"rank": 4}}, "reft", "rank"),
    ({"reft": {"r": 0}}, "reft", "r=0"),
    ({"reft": {"r": -1}}, "reft", "r=-1"),
    ({"reft": {"r": 33}}, "reft", "32"),
    ({"reft": {"r": 10**9}}, "reft", "1000000000"),
    ({"reft": {"r": "4"}}, "reft", "r='4'"),
    ({"reft": {"layers": [2]}}, "reft", "layer 2"),
    ({"reft": {"layers": [0, 0]}}, "reft", "twice"),
    ({"reft": {"layers": []}}, "reft", "layers"),
    ({"reft": {"layers": "x"}}, "reft", "layers"),
    ({"reft": {"layers": {"a": 1}}}, "reft", "layers"),
    ({"reft": {"positions": "q7"}}, "reft", "q7"),
    ({"reft": {"positions": ""}}, "reft", "positions"),
    ({"reft": {"positions": 7}}, "reft", "positions"),
    ({"reft": {"positions": "f9999"}}, "reft", "positions"),
    ({"reft": {"positions": 'text("nowhere")'}}, "reft", "nowhere"),
    ({"reft": {"intervention": "lora"}}, "reft", "lora"),
    ({"reft": {"intervention": 3}}, "reft", "3"),
    ({"reft": {"tie": "some"}}, "reft", "tie"),
    ({"reft": {"component": "os.system"}}, "reft", "component"),
    ({"reft": {"dropout": 2}}, "reft", "dropout"),
    ({"reft": {"act_fn": "exec"}}, "reft", "act_fn"),
    ({"reft": {"init": "ones"}}, "reft", "init"),
    ({"reft": {"form": "other"}}, "reft", "form"),
    ({"reft": {"target_modules": "(a+)+$"}}, "reft", "target_modules"),
    ({"reft": {"modules_to_save": ["lm_head"]}}, "reft", "modules_to_save"),
    ({"reft": {"base_model_name_or_path": "/etc"}}, "reft", "base_model_name_or_path"),
    ({"reft": {"groups": []}}, "reft", "groups"),
    ({"reft": {"groups": "l1"}}, "reft", "groups"),
    ({"reft": {"groups": [5]}}, "reft", "5"),
    ({"reft": {"groups": [{"rank": 3}]}}, "reft", "rank"),
    ({"reft": {"groups": [{"positions": "l1"}] * 129}}, "reft", "129"),
    ({"reft": {"groups": [{"layers": [5]}]}}, "reft", "layer 5"),
    ({"reft": {"alpha": "a" * 5000}}, "reft", "4096"),
]


@pytest.mark.parametrize("number", range(len(BODIES)))
def test_a_body_that_is_wrong_is_refused_by_its_parameter(http: httpx.Client, good: str, number: int) -> None:
    changed, param, word = BODIES[number]
    body = {"model": BASE, "training_file": good, **changed}
    reply = http.post("/v1/fine_tuning/jobs", content=json.dumps(body), headers={"content-type": "application/json"})
    check(reply, word, param)
    assert http.get("/v1/fine_tuning/jobs").json()["data"] == []


# (content; name; the line; a word of the message)
FILES: list[tuple[str | bytes, str, str, str]] = [
    ("{", "a.jsonl", "line 1", "JSON"),
    (GOOD + "nonsense\n", "a.jsonl", "line 2", "JSON"),
    (GOOD + "\n\n[1]\n", "a.jsonl", "line 4", "object"),
    (GOOD + "5\n", "a.jsonl", "line 2", "object"),
    (GOOD + "null\n", "a.jsonl", "line 2", "object"),
    (GOOD + "{}\n", "a.jsonl", "line 2", "columns"),
    (GOOD + '{"prompt": "a"}\n', "a.jsonl", "line 2", "completion"),
    (GOOD + '{"prompt": "a", "completion": ""}\n', "a.jsonl", "line 2", "empty"),
    (GOOD + '{"prompt": 5, "completion": "b"}\n', "a.jsonl", "line 2", "string"),
    (GOOD + '{"prompt": "a", "prompt": "b", "completion": "c"}\n', "a.jsonl", "line 2", "twice"),
    (GOOD + '{"prompt": "\\ud83d", "completion": "c"}\n', "a.jsonl", "line 2", "surrogate"),
    (GOOD + '{"messages": []}\n', "a.jsonl", "line 2", "empty"),
    (GOOD + '{"messages": "hello"}\n', "a.jsonl", "line 2", "list"),
    (GOOD + '{"messages": [{"role": "user"}]}\n', "a.jsonl", "line 2", "content"),
    (GOOD + '{"messages": [{"content": "a"}]}\n', "a.jsonl", "line 2", "role"),
    (GOOD + '{"messages": [{"role": "assistant", "content": "a"}]}\n', "a.jsonl", "line 2", "before"),
    (GOOD + '{"messages": [{"role": "user", "content": "a"}]}\n', "a.jsonl", "line 2", "assistant"),
    (GOOD + "[" * 100_0 + "\n", "a.jsonl", "line 2", ""),
    (GOOD.encode() + b"\xff\xfe\n", "a.jsonl", "line 2", "UTF-8"),
    (b"PK\x03\x04\x00\xff", "a.jsonl", "line 1", "UTF-8"),
    (" \n", "a.jsonl", "", "no rows"),
    (GOOD * (MOST_ROWS + 1), "a.jsonl", "", str(MOST_ROWS)),
    ("[]", "a.json", "", "no rows"),
    ("[1", "a.json", "line 1", "JSON"),
    ('[{"prompt": "a"}]', "a.json", "row 1", "completion"),
    ("prompt,completion\na\n", "a.csv", "row 1", "fields"),
    ("prompt,prompt\na,b\n", "a.csv", "header", "twice"),
    ("question\na\n", "a.csv", "row 1", "columns"),
]


@pytest.mark.parametrize("number", range(len(FILES)))
def test_a_row_that_is_wrong_fails_the_job_by_file_and_line(http: httpx.Client, good: str, number: int) -> None:
    content, name, line, word = FILES[number]
    id = upload(http, content, name)
    fails(http, {"training_file": id}, "training_file", name, line, word)
    if name != "a.csv":
        fails(http, {"training_file": good, "validation_file": id}, "validation_file", name, line, word)
    assert http.delete(f"/v1/files/{id}").json() == {"id": id, "object": "file", "deleted": True}


PAIRS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "a", "completion": "b"}, "preferred_output"),
    ({**ANSWERS}, "preferred_output"),
    (PAIR, "preferred_output"),
    ({**PAIR, **ANSWERS, "non_preferred_output": None}, "non_preferred_output"),
    ({**PAIR, **ANSWERS, "preferred_output": []}, "preferred_output"),
    ({**PAIR, **ANSWERS, "preferred_output": [{"role": "user", "content": "a"}]}, "assistant"),
    ({**PAIR, **ANSWERS, "non_preferred_output": ANSWERS["preferred_output"]}, "the same"),
    ({"input": 5, **ANSWERS}, "input"),
    ({"input": {"messages": []}, **ANSWERS}, "empty"),
    ({"input": {"messages": [{"role": "assistant", "content": "a"}]}, **ANSWERS}, "assistant"),
    ({"input": {"messages": "a", "tools": [{"type": "function"}]}, **ANSWERS}, "tools"),
]


@pytest.mark.parametrize("number", range(len(PAIRS)))
def test_a_row_of_preferences_that_is_wrong_fails_the_job(http: httpx.Client, number: int) -> None:
    pytest.importorskip("trl")
    row, word = PAIRS[number]
    id = upload(http, json.dumps({**PAIR, **ANSWERS}) + "\n" + json.dumps(row), "pairs.jsonl")
    fails(http, {"training_file": id, "method": {"type": "dpo"}}, "training_file", "pairs.jsonl", "line 2", word)


REQUESTS: list[tuple[str, str, str]] = [
    ("GET", "/v1/files/file-none", "file-none"),
    ("GET", "/v1/files/file-none/content", "file-none"),
    ("DELETE", "/v1/files/file-none", "file-none"),
    ("GET", "/v1/files/..%2F..%2Fjobs.sqlite/content", ""),
    ("GET", "/v1/files?limit=0", "limit"),
    ("GET", "/v1/files?limit=10001", "limit"),
    ("GET", "/v1/files?limit=x", "limit"),
    ("GET", "/v1/files?order=up", "order"),
    ("GET", "/v1/files?after=file-none", "file-none"),
    ("GET", "/v1/fine_tuning/jobs?limit=101", "limit"),
    ("GET", "/v1/fine_tuning/jobs?after=none", "none"),
    ("GET", "/v1/fine_tuning/jobs/ftjob-none", "ftjob-none"),
    ("GET", "/v1/fine_tuning/jobs/ftjob-none/events", "ftjob-none"),
    ("GET", "/v1/fine_tuning/jobs/ftjob-none/checkpoints", "ftjob-none"),
    ("POST", "/v1/fine_tuning/jobs/ftjob-none/cancel", "ftjob-none"),
    ("POST", "/v1/fine_tuning/jobs/ftjob-none/pause", "ftjob-none"),
    ("POST", "/v1/fine_tuning/jobs/ftjob-none/resume", "ftjob-none"),
    ("POST", "/v1/fine_tuning/jobs/' OR 1=1 --/cancel", "no job"),
    ("GET", "/v1/reft/adapters/ft:none", "ft:none"),
    ("POST", "/v1/reft/adapters/ft:none/load", "ft:none"),
    ("POST", "/v1/reft/adapters/..%2F..%2Fetc/unload", "etc"),
    ("GET", "/v1/reft/adapters/ft:none/download", "ft:none"),
    ("DELETE", "/v1/reft/adapters/ft:none", "ft:none"),
]


@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_a_request_for_what_is_not_there_is_refused(http: httpx.Client, number: int) -> None:
    method, path, word = REQUESTS[number]
    check(http.request(method, path), word)


FORMS: list[tuple[dict[str, Any], int, str]] = [
    ({"content": b""}, 400, "multipart"),
    ({"content": b"{}", "headers": {"content-type": "application/json"}}, 400, "multipart"),
    ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "form"),
    ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, "f"),
    ({"data": {"purpose": "fine-tune"}, "files": {"other": ("a.jsonl", GOOD)}}, 400, "file"),
    ({"files": {"file": ("a.jsonl", GOOD)}}, 400, "purpose"),
    ({"data": {"purpose": "batch"}, "files": {"file": ("a.jsonl", GOOD)}}, 400, "batch"),
    ({"data": {"purpose": "fine-tune"}, "files": {"file": ("a.jsonl", b"")}}, 400, "empty"),
    ({"data": {"purpose": "fine-tune"}, "files": {"file": ("a.exe", GOOD)}}, 400, "a.exe"),
    ({"data": {"purpose": "fine-tune"}, "files": {"file": ("a.jsonl.gz", GOOD)}}, 400, "a.jsonl.gz"),
    ({"data": {"purpose": "fine-tune"}, "files": {"file": ("x" * 300 + ".jsonl", GOOD)}}, 400, "255"),
    ({"data": {"purpose": "fine-tune"}, "files": {"file": ("a.jsonl", "x" * (MOST_BYTES + 1))}}, 413, "20000"),
    ({"data": {"purpose": "fine-tune"}, "files": {"file": ("a.jsonl", "x" * (20 * MOST_BYTES))}}, 413, "bytes"),
    ({"data": {"purpose": "fine-tune", "expires_after": "1"}, "files": {"file": ("a.jsonl", GOOD)}}, 400, "expires"),
]


@pytest.mark.parametrize("number", range(len(FORMS)))
def test_an_upload_that_is_wrong_is_refused(http: httpx.Client, number: int) -> None:
    request, status, word = FORMS[number]
    check(http.post("/v1/files", **request), word, status=status)


BROKEN = [b"", b"{", b"[]", b"5", b"null", b'{"model": NaN}', b"\xff", b'{"model": "' + b"\xed\xa0\xbd" + b'"}']


@pytest.mark.parametrize("path", ["/v1/fine_tuning/jobs", "/v1/reft/preview"])
@pytest.mark.parametrize("body", BROKEN)
def test_a_body_that_cannot_be_read_is_refused(http: httpx.Client, path: str, body: bytes) -> None:
    check(http.post(path, content=body, headers={"content-type": "application/json"}), "")


PREVIEWS: list[tuple[dict[str, Any], str]] = [
    ({}, "training_file or rows"),
    ({"rows": []}, "1 item"),
    ({"rows": [5]}, "dict"),
    ({"rows": [{}] * 101}, "100"),
    ({"rows": [{}], "training_file": "a"}, "training_file or rows"),
    ({"training_file": "file-none"}, "file-none"),
    ({"rows": [{}], "reft": {"r": 0}}, "r=0"),
    ({"rows": [{}], "limit": 0}, "limit"),
    ({"rows": [{}], "after": -1}, "after"),
    ({"rows": [{}], "max_length": 1}, "max_length"),
]


@pytest.mark.parametrize("number", range(len(PREVIEWS)))
def test_a_preview_that_is_wrong_is_refused(http: httpx.Client, number: int) -> None:
    body, word = PREVIEWS[number]
    check(http.post("/v1/reft/preview", json=body), word)


def test_names_of_files_stay_names(http: httpx.Client, tuning: Running) -> None:
    id = upload(http, GOOD, "../../outside.jsonl")
    assert http.get(f"/v1/files/{id}").json()["filename"] == "outside.jsonl"
    folder: Path = tuning.service.settings.fine_tuning.folder  # type: ignore[union-attr]
    assert not list(folder.parent.glob("outside*")) and not list(folder.rglob("outside*"))


def check(reply: httpx.Response, word: str, param: str | None = None, *, status: int | None = None) -> None:
    assert 400 <= reply.status_code < 500 and status in (None, reply.status_code), (reply.status_code, reply.text)
    error = reply.json().get("error")
    assert error is not None and set(error) == {"message", "type", "param", "code"}, reply.text
    assert word in error["message"] and "\n" not in error["message"], error
    assert param is None or error["param"] == param, error


def fails(http: httpx.Client, body: dict[str, Any], param: str, name: str, line: str, word: str) -> None:
    """A job of this body fails at once, with one message; it is away afterwards."""
    job = http.post("/v1/fine_tuning/jobs", json={"model": BASE, **body}).json()
    for _ in range(500):
        if job["status"] != "validating_files":
            break
        job = http.get(f"/v1/fine_tuning/jobs/{job['id']}").json()
    assert job["status"] == "failed" and job["fine_tuned_model"] is None and job["finished_at"] is not None, job
    error = job["error"]
    assert error["param"] == param and error["code"] == f"invalid_{param}", error
    assert error["message"].startswith(name) and line in error["message"] and word in error["message"], error
    last = http.get(f"/v1/fine_tuning/jobs/{job['id']}/events", params={"limit": 1}).json()["data"][0]
    assert last["level"] == "error" and error["message"] in last["message"]
