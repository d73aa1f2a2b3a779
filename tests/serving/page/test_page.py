"""The page without a browser: its files, marks, and what both servers tell it."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from transformers.convert_slow_tokenizer import bytes_to_unicode
from typer.testing import CliRunner

from reftune.cli.app import app
from reftune.errors import ReftuneError
from reftune.serving.cards import AdapterCard
from reftune.serving.embedded import ServeSettings
from reftune.serving.page import attach_page
from reftune.serving.page.marks import marked_tokens, summary, token_text
from reftune.serving.page.routes import page_files
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


# --- what the page adds to a server ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    card = AdapterCard("d", (((0, "f1+l1", "group"),),), ((0, 1),), ())
    attach_page(app, cards=lambda _: {"mine": card})
    return TestClient(app, root_path="/prefix")


def test_the_files_say_that_nothing_comes_from_elsewhere(client: TestClient) -> None:
    for name in page_files():
        reply = client.get(f"/ui/{name}")
        assert reply.status_code == 200 and reply.headers["x-content-type-options"] == "nosniff", name
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        again = client.get(f"/ui/{name}", headers={"if-none-match": reply.headers["etag"]})
        assert again.status_code == 304 and not again.content
        if name.endswith((".html", ".css", ".js")):
            # addresses as in namespaces of XML are never loaded
            addresses = re.findall(r"https?://[\w./]+", reply.text)
            assert set(addresses) <= {"http://www.w3.org/2000/svg"}, (name, addresses)


def test_markup_is_never_made_of_texts() -> None:
    """The browser refuses it as well, by the header; a page that tried would break there."""
    for name, file in page_files().items():
        for word in (b"innerHTML", b"outerHTML", b"insertAdjacentHTML", b"document.write", b"eval(", b"style="):
            assert word not in file.content, name


def test_the_door_is_right_behind_a_prefix(client: TestClient) -> None:
    reply = client.get("/ui", follow_redirects=False)
    # from /prefix/ui that is /prefix/ui/
    assert reply.status_code == 307 and reply.headers["location"] == "ui/"
    assert client.get("/ui/").text.startswith("<!doctype html>")
    assert client.head("/ui/").status_code == 200
    for path in ("/ui/routes.py", "/ui/..%2froutes.py", "/ui/static/app.js", "/ui/none"):
        assert client.get(path).status_code == 404, path


def test_the_marks_of_a_prompt(client: TestClient) -> None:
    body = {"model": "mine", "tokens": [5, 6, 7], "token_strs": ["▁a", "Ġb", "c"]}
    found = client.post("/v1/reft/marks", json=body).json()
    one, two = "f1+l1 (Φ 1 of 2), layers 0–1", "f1+l1 (Φ 2 of 2), layers 0–1"
    assert found["marks"] == [one, two]
    assert found["summary"] == "2 of 3 prompt tokens are edited, and none of the answer"
    assert [(token["text"], token["mark"]) for token in found["tokens"]] == [(" a", 0), (" b", None), ("c", 1)]
    # a model that is no ReFT adapter edits nothing
    base = client.post("/v1/reft/marks", json={**body, "model": "base"}).json()
    assert [token["mark"] for token in base["tokens"]] == [None] * 3 and base["summary"] is None
    assert client.post("/v1/reft/marks", json={**body, "tokens": "x"}).status_code == 422


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


def test_on_vllm_the_page_needs_a_port() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert not parser.parse_args([]).ui
    usual: dict[str, Any] = {"headless": False, "uds": None}
    allow_page(argparse.Namespace(**usual))
    for changes, part in (({"headless": True}, "headless"), ({"uds": "a"}, "uds")):
        with pytest.raises(ReftuneError, match=part):
            allow_page(argparse.Namespace(**{**usual, **changes}))
