"""One question to an OpenAI-compatible endpoint: what is sent, tried again and told, and where the key goes."""

from __future__ import annotations

import importlib.util
import json
import socket
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest

from reftune.errors import MissingExtraError
from reftune.evaluation.judge.endpoint import Endpoint, EndpointError, RefusedError, Reply
from tests.evaluation.judge.judge_server import Answer, Answered, Asked, JudgeServer, completion, serving

KEY = "sk-very-secret-123"


def endpoint(url: str, **options: Any) -> Endpoint:
    return Endpoint(url, "judge", **{"first_wait": 0.01, "retries": 2, "timeout": 5.0, **options})


def ask(server: JudgeServer, **options: Any) -> Reply:
    asked = endpoint(server.url, **options)
    return asked.ask(asked.payload("Which?"))


def failing(times: int, answered: Answered) -> Answer:
    """Answers so a few times, then `tie`."""
    return lambda asked: answered if asked.number < times else "tie"


def raised(action: Callable[[], Any], kind: type[Exception] = EndpointError) -> str:
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("https://host/v1", "https://host/v1/chat/completions"),
        ("https://host/v1/", "https://host/v1/chat/completions"),
        ("http://host:8000", "http://host:8000/v1/chat/completions"),
        ("http://host:8000/", "http://host:8000/v1/chat/completions"),
        ("https://host/api/openai", "https://host/api/openai/chat/completions"),
        ("https://host/v1/chat/completions", "https://host/v1/chat/completions"),
        ("https://host/v1?version=2", "https://host/v1/chat/completions?version=2"),
    ],
)
def test_addresses(given: str, address: str) -> None:
    assert endpoint(given).address == address


@pytest.mark.parametrize("url", ["", "host/v1", "ftp://host", "http://", "http://host:port/v1", "http://h/v 1"])
def test_what_is_no_address(url: str) -> None:
    assert "not an address" in raised(lambda: endpoint(url))


def test_what_is_sent() -> None:
    with serving(lambda asked: "1") as server:
        assert ask(server, key=KEY) == Reply("1", "stop")
        ask(server, max_tokens=None)
    first, second = server.asked
    assert first.path == "/v1/chat/completions"
    assert first.headers["Authorization"] == f"Bearer {KEY}"
    message = {"role": "user", "content": "Which?"}
    assert first.body == {"model": "judge", "messages": [message], "temperature": 0, "max_tokens": 16}
    assert second.body == {"model": "judge", "messages": [message], "temperature": 0}
    assert "Authorization" not in second.headers


def test_what_the_environment_has_for_another_host_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with serving(lambda asked: "1") as server:
        assert ask(server) == Reply("1", "stop")
        assert KEY not in server.asked[0].headers.as_string()


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"reftune\[judge\]"):
        endpoint("http://host")


def test_a_text_that_utf_8_cannot_hold_is_asked_all_the_same() -> None:
    with serving(lambda asked: "1") as server:
        asked = endpoint(server.url)
        assert asked.ask(asked.payload("half a sign: \ud800")).text == "1"
        assert server.asked[0].body["messages"][0]["content"] == "half a sign: ?"


@pytest.mark.parametrize(
    "trouble",
    [
        Answered(429, '{"error": {"message": "slow down"}}'),
        Answered(500, "oh"),
        Answered(503),
        Answered(hang_up=True),
        Answered(cut=True, body=completion("1")[:-9]),
        Answered(body="<html>busy</html>"),
        Answered(body='{"error": {"message": "overloaded"}}'),
        Answered(body='{"choices": []}'),
        Answered(body='{"choices": [{"message": "1"}]}'),
    ],
    ids=["429", "500", "503", "hang-up", "cut", "html", "error in 200", "no choice", "no message"],
)
def test_what_may_pass_is_tried_again_but_not_for_ever(trouble: Answered) -> None:
    with serving(failing(2, trouble)) as server:
        assert ask(server).text == "tie"
        assert len(server.asked) == 3
    with serving(failing(3, trouble)) as server:
        assert "3 times over" in raised(lambda: ask(server))
        assert len(server.asked) == 3


def test_a_slow_answer_is_tried_again() -> None:
    released = threading.Event()

    def slow_at_first(asked: Asked) -> str:
        if asked.number == 0:
            released.wait(10)
        return "1"

    with serving(slow_at_first) as server:
        assert ask(server, timeout=0.2).text == "1"
        assert len(server.asked) == 2
        server.answer = lambda asked: "1" if released.wait(10) else ""
        assert "no answer in time" in raised(lambda: ask(server, timeout=0.2, retries=0))
        released.set()


def test_waits_grow() -> None:
    with serving(failing(3, Answered(503))) as server:
        start = time.monotonic()
        ask(server, retries=3, first_wait=0.1)
        assert time.monotonic() - start >= 0.1 + 0.2 + 0.4


def test_retry_after_is_the_shortest_wait() -> None:
    with serving(failing(1, Answered(429, headers={"Retry-After": "0.5"}))) as server:
        start = time.monotonic()
        ask(server)
        assert time.monotonic() - start >= 0.5
    # a date has whole seconds: two from now is more than one from now
    with serving(lambda asked: "1") as server:
        date = formatdate(time.time() + 2, usegmt=True)
        server.answer = failing(1, Answered(503, headers={"Retry-After": date}))
        start = time.monotonic()
        ask(server)
        assert time.monotonic() - start >= 0.9


@pytest.mark.parametrize("value", ["soon", "-5", "nan", "Mon, 99 Foo 2020", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_retry_after_that_says_nothing(value: str) -> None:
    with serving(failing(1, Answered(429, headers={"Retry-After": value}))) as server:
        assert ask(server).text == "tie"


def test_nobody_waits_until_tomorrow() -> None:
    with serving(failing(1, Answered(429, headers={"Retry-After": "86400"}))) as server:
        assert "86400 seconds" in raised(lambda: ask(server))


def test_a_wait_can_be_ended() -> None:
    stop = threading.Event()
    with serving(failing(1, Answered(429, headers={"Retry-After": "200"}))) as server:
        asked = endpoint(server.url)
        threading.Timer(0.2, stop.set).start()
        start = time.monotonic()
        raised(lambda: asked.ask(asked.payload("?"), stop=stop))
        assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("status", "parts"),
    [
        (401, ("401", "said so", "a key was sent")),
        (403, ("403", "said so", "a key was sent")),
        (404, ("404", "said so", "'judge'", "address")),
        (402, ("402", "said so")),
        (405, ("405", "said so")),
    ],
)
def test_what_will_not_pass_is_told_at_once(status: int, parts: tuple[str, ...]) -> None:
    with serving(lambda asked: Answered(status, '{"error": {"message": "said so"}}')) as server:
        message = raised(lambda: ask(server, key=KEY))
    assert len(server.asked) == 1
    assert all(part in message for part in (server.url, *parts)), message


def test_a_missing_key_is_told() -> None:
    with serving(lambda asked: Answered(401)) as server:
        assert "no key was sent" in raised(lambda: ask(server))


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refusal_is_of_one_request(status: int) -> None:
    with serving(lambda asked: Answered(status, '{"detail": "too long"}')) as server:
        assert "too long" in raised(lambda: ask(server), RefusedError)
    assert len(server.asked) == 1


def test_a_server_that_is_not_there_is_told_at_once_unless_it_was_there_before() -> None:
    with socket.socket() as held:  # bound and not listening: connections are refused
        held.bind(("127.0.0.1", 0))
        asked = endpoint(f"http://127.0.0.1:{held.getsockname()[1]}", retries=1)
        message = raised(lambda: asked.ask(asked.payload("?"), answers=False))
        assert "cannot be reached" in message and "times over" not in message
        assert "2 times over" in raised(lambda: asked.ask(asked.payload("?")))


def test_redirects_are_not_followed_and_so_the_key_goes_nowhere_else() -> None:
    with serving(lambda asked: "1") as other:
        for status in (301, 302, 303, 307, 308):
            moved = Answered(status, headers={"Location": f"{other.url}/chat/completions"})
            with serving(lambda asked, moved=moved: moved) as server:
                message = raised(lambda: ask(server, key=KEY))
            assert f"{status}" in message and "not followed" in message
        assert other.asked == []


def test_the_key_is_shown_nowhere() -> None:
    echo = Answered(401, f'{{"error": {{"message": "Incorrect key: {KEY}"}}}}')
    with serving(lambda asked: echo) as server:
        message = raised(lambda: ask(server, key=KEY))
        assert KEY not in message and "Incorrect key: ***" in message
        server.answer = lambda asked: Answered(body=f"what is {asked.headers['Authorization']}?")
        assert KEY not in raised(lambda: ask(server, key=KEY))
        assert KEY not in repr(endpoint(server.url, key=KEY))


@pytest.mark.parametrize("bad", ["secret\nkey", "secret key", "secrét"])
def test_what_is_no_key_is_not_shown_either(bad: str) -> None:
    message = raised(lambda: endpoint("http://host", key=bad))
    assert "key" in message and "secr" not in message


def test_neither_is_a_password_in_the_address() -> None:
    assert "hidden" not in raised(lambda: endpoint("https://me:hidden@host/v1"))
    assert "hidden" not in raised(lambda: endpoint("ftp://host/v1?key=hidden"))
    with serving(lambda asked: Answered(404)) as server:
        assert "hidden" not in raised(lambda: ask_at(f"{server.url}?key=hidden"))
        assert server.asked[0].path.endswith("?key=hidden")


def ask_at(url: str) -> Reply:
    asked = endpoint(url)
    return asked.ask(asked.payload("?"))


def test_a_reply_in_parts() -> None:
    parts = json.dumps([{"type": "text", "text": "t"}, {"type": "text", "text": "ie"}])
    body = f'{{"choices": [{{"message": {{"content": {parts}}}}}]}}'
    with serving(lambda asked: Answered(body=body)) as server:
        assert ask(server).text == "tie"


@pytest.mark.parametrize("content", [None, ["1"], 1])
def test_a_reply_without_a_text_is_empty(content: Any) -> None:
    with serving(lambda asked: Answered(body=completion(content))) as server:
        assert ask(server) == Reply("", "stop")
