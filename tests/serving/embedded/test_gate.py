"""Limits: the key, sizes, the queue, time, clients that leave, metrics, and the end of the server."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from reftune.errors import MissingExtraError, ReftuneError
from reftune.serving import ReftModule
from reftune.serving.embedded import ServeSettings, serve_embedded
from reftune.serving.jobs import FineTuning
from tests.serving.embedded.conftest import PATIENCE, Running, Serve
from tests.serving.folders import BASE

ROOT = Path(__file__).parents[3]
BODY = {"model": BASE, "prompt": "w1 w2", "max_tokens": 4, "temperature": 0}


def post(running: Running, **changes: Any) -> httpx.Response:
    return httpx.post(f"{running.url}/v1/completions", json={**BODY, **changes}, timeout=PATIENCE)


def in_thread(run: Any) -> tuple[threading.Thread, list[Any]]:
    """Runs in a thread; what it returns or raises is put into the list."""
    found: list[Any] = []

    def keep() -> None:
        try:
            found.append(run())
        except Exception as error:  # noqa: BLE001 — for the test to look at
            found.append(error)

    thread = threading.Thread(target=keep)
    thread.start()
    return thread, found


def joined(pair: tuple[threading.Thread, list[Any]]) -> Any:
    pair[0].join(PATIENCE)
    assert not pair[0].is_alive()
    return pair[1][0]


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


# --- the key ----------------------------------------------------------------------------------------------------------


def test_the_key(serve: Serve) -> None:
    with serve(api_key="schlüssel") as running:
        assert httpx.get(f"{running.url}/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/nothing"):
            assert httpx.get(f"{running.url}{path}").status_code == 401
        wrong = ["", "Bearer", "Bearer wrong", "Basic schlüssel", "schlüssel", "Bearer schlüsse"]
        for header in wrong:
            response = httpx.get(f"{running.url}/v1/models", headers={b"Authorization": header.encode()})
            assert response.status_code == 401, header
            assert error_of(response)["code"] == "invalid_api_key"
        right = {b"Authorization": "Bearer schlüssel".encode()}
        assert httpx.get(f"{running.url}/v1/models", headers=right).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            running.client(api_key="wrong").models.list()


def test_every_route_needs_the_key(serve: Serve, tmp_path: Path) -> None:
    with serve(api_key="secret", fine_tuning=FineTuning(tmp_path, device="cpu")) as running:
        paths = running.server.gate.app.openapi()["paths"]
        asked = [(method.upper(), path) for path, methods in paths.items() for method in methods]
        assert ("POST", "/v1/fine_tuning/jobs") in asked and ("GET", "/metrics") in asked
        for method, path in asked:
            url = running.url + path.replace("{id}", "x").replace("{name}", "x")
            # vLLM's own key is asked for on these paths only
            assert path in ("/health", "/metrics", "/tokenize", "/detokenize") or path.startswith("/v1/")
            status = httpx.request(method, url).status_code
            assert status == (200 if path == "/health" else 401), (method, path)


def test_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFTUNE_API_KEY", "secret")
    settings = ServeSettings("m")
    assert settings.api_key == "secret" and "secret" not in repr(settings)
    monkeypatch.setenv("REFTUNE_API_KEY", "")
    assert ServeSettings("m").api_key is None
    assert ServeSettings("m").host == "127.0.0.1"


def test_settings_are_checked() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"max_queue": 0}, "max_queue=0"),
        ({"port": 70000}, "port=70000"),
        ({"dtype": "int8"}, "int8"),
        ({"request_timeout": 0}, "request_timeout"),
        ({"max_model_len": 1}, "max_model_len=1"),
        ({"allow_runtime_loading": True}, "allowed_folders"),
        ({"modules": (ReftModule("m", "p"),)}, "base model"),
        ({"modules": (ReftModule("a", "p"), ReftModule("b", "p")), "max_adapters": 1}, "max_adapters"),
    ]
    for options, part in wrong:
        with pytest.raises(ReftuneError, match=part):
            ServeSettings("m", **options)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"reftune\[serve\]"):
        serve_embedded(ServeSettings("m"))


def test_what_cannot_be_loaded_is_told_before_the_server_starts(base: Path, adapters: Any, tmp_path: Path) -> None:
    for module, part in [
        (ReftModule("a", str(tmp_path)), "adapter_config.json"),
        (ReftModule("a", str(tmp_path / "none")), "not a folder"),
        (ReftModule("a", "nobody/nothing"), "nobody/nothing"),
    ]:
        with pytest.raises(ReftuneError, match=part):
            serve_embedded(ServeSettings(str(base), modules=(module,), port=0))
    with pytest.raises(ReftuneError, match="takes 2048 tokens"):
        serve_embedded(ServeSettings(str(base), max_model_len=4096, port=0))


# --- sizes and forms --------------------------------------------------------------------------------------------------


def test_the_size_of_a_body(serve: Serve) -> None:
    with serve(max_body_bytes=1000) as running:
        assert post(running).status_code == 200
        large = post(running, prompt="w1 " * 400)
        assert large.status_code == 413 and error_of(large)["code"] == "request_too_large"

        def chunks() -> Iterator[bytes]:
            # no Content-Length
            for _ in range(400):
                yield b'{"a": "' + b"x" * 1000

        streamed = httpx.post(f"{running.url}/v1/completions", content=chunks(), timeout=PATIENCE)
        assert streamed.status_code == 413
        assert post(running).status_code == 200


def test_a_length_that_is_a_lie_does_not_help(serve: Serve) -> None:
    with serve(max_body_bytes=1000) as running:
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.create_connection(address, timeout=PATIENCE) as sock:
            sock.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(5):
                sock.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")
            sock.sendall(b"0\r\n\r\n")
            assert b"413" in sock.recv(100)


def test_a_body_that_never_comes(serve: Serve) -> None:
    with serve(request_timeout=0.2) as running:
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=PATIENCE) as sock:
            sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
            assert b"408" in sock.recv(100)


MALFORMED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"3",
    b'{"model": 3}',
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"model": "\\ud800", "prompt": "x"}',
    b'{"model": "base", "prompt": "\\ud800"}',
    b'{"model": "base", "prompt": "w1", "\\ud800": 1}',
    b'{"model": "base", "prompt": "w1", "temperature": NaN}',
    b'{"model": "base", "prompt": {"a": 1}}',
]


@pytest.mark.parametrize("content", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_requests(running: Running, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    for path in ("completions", "chat/completions"):
        response = httpx.post(f"{running.url}/v1/{path}", content=content, headers=headers)
        assert response.status_code in (400, 404), response.text
        error_of(response)
    assert post(running).status_code == 200


def test_other_paths_and_methods(running: Running) -> None:
    for response, status in [
        (httpx.get(f"{running.url}/v1/nothing"), 404),
        (httpx.get(f"{running.url}/v1/completions"), 405),
        (httpx.get(f"{running.url}/docs"), 404),
    ]:
        assert response.status_code == status
        error_of(response)


# --- the queue, time, clients that leave ------------------------------------------------------------------------------


def test_a_full_queue(serve: Serve) -> None:
    with serve(max_queue=2, max_batch_size=1) as running:
        running.brake.hold()
        first = in_thread(lambda: post(running))
        running.brake.wait_until_held()
        second = in_thread(lambda: post(running, n=2))
        wait_for(lambda: running.engine.waiting == 2)
        refused = post(running)
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert error_of(refused)["type"] == "rate_limit_error"
        with pytest.raises(openai.RateLimitError):
            running.client().chat.completions.create(model=BASE, messages=[{"role": "user", "content": "w1"}])
        running.brake.release()
        assert joined(first).status_code == joined(second).status_code == 200
        # more than could ever wait is no matter of time
        assert post(running, n=3).status_code == 400
        assert post(running).status_code == 200


def wait_for(condition: Any) -> None:
    """What happens in another thread, and has no event of its own."""
    pause = threading.Event()
    for _ in range(int(PATIENCE * 100)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came to be")


@pytest.mark.parametrize("stream", [False, True])
def test_time_out(serve: Serve, stream: bool) -> None:
    with serve(request_timeout=0.3) as running:
        running.brake.hold()
        late = post(running, stream=stream)
        assert late.status_code == 504 and error_of(late)["code"] == "timeout"
        running.brake.release()
        # its row is gone
        wait_for(lambda: running.engine.running == 0)


def test_time_out_in_a_stream(serve: Serve) -> None:
    with serve(request_timeout=1.5) as running:
        running.brake.hold()
        seen: list[Any] = []

        def read() -> None:
            for chunk in running.client().completions.create(**{**BODY, "stream": True, "max_tokens": 500}):
                seen.append(chunk)

        reading = in_thread(read)
        running.brake.wait_until_held()
        for _ in range(4):
            running.brake.step()
        error = joined(reading)
        running.brake.release()
        assert isinstance(error, openai.APIError) and "longer than 2 s" in str(error)
        assert seen


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_row(serve: Serve, stream: bool) -> None:
    with serve() as running:
        running.brake.hold()
        content = httpx.Request("POST", "http://x", json={**BODY, "max_tokens": 1500, "stream": stream}).read()
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=PATIENCE) as sock:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            sock.sendall(head + b"Content-Length: %d\r\n\r\n" % len(content) + content)
            running.brake.wait_until_held()
            for _ in range(3):
                running.brake.step()
            assert running.engine.running == 1
        before = running.brake.arrived
        wait_for(lambda: all(row.cancelled.is_set() for row in running.engine._batch))
        running.brake.release()
        wait_for(lambda: running.engine.running == 0)
        # far from the 1500 that were asked for
        assert running.brake.arrived - before < 100
        assert post(running).status_code == 200


@pytest.mark.slow
def test_an_idle_connection_outlives_that_of_clients(running: Running) -> None:
    """They keep theirs for 5 seconds; one that the server closed then lost a request now and again."""
    connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=PATIENCE)
    connection.request("GET", "/health")
    connection.getresponse().read()
    first = connection.sock
    time.sleep(5.5)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    assert connection.sock is first
    connection.close()


def test_a_client_that_leaves_the_queue(serve: Serve) -> None:
    with serve(max_batch_size=1, max_queue=1) as running:
        running.brake.hold()
        long = in_thread(lambda: post(running, max_tokens=1000, ignore_eos=True))
        running.brake.wait_until_held()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{running.url}/v1/completions", json=BODY, timeout=0.2)
        # its place is free at the next step
        running.brake.step()
        wait_for(lambda: running.brake.step() or running.engine.waiting == 0)
        another = in_thread(lambda: post(running))
        wait_for(lambda: running.engine.waiting == 1)
        running.brake.release()
        assert joined(another).status_code == joined(long).status_code == 200


# --- metrics ----------------------------------------------------------------------------------------------------------


def values(running: Running) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    response = httpx.get(f"{running.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_metrics(serve: Serve, adapters: dict[str, Path]) -> None:
    with serve({"a": adapters["loreft"]}) as running:
        post(running, n=2, ignore_eos=True)
        post(running, model="a", ignore_eos=True)
        post(running, model="none")
        httpx.get(f"{running.url}/random/{'x' * 50}")
        running.brake.hold()
        busy = in_thread(lambda: post(running, model="a", ignore_eos=True))
        running.brake.wait_until_held()
        found = values(running)
        running.brake.release()
        joined(busy)
        ok = (("path", "/v1/completions"), ("status", "200"))
        assert found["reftune_requests_total", ok] == 2
        assert found["reftune_requests_total", (("path", "/v1/completions"), ("status", "404"))] == 1
        assert found["reftune_requests_total", (("path", "other"), ("status", "404"))] == 1
        assert found["reftune_prompt_tokens_total", ()] == 6
        assert found["reftune_generated_tokens_total", ()] == 12
        assert found["reftune_answers_total", (("finish", "length"),)] == 3
        assert found["reftune_adapters_loaded", ()] == 1
        assert found["reftune_running_rows", ()] == 1 and found["reftune_waiting_rows", ()] == 0
        assert found["reftune_request_seconds_count", (("path", "/v1/completions"),)] == 3
        assert found["reftune_batch_rows_count", ()] == 3
        assert found["reftune_batch_rows_sum", ()] == 4


# --- the end ----------------------------------------------------------------------------------------------------------


def test_draining(serve: Serve) -> None:
    with serve(max_batch_size=1) as running:
        running.brake.hold()
        runs = in_thread(lambda: post(running))
        running.brake.wait_until_held()
        waits = in_thread(lambda: post(running, prompt="w5"))
        wait_for(lambda: running.engine.waiting == 1)
        running.server.drain("test")
        refused = post(running)
        assert refused.status_code == 503 and error_of(refused)["code"] == "stopping"
        assert httpx.get(f"{running.url}/health").status_code == 503
        running.brake.release()
        assert joined(runs).status_code == joined(waits).status_code == 200
    with pytest.raises(httpx.ConnectError):
        post(running)


PROGRAM = """
import sys
from reftune.serving import ReftModule
from reftune.serving.embedded import ServeSettings, serve_embedded
from reftune.serving.jobs import FineTuning
base, name, adapter = sys.argv[1:]
serve_embedded(ServeSettings(base, modules=(ReftModule(name, adapter),), served_model_name="base", port=0))
"""


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_runs_finish(base: Path, adapters: dict[str, Path], sent: int) -> None:
    arguments = [sys.executable, "-c", PROGRAM, str(base), "a", str(adapters["loreft"])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            line = next(line for line in lines if "running on" in line)
            url = next(word for word in line.split() if word.startswith("http"))
            reader = threading.Thread(target=lambda: [None for _ in lines])
            reader.start()
            body = {**BODY, "model": "a", "max_tokens": 1200, "stream": True, "ignore_eos": True}
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=PATIENCE) as response:
                events = response.iter_lines()
                assert next(events).startswith("data: ")
                process.send_signal(sent)
                refused = httpx.post(f"{url}/v1/completions", json=BODY, timeout=PATIENCE)
                rest = list(events)
            assert refused.status_code == 503
            assert rest[-2] == "data: [DONE]" and '"finish_reason": "length"' in rest[-4]
            assert process.wait(PATIENCE) == 0
            reader.join(PATIENCE)
        finally:
            process.kill()


def sending(
    running: Running, body: bytes, *, length: int | None = None, to: bytes = b"POST /v1/completions"
) -> socket.socket:
    """A connection on which so much of a request was sent."""
    sock = socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])), timeout=PATIENCE)
    head = b"%s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" % to
    sock.sendall(head + b"Content-Length: %d\r\n\r\n" % (length or len(body)) + body)
    return sock


def test_a_body_that_is_not_there_does_not_delay_the_end(serve: Serve) -> None:
    """The time-out of a request is ten minutes."""
    with serve(max_batch_size=1) as running:
        running.brake.hold()
        runs = in_thread(lambda: post(running))
        running.brake.wait_until_held()
        with sending(running, b"{", length=50) as sock:
            wait_for(lambda: running.server.gate._reading)
            assert running.server.gate.in_flight == 1
            running.server.drain("test")
            # what runs goes on, what has not begun does not
            answer = sock.recv(4096)
            assert b"503" in answer and b"connection: close" in answer.lower()
            running.brake.release()
            assert joined(runs).status_code == 200
        wait_for(lambda: running.server.should_exit)


def test_what_is_answered_to_the_end_is_also_read_to_the_end(serve: Serve) -> None:
    """Several ticks of the server pass while it is read: the page loads by dozens of such requests."""
    with serve(max_batch_size=1) as running:
        running.brake.hold()
        runs = in_thread(lambda: post(running))
        running.brake.wait_until_held()
        running.server.drain("test")
        with sending(running, b"{", length=2, to=b"GET /metrics") as sock:
            wait_for(lambda: running.server.gate._reading)
            time.sleep(0.3)
            sock.sendall(b"}")
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        running.brake.release()
        assert joined(runs).status_code == 200
        wait_for(lambda: running.server.should_exit)


def test_what_is_answered_to_the_end_does_not_delay_it(serve: Serve) -> None:
    with serve() as running, sending(running, b"{", length=2, to=b"GET /metrics") as sock:
        wait_for(lambda: running.server.gate._reading)
        running.server.drain("test")
        wait_for(lambda: running.server.should_exit)
        assert b"503" in sock.recv(4096)


def test_a_client_that_does_not_read_does_not_delay_the_end(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reftune.serving.embedded.gate.PATIENCE", 0.2)
    with serve() as running:
        gate = running.server.gate
        body = httpx.Request("POST", "http://x", json={**BODY, "max_tokens": 2000, "stream": True, "ignore_eos": True})
        gate._send = hanging(gate._send)  # type: ignore[method-assign]
        with sending(running, body.read()):
            wait_for(lambda: gate._sending)
            running.server.drain("test")
            wait_for(lambda: running.server.should_exit)
        found = counted(running)
        assert found == {("/v1/completions", "499"): 1}


def hanging(own: Any) -> Any:
    """As of a client whose buffers are full."""

    async def send(real: Any, message: Any) -> None:
        async def never(message: Any) -> None:
            await asyncio.Event().wait()

        await own(never, message)

    return send


def counted(running: Running) -> dict[tuple[str, str], float]:
    """Requests by path and status, those to /metrics not counted."""
    samples = [s for family in running.service.metrics._requests.collect() for s in family.samples]
    return {(s.labels["path"], s.labels["status"]): s.value for s in samples if s.name.endswith("_total")}


def test_clients_that_leave_are_no_errors_of_the_server(serve: Serve) -> None:
    with serve() as running:
        sending(running, b"{", length=50).close()
        wait_for(lambda: counted(running) == {("/v1/completions", "499"): 1})
        running.brake.hold()
        for stream in (False, True):
            body = httpx.Request("POST", "http://x", json={**BODY, "max_tokens": 1500, "stream": stream}).read()
            with sending(running, body):
                running.brake.wait_until_held()
                running.brake.step()
            wait_for(lambda: all(row.cancelled.is_set() for row in running.engine._batch))
            running.brake.release()
            wait_for(lambda: running.engine.running == 0)
            running.brake.hold()
        running.brake.release()
        wait_for(lambda: counted(running) == {("/v1/completions", "499"): 3})
        assert post(running).status_code == 200
        # counted a moment after the client has its answer
        wait_for(lambda: counted(running).get(("/v1/completions", "200")) == 1)
