"""The chat page as people meet it: Chromium, a real server, a tiny model.

Must not know: how the page is made.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from reftune.serving.page import attach_page
from reftune.serving.plans import plan, sites_from_wire
from tests.serving.embedded.conftest import PATIENCE, Running, serving
from tests.serving.folders import BASE, KINDS, save_adapters, save_text_base

pytestmark = pytest.mark.slow

CHOSEN = ("loreft", "two", "red-prompt", "noreft-response", "steer")
QUESTION = "w5 w9 w12 w3 w30 w31"
TOKENS = 12
HTML = '<img src="x" onerror="window.hit = 1"><b>bold</b>'


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_base(tmp_path_factory.mktemp("page") / "base")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_adapters(tmp_path_factory.mktemp("adapters"), {name: KINDS[name] for name in CHOSEN})


class Visitor:
    """Somebody who looks at the page, and what their browser notices."""

    def __init__(self, context: Any, url: str) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE * 1000)
        self.asked: list[str] = []
        self.mistakes: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.mistakes.append(str(error)))
        self.page.goto(f"{url}/ui")
        self.wait(lambda: bool(self.text("models")), "the page never told its models")

    def wait(self, is_so: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not is_so():
            assert time.monotonic() < deadline, f"{otherwise}; {self.mistakes}; {self.text('note')}"
            self.page.wait_for_timeout(30)

    def text(self, name: str) -> str:
        return self.page.locator(f"#{name} textarea").input_value()

    @property
    def answers(self) -> tuple[str, str]:
        return self.text("base-answer"), self.text("adapter-answer")

    def menu(self) -> list[str]:
        self.page.locator("#adapter input").click()
        found = self.page.locator("#adapter [role=option]").all_inner_texts()
        self.page.keyboard.press("Escape")
        return [text.replace("✓", "").strip() for text in found]

    def choose(self, adapter: str) -> None:
        field = self.page.locator("#adapter input")
        field.click()
        field.fill(adapter)
        field.press("Enter")
        assert field.input_value() == adapter

    def ask(self, prompt: str, *, kind: str = "chat message", tokens: int = TOKENS) -> None:
        self.page.locator("#max-tokens input").fill(str(tokens))
        self.page.get_by_label(kind).check()
        self.page.locator("#prompt textarea").fill(prompt)
        self.page.locator("#ask").click()

    def ask_and_wait(self, prompt: str, wanted: tuple[str, str], **options: Any) -> None:
        self.ask(prompt, **options)
        self.wait(lambda: self.answers == wanted, f"{wanted} was never there, but {self.answers}")

    def marks(self) -> list[tuple[str, str | None]]:
        """Each token, and what the legend says of its colour."""
        # at one moment: the page may be about to change
        legend, tokens = self.page.evaluate(
            """[".legend-item", ".token"].map(kind => [...document.querySelectorAll("#tokens " + kind)]
               .map(e => [e.style.backgroundColor, e.innerText.trim()]))"""
        )
        words = dict(legend)
        assert len(words) == len(legend), "two marks look the same"
        return [(text, words.get(colour)) for colour, text in tokens]


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visitor]]:
    """Opens the page in a browser of its own; whatever it is asked for is the server's, and nothing goes wrong."""
    contexts: list[Any] = []
    visitors: list[tuple[str, Visitor]] = []

    def open_page(url: str, **options: Any) -> Visitor:
        contexts.append(browser.new_context(**options))
        visitors.append((url, Visitor(contexts[-1], url)))
        return visitors[-1][1]

    yield open_page
    for context in contexts:
        context.close()
    for url, visitor in visitors:
        assert [asked for asked in visitor.asked if not asked.startswith((f"{url}/ui", "data:", "blob:"))] == []
        assert visitor.mistakes == []


@pytest.fixture(scope="module")
def running(base: Path, adapters: dict[str, Path]) -> Iterator[Running]:
    folders = tuple(path.parent for path in adapters.values())[:1]
    with serving(base, adapters, ui=True, allow_runtime_loading=True, allowed_folders=folders) as found:
        yield found


def told(running: Running, model: str, prompt: str, *, kind: str = "chat message", tokens: int = TOKENS) -> str:
    """The API's own answer."""
    options: dict[str, Any] = {"model": model, "max_tokens": tokens, "temperature": 0}
    if kind == "plain text":
        return running.client().completions.create(prompt=prompt, **options).choices[0].text
    messages: Any = [{"role": "user", "content": prompt}]
    return running.client().chat.completions.create(messages=messages, **options).choices[0].message.content or ""


# --- answers and marks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHOSEN)
def test_answers_are_those_of_the_api(running: Running, visit: Callable[..., Visitor], name: str) -> None:
    visitor = visit(running.url)
    assert visitor.menu() == list(CHOSEN)
    visitor.choose(name)
    differ = False
    for kind in ("chat message", "plain text"):
        wanted = tuple(told(running, model, QUESTION, kind=kind) for model in (BASE, name))
        differ |= wanted[0] != wanted[1]
        visitor.ask_and_wait(QUESTION, wanted, kind=kind)  # type: ignore[arg-type]
        words = QUESTION.split() if kind == "plain text" else ["<user>", *QUESTION.split(), "<assistant>"]
        visitor.wait(lambda words=words: [token for token, _ in visitor.marks()] == words, "other tokens")
        found = visitor.marks()
        # the API says what is edited, and the rule says where
        listed = httpx.get(f"{running.url}/v1/reft_adapters").json()["data"]
        sites = sites_from_wire(next(one["sites"] for one in listed if one["id"] == name))
        parts: list[Any] = [None] * len(words)
        for edit in plan(sites, len(words)):
            for i in range(len(words))[edit.start : edit.stop]:
                parts[i] = edit.parts
        assert [mark is not None for _, mark in found] == [part is not None for part in parts]
        # one mark for one set of Φ
        pairs = {(mark, part) for (_, mark), part in zip(found, parts, strict=True)}
        assert len(pairs) == len({mark for mark, _ in pairs}) == len({part for _, part in pairs})
    assert differ


def test_marks_name_positions_and_layers(running: Running, visit: Callable[..., Visitor]) -> None:
    visitor = visit(running.url)
    visitor.choose("two")
    first, last = "f2, layers 0", "l1, layers 1"
    wanted = [("<user>", first), ("w1", first), ("w2", None), ("<assistant>", last)]
    visitor.ask("w1 w2")
    visitor.wait(lambda: visitor.marks() == wanted, "other marks")
    assert visitor.text("note") == "3 of 4 prompt tokens are edited, and none of the answer"


def test_answers_appear_as_they_are_made(running: Running, visit: Callable[..., Visitor]) -> None:
    visitor = visit(running.url)
    visitor.choose("loreft")
    wanted = (told(running, BASE, QUESTION, tokens=150), told(running, "loreft", QUESTION, tokens=150))
    running.brake.hold()
    try:
        visitor.ask(QUESTION, tokens=150)
        # the second may have to wait until the first lets it in
        for _ in range(60):
            if not all(visitor.answers):
                running.brake.wait_until_held()
                running.brake.step()
                visitor.page.wait_for_timeout(30)
        visitor.wait(lambda: all(visitor.answers), "nothing is there before the end")
        for text, whole in zip(visitor.answers, wanted, strict=True):
            assert whole.startswith(text) and len(text) < len(whole)
    finally:
        running.brake.release()
    visitor.wait(lambda: visitor.answers == wanted, "the answers never ended")


@pytest.mark.parametrize("leaving", ["stop", "close"])
def test_who_leaves_ends_the_answers(running: Running, visit: Callable[..., Visitor], leaving: str) -> None:
    visitor = visit(running.url)
    running.brake.hold()
    try:
        visitor.ask(QUESTION, tokens=2000)
        for _ in range(4):
            running.brake.wait_until_held()
            running.brake.step()
        visitor.wait(lambda: any(visitor.answers), "no answer began")
        if leaving == "stop":
            visitor.page.locator("#stop").click()
        else:
            visitor.page.close()
        left = 1000
        # a call at a time, so that the answers cannot have come to their end
        while running.engine.running or running.engine.waiting:
            left -= 1
            assert left, "the answers go on"
            with running.brake.changed:
                running.brake.permits = 1
                running.brake.changed.notify_all()
            time.sleep(0.02)
    finally:
        running.brake.release()


# --- adapters come and go ---------------------------------------------------------------------------------------------


def test_an_adapter_that_is_loaded_at_run_time(
    running: Running, adapters: dict[str, Path], visit: Callable[..., Visitor]
) -> None:
    visitor = visit(running.url)
    assert "new" not in visitor.menu()
    body = {"reft_name": "new", "reft_path": str(adapters["steer"])}
    httpx.post(f"{running.url}/v1/load_reft_adapter", json=body).raise_for_status()
    visitor.page.locator("#refresh").click()
    visitor.wait(lambda: visitor.text("models").endswith(f"{len(CHOSEN) + 1} adapters"), "it does not appear")
    assert visitor.menu() == [*CHOSEN, "new"]
    visitor.choose("new")
    visitor.ask_and_wait(QUESTION, (told(running, BASE, QUESTION), told(running, "steer", QUESTION)))
    httpx.post(f"{running.url}/v1/unload_reft_adapter", json={"reft_name": "new"}).raise_for_status()
    visitor.ask(QUESTION)
    visitor.wait(lambda: visitor.text("note") == "[the model 'new' does not exist]", "it is still there")
    visitor.page.locator("#refresh").click()
    visitor.wait(lambda: visitor.page.locator("#adapter input").input_value() == CHOSEN[0], "it is still chosen")
    assert visitor.menu() == list(CHOSEN)


def test_a_base_model_alone(base: Path, visit: Callable[..., Visitor]) -> None:
    with serving(base, {}, ui=True) as running:
        visitor = visit(running.url)
        assert visitor.text("models") == f"base model {BASE}; no adapters are loaded"
        assert visitor.menu() == []
        visitor.ask_and_wait(QUESTION, (told(running, BASE, QUESTION), "no adapter is chosen"))
        assert {mark for _, mark in visitor.marks()} == {None}
        visitor.ask("")
        visitor.wait(lambda: visitor.text("note") == "write a prompt first", "an empty prompt was sent")
        # what the server refuses is told
        visitor.ask(QUESTION, tokens=10**6)
        visitor.wait(lambda: "maximum context length" in visitor.answers[0], "the reason is not told")


# --- the server around it ---------------------------------------------------------------------------------------------


def test_the_key(base: Path, adapters: dict[str, Path], browser: Any, visit: Callable[..., Visitor]) -> None:
    with serving(base, adapters, ui=True, api_key="s3cret-key") as running:
        for path in ("/ui", "/ui/", "/ui/config", "/v1/models", "/v1/reft_adapters"):
            assert httpx.get(f"{running.url}{path}").status_code == 401
        visitor = visit(running.url, http_credentials={"username": "me", "password": "s3cret-key"})
        seen: list[str] = []
        visitor.page.on("response", lambda reply: seen.append(str(reply.headers)))
        client = running.client(api_key="s3cret-key")
        messages: Any = [{"role": "user", "content": QUESTION}]
        wanted = tuple(
            client.chat.completions.create(model=model, messages=messages, max_tokens=TOKENS, temperature=0)
            .choices[0]
            .message.content
            or ""
            for model in (BASE, "loreft")
        )
        visitor.ask_and_wait(QUESTION, wanted)  # type: ignore[arg-type]
        assert seen and "s3cret-key" not in "".join(seen) + visitor.page.content()
        # the password of the page is no key of the API
        assert httpx.get(f"{running.url}/v1/models", auth=("me", "s3cret-key")).status_code == 401


def test_the_servers_own_routes_stay_as_they_are(running: Running) -> None:
    assert httpx.get(f"{running.url}/health").status_code == 200
    missing = httpx.get(f"{running.url}/nothing")
    assert missing.status_code == 404 and set(missing.json()) == {"error"}
    large = httpx.post(f"{running.url}/ui/gradio_api/queue/join", content=b"x" * (5 << 20))
    assert large.status_code == 413


@pytest.mark.parametrize("is_asked", [False, True])
def test_an_open_page_does_not_hold_the_end(base: Path, visit: Callable[..., Visitor], is_asked: bool) -> None:
    with serving(base, {}, ui=True) as running:
        visitor = visit(running.url)
        wanted = told(running, BASE, QUESTION, tokens=30)
        if is_asked:
            running.brake.hold()
            visitor.ask(QUESTION, tokens=30)
            running.brake.wait_until_held()
            running.server.drain("test")
            # what is asked now is refused, what runs is finished, and both are shown
            other = visit(running.url)
            other.wait(lambda: other.text("models") == "[the server is stopping]", "it is not told")
            running.brake.release()
            visitor.wait(lambda: visitor.answers[0] == wanted, "the answer was cut off")
        running.server.drain("test")
        visitor.wait(lambda: not running.server.started or not running.server.servers[0].is_serving(), "it goes on")


# --- markup is text ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parrot() -> Iterator[str]:
    """A server whose models say what they are told, and whose adapter's name is markup."""
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> Any:
        return {"data": [{"id": f"base{HTML}", "parent": None}, {"id": HTML, "parent": "base"}]}

    @app.get("/v1/reft_adapters")
    async def adapters() -> Any:
        return {"data": [{"id": HTML, "digest": "d", "sites": [[[0, "f1", "all"]]], "layers": [[0]]}]}

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Any:
        words = (await request.json())["prompt"].split()
        return {"token_strs": words, "tokens": list(range(len(words))), "count": len(words)}

    @app.post("/v1/completions")
    async def completions(request: Request) -> Any:
        body = await request.json()
        if body["model"] == HTML:
            return JSONResponse({"error": {"message": HTML}}, 400)

        def chunks() -> Iterator[str]:
            import json

            for word in body["prompt"].split(" "):
                yield f"data: {json.dumps({'choices': [{'text': f'{word} '}]})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")

    attach_page(app)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_markup_is_shown_as_text(parrot: str, visit: Callable[..., Visitor]) -> None:
    visitor = visit(parrot)
    assert visitor.text("models") == f"base model base{HTML}; 1 adapter"
    assert visitor.page.locator("#adapter input").input_value() == HTML
    assert visitor.menu() == [HTML]
    prompt = f"{HTML} <script>window.hit=1</script> end"
    visitor.ask_and_wait(prompt, (f"{prompt} ", f"[{HTML}]"), kind="plain text")
    assert [token for token, _ in visitor.marks()] == prompt.split()
    assert visitor.page.evaluate("window.hit") is None
    for name in ("tokens", "adapter", "models", "note", "base-answer", "adapter-answer"):
        assert visitor.page.locator(f"#{name}").locator("img, b, script").count() == 0
