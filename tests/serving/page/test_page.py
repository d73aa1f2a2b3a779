"""The chat page without a browser: marks, what the page asks, who is let in, and what it needs."""

from __future__ import annotations

import argparse
import asyncio
import base64
import importlib.util
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from transformers.convert_slow_tokenizer import bytes_to_unicode
from typer.testing import CliRunner

from reftune.cli.app import app
from reftune.errors import MissingExtraError, ReftuneError
from reftune.serving.embedded import ServeSettings
from reftune.serving.page import attach_page
from reftune.serving.page.asks import Question, Server, Unanswered, side_by_side
from reftune.serving.page.gate import PageGate
from reftune.serving.page.marks import marked_tokens, summary, token_text
from reftune.serving.vllm.adapters import Reader
from reftune.serving.vllm.launch import add_arguments, allow_page
from reftune.serving.vllm.options import Options
from tests.serving.embedded.conftest import serving
from tests.serving.folders import KINDS, save_adapters, save_text_base
from tests.serving.vllm.configs import llama_config

# --- marks ------------------------------------------------------------------------------------------------------------


def marks(count: int, **adapter: Any) -> list[str | None]:
    return [mark for _, mark in marked_tokens([f"t{i}" for i in range(count)], range(count), adapter)]


def test_marks_say_positions_and_layers() -> None:
    one, two = "f1+l2 (Φ 1 of 2), layers 0–2, 5", "f1+l2 (Φ 2 of 2), layers 0–2, 5"
    adapter = {"sites": [[[0, "f1+l2", "group"]]], "layers": [[5, 0, 1, 2]]}
    assert marks(6, **adapter) == [one, None, None, None, two, two]
    # a short prompt: prefix and suffix give way to each other
    assert marks(2, **adapter) == [one, two]
    assert summary(range(6), adapter) == "3 of 6 prompt tokens are edited, and none of the answer"


def test_marks_of_groups_that_meet_at_a_token() -> None:
    adapter = {"sites": [[[0, "prompt", "all"]], [[1, "l1", "all"]]], "layers": [[0], [3]]}
    assert marks(3, **adapter) == ["prompt, layers 0", "prompt, layers 0", "prompt, layers 0; l1, layers 3"]


def test_marks_of_whole_scopes() -> None:
    assert marks(3, sites=[[[0, "all", "all"]]], layers=[[0]]) == ["all, layers 0"] * 3
    assert marks(3, sites=[[[0, "response", "all"]]], layers=[[1]]) == [None] * 3
    told = summary(range(3), {"sites": [[[0, "response", "all"]]], "layers": [[1]]})
    assert told == "0 of 3 prompt tokens are edited, and all tokens of the answer: response, layers 1"


def test_marks_of_terms() -> None:
    adapter = {"sites": [[[0, "l1+g2-id(1,9)", "all"]]], "layers": [[0]]}
    assert marks(3, **adapter) == [None, None, "l1+g2-id(1,9), layers 0"]
    assert marks(2, **adapter) == [None, None]
    told = summary(range(3), adapter)
    first = "1 of 3 prompt tokens are edited, and the first 2 tokens of the answer: l1+g2-id(1,9), layers 0"
    assert told == f"{first}; of its tokens id(1,9) none"


def test_marks_where_nothing_is_edited() -> None:
    assert marks(2, sites=[]) == [None, None]
    assert marks(0, sites=[[[0, "f1", "all"]]], layers=[[0]]) == []


def test_one_mark_for_a_group_on_two_kinds_of_sites() -> None:
    adapter = {"sites": [[[0, "l1", "all"]], [[0, "l1", "all"], [1, "f1", "all"]]], "layers": [[0, 1], [2]]}
    assert marks(2, **adapter) == ["f1, layers 2", "l1, layers 0–2"]


def test_tokens_as_they_read() -> None:
    signs = bytes_to_unicode()

    def as_bytes(text: str) -> str:
        return "".join(signs[byte] for byte in text.encode())

    for text in (" cats", "日本", "é", " <b>"):
        assert token_text(as_bytes(text)) == text
    assert token_text(as_bytes("a\n")) == "a↵"
    # half a character stays as it is
    assert token_text(as_bytes("日")[:2]) == as_bytes("日")[:2]
    assert [token_text(token) for token in ("▁cats", "<|im_start|>", "日", "")] == [" cats", "<|im_start|>", "日", ""]


# --- what is asked ----------------------------------------------------------------------------------------------------


async def pieces(*texts: str, error: str | None = None) -> AsyncIterator[str]:
    for text in texts:
        await asyncio.sleep(0)
        yield text
    if error is not None:
        raise Unanswered(error)


def test_two_answers_grow_side_by_side() -> None:
    async def run() -> list[list[str]]:
        return [texts async for texts in side_by_side([pieces("a", "b", "c"), pieces("x", error="it is full")])]

    found = asyncio.run(run())
    assert found[-1] == ["abc", "x[it is full]"]
    # neither waits for the other
    assert ["a", "x[it is full]"] in found


def test_who_stops_listening_ends_the_answers() -> None:
    ended: list[str] = []

    async def endless(name: str) -> AsyncIterator[str]:
        try:
            while True:
                await asyncio.sleep(0)
                yield "."
        finally:
            ended.append(name)

    async def run() -> None:
        both = side_by_side([endless("base"), endless("adapter")])
        await anext(both)
        await both.aclose()
        assert sorted(ended) == ["adapter", "base"]

    asyncio.run(run())


def test_a_mistake_of_ours_is_not_passed_over() -> None:
    async def broken() -> AsyncIterator[str]:
        yield "a"
        raise KeyError("choices")

    async def run() -> None:
        async for _ in side_by_side([broken()]):
            pass

    with pytest.raises(KeyError):
        asyncio.run(run())


def test_a_server_that_is_not_there() -> None:
    async def run() -> None:
        async with Server("http://127.0.0.1:9", key=None) as server:
            with pytest.raises(Unanswered, match="did not answer"):
                await server.base()
            with pytest.raises(Unanswered, match="did not answer"):
                await anext(server.answer("m", Question("w1", True, 1, 0.0)))

    asyncio.run(run())


# --- who is let in ----------------------------------------------------------------------------------------------------


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def ask(method: str, path: str, *, keys: tuple[str, ...] = (), root: str = "", **options: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(PageGate(echo, path="/ui", keys=keys), root_path=root)
        async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


def test_only_what_the_page_needs_is_there() -> None:
    here = ["/ui", "/ui/", "/ui/assets/x.js", "/ui/theme.css", "/ui/gradio_api/queue/data?session_hash=1"]
    gone = ["gradio_api/file=x", "gradio_api/proxy=x", "monitoring", "monitoring/summary", "gradio_api/upload_progress"]
    gone += ["gradio_api/call/x", "gradio_api/dev/reload", "gradio_api/vibe-code", "login", "gradio_api/heartbeat/x"]
    for path in here:
        assert ask("GET", path).status_code == 200, path
    for path in gone:
        assert ask("GET", f"/ui/{path}").status_code == 404, path
    assert ask("POST", "/ui/gradio_api/queue/join").status_code == 200
    for path in ("gradio_api/upload", "gradio_api/run/x", "gradio_api/component_server", "login"):
        assert ask("POST", f"/ui/{path}").status_code == 404, path
    assert ask("DELETE", "/ui/").status_code == 404


def test_other_routes_are_left_alone() -> None:
    for path in ("/", "/v1/models", "/uix", "/v1/ui"):
        reply = ask("POST", path, keys=("secret",))
        assert reply.status_code == 200 and "content-security-policy" not in reply.headers
    assert "default-src 'self'" in ask("GET", "/ui").headers["content-security-policy"]


def test_the_key_is_the_password() -> None:
    keys = ("schlüssel", "other")
    refused = ask("GET", "/ui/", keys=keys)
    assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic ")
    for key in keys:
        assert ask("GET", "/ui/", keys=keys, auth=("anybody", key)).status_code == 200
    encoded = base64.b64encode("a:schlüssel".encode()).decode()
    wrong = [f"Bearer {encoded}", "Bearer schlüssel", "Basic", "Basic !", "Basic schlüssel", "Basic YQ=="]
    wrong += [f"Basic {base64.b64encode(text.encode()).decode()}" for text in ("", ":", "schlüssel", "a:schlüsse")]
    for header in wrong:
        for path in ("/ui", "/ui/assets/x.js", "/ui/config"):
            reply = ask("GET", path, keys=keys, headers={b"authorization": header.encode()})
            assert reply.status_code == 401, header
    # behind a prefix, too
    assert ask("GET", "/pre/ui/", keys=keys, root="/pre").status_code == 401


def test_another_site_cannot_ask_in_a_persons_name() -> None:
    path = "/ui/gradio_api/queue/join"
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        assert ask("POST", path, headers={"sec-fetch-site": site}).status_code == status
    assert ask("GET", "/ui", headers={"sec-fetch-site": "cross-site"}).status_code == 200


def test_there_is_no_websocket() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    gate = PageGate(echo, path="/ui", keys=())
    asyncio.run(gate({"type": "websocket", "path": "/ui/queue/join", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


# --- what the embedded server says ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("page")
    save_text_base(folder / "base")
    kinds = {name: KINDS[name] for name in ("loreft", "two", "head")}
    return {"base": folder / "base", **save_adapters(folder, kinds)}


@pytest.fixture(scope="module")
def url(folders: dict[str, Path]) -> Iterator[str]:
    with serving(folders["base"], {name: path for name, path in folders.items() if name != "base"}) as running:
        yield running.url


def test_a_stream_whose_client_leaves_is_not_broken_off_but_looks_for_itself() -> None:
    """Broken off while a piece is being sent, Gradio's stream would not end what it asked for."""
    seen: list[str] = []
    sending = asyncio.Event()

    async def streaming(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)

        async def pieces() -> AsyncIterator[str]:
            try:
                while not await request.is_disconnected():
                    yield "a piece"
            except BaseException:
                seen.append("broken off")
                raise
            seen.append("ended")

        await StreamingResponse(pieces())(scope, receive, send)

    messages = iter([{"type": "http.request"}])

    async def receive() -> Any:
        if (first := next(messages, None)) is not None:
            return first
        await sending.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            sending.set()
            await asyncio.sleep(0.05)

    scope = {"type": "http", "method": "GET", "path": "/ui/gradio_api/queue/data", "headers": []}
    gate = PageGate(streaming, path="/ui", keys=())
    asyncio.run(gate({**scope, "asgi": {"version": "3.0", "spec_version": "2.3"}}, receive, send))
    assert seen == ["ended"]


def test_adapters_are_told_with_what_they_edit(url: str, folders: dict[str, Path]) -> None:
    found = {one["id"]: one for one in httpx.get(f"{url}/v1/reft_adapters").json()["data"]}
    assert list(found) == ["loreft", "two", "head"]
    for name in ("loreft", "two"):
        # the server on vLLM tells the same, where it is another code that finds out
        card = Reader(llama_config(layers=2, width=32), Options()).read(str(folders[name])).card
        assert found[name] == {"id": name, **json.loads(json.dumps(card.as_dict()))}
    assert found["two"]["groups"][0] == {
        "positions": "f2",
        "layers": [0],
        "component": "block_output",
        "intervention": "loreft",
        "r": 2,
    }
    assert found["head"]["sites"] == [[[0, "l3", "all"]]] and found["head"]["layers"] == [[0, 1]]


def test_tokens_are_those_of_the_request(url: str) -> None:
    def ask_for(**body: Any) -> httpx.Response:
        return httpx.post(f"{url}/tokenize", json={"model": "loreft", **body})

    messages = [{"role": "user", "content": "w1 w2 w9"}]
    chat = ask_for(messages=messages, return_token_strs=True, add_generation_prompt=True).json()
    assert chat["token_strs"] == ["<user>", "w1", "w2", "w9", "<assistant>"] and chat["count"] == 5
    told = {"count": 2, "max_model_len": 2048, "tokens": [8, 9], "token_strs": None, "spans": None}
    assert ask_for(prompt="w1 w2").json() == told
    body = {"model": "loreft", "messages": messages, "max_tokens": 1}
    usage = httpx.post(f"{url}/v1/chat/completions", json=body).json()["usage"]
    assert usage["prompt_tokens"] == chat["count"]
    assert ask_for().status_code == ask_for(prompt="w1", messages=messages).status_code == 400
    assert ask_for(prompt="w1", add_generation_prompt=False).status_code == 400
    assert ask_for(model="none", prompt="w1").status_code == 404


def test_there_is_no_page_unless_it_is_asked_for(url: str) -> None:
    assert httpx.get(f"{url}/ui").status_code == httpx.get(f"{url}/ui/").status_code == 404


def test_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[ServeSettings] = []
    monkeypatch.setattr("reftune.serving.embedded.serve_embedded", settings.append)
    for words in (["my-model"], ["my-model", "--ui"]):
        assert CliRunner().invoke(app, ["serve", "--backend", "transformers", *words]).exit_code == 0
    assert [given.ui for given in settings] == [False, True]


# --- what it needs ----------------------------------------------------------------------------------------------------


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    own = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gradio" else own(name))
    with pytest.raises(MissingExtraError, match=r"gradio.*reftune\[ui\]"):
        attach_page(FastAPI())


def test_on_vllm_the_page_has_one_process() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert not parser.parse_args([]).ui
    usual: dict[str, Any] = {"api_server_count": None, "headless": False, "uds": None}
    args = argparse.Namespace(**usual)
    allow_page(args)
    assert args.api_server_count == 1
    for changes, part in (({"api_server_count": 2}, "2"), ({"headless": True}, "headless"), ({"uds": "a"}, "uds")):
        with pytest.raises(ReftuneError, match=part):
            allow_page(argparse.Namespace(**{**usual, **changes}))
