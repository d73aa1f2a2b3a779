"""The page as people meet it: Chromium, a real server, a tiny model.

Must not know: how the page is made.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from reftune.serving.jobs.settings import FineTuning
from reftune.serving.plans import plan, sites_from_wire
from tests.serving.embedded.conftest import PATIENCE, Running, serving
from tests.serving.folders import BASE, KINDS, save_adapters, save_text_base
from tests.serving.page.conftest import Visit, answers, say, until
from tests.training.text_models import PAIRS

pytestmark = pytest.mark.slow

CHOSEN = ("two", "noreft-response", "steer")
QUESTION = "w5 w9 w12 w3 w30 w31"
TOKENS = 12


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_base(tmp_path_factory.mktemp("page") / "base")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_adapters(tmp_path_factory.mktemp("adapters"), {name: KINDS[name] for name in CHOSEN})


@pytest.fixture(scope="module")
def running(base: Path, adapters: dict[str, Path]) -> Iterator[Running]:
    folders = tuple(path.parent for path in adapters.values())[:1]
    with serving(base, adapters, ui=True, allow_runtime_loading=True, allowed_folders=folders) as found:
        yield found


def opened(visit: Visit, url: str, *, tokens: int = TOKENS, kind: str = "chat", adapter: str | None = None) -> Any:
    page = visit(url)
    page.locator("#chat-settings summary").click()
    page.fill("#max-tokens", str(tokens))
    page.select_option("#kind", kind)
    if adapter:
        page.select_option("#adapter", adapter)
    return page


def told(running: Running, model: str, *, kind: str = "chat", tokens: int = TOKENS) -> str:
    """The API's own answer, as it reads."""
    options: dict[str, Any] = {"model": model, "max_tokens": tokens, "temperature": 0}
    if kind == "text":
        return running.client().completions.create(prompt=QUESTION, **options).choices[0].text.strip()
    messages: Any = [{"role": "user", "content": QUESTION}]
    reply = running.client().chat.completions.create(messages=messages, **options)
    return (reply.choices[0].message.content or "").strip()


@pytest.mark.parametrize("name", CHOSEN)
def test_answers_and_marks_are_those_of_the_api(running: Running, visit: Visit, name: str) -> None:
    differ = False
    for kind in ("chat", "text"):
        page = opened(visit, running.url, kind=kind, adapter=name)
        assert page.locator("#adapter option").all_inner_texts() == list(CHOSEN)
        say(page, QUESTION)
        wanted = [told(running, model, kind=kind) for model in (BASE, name)]
        differ |= wanted[0] != wanted[1]
        assert answers(page) == wanted
        words = QUESTION.split() if kind == "text" else ["<user>", *QUESTION.split(), "<assistant>"]
        page.locator(".seen summary").click()
        marks = page.locator(".tokens > .token").evaluate_all("all => all.map(e => [e.firstChild.data, e.title])")
        assert [text.strip() for text, _ in marks] == words
        # the API says what is edited, and the rule says where
        listed = httpx.get(f"{running.url}/v1/reft_adapters").json()["data"]
        sites = sites_from_wire(next(one["sites"] for one in listed if one["id"] == name))
        parts: list[Any] = [None] * len(words)
        for edit in plan(sites, len(words)):
            for i in range(len(words))[edit.start : edit.stop]:
                parts[i] = edit.parts
        assert [bool(mark) for _, mark in marks] == [part is not None for part in parts]
        # one mark for one set of Φ
        pairs = {(mark, part) for (_, mark), part in zip(marks, parts, strict=True)}
        assert len(pairs) == len({mark for mark, _ in pairs}) == len({part for _, part in pairs})
    assert differ


def test_answers_appear_as_they_are_made(running: Running, visit: Visit) -> None:
    page = opened(visit, running.url, tokens=150, adapter="two")
    wanted = [told(running, model, tokens=150) for model in (BASE, "two")]
    running.brake.hold()
    try:
        page.fill("#prompt", QUESTION)
        page.click("#ask")
        found = [""]
        # the second may have to wait until the first lets it in
        for _ in range(60):
            if not all(found):
                running.brake.wait_until_held()
                running.brake.step()
                page.wait_for_timeout(30)
                found = answers(page)
        assert all(found)
        for text, whole in zip(found, wanted, strict=True):
            assert whole.startswith(text.rstrip("▍ ")) and len(text) < len(whole)
    finally:
        running.brake.release()
    page.locator("#stop").wait_for(state="hidden")
    assert answers(page) == wanted


@pytest.mark.parametrize("leaving", ["stop", "close"])
def test_who_leaves_ends_the_answers(running: Running, visit: Visit, leaving: str) -> None:
    page = opened(visit, running.url, tokens=2000)
    running.brake.hold()
    try:
        page.fill("#prompt", QUESTION)
        page.click("#ask")
        for _ in range(4):
            running.brake.wait_until_held()
            running.brake.step()
        until(page, "[...document.querySelectorAll('.words')].some(box => box.innerText)")
        if leaving == "stop":
            page.click("#stop")
        else:
            page.close()
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


def test_an_adapter_that_comes_and_goes(running: Running, adapters: dict[str, Path], visit: Visit) -> None:
    page = opened(visit, running.url)
    body = {"reft_name": "new", "reft_path": str(adapters["steer"])}
    httpx.post(f"{running.url}/v1/load_reft_adapter", json=body).raise_for_status()
    page.click("#tab-adapters")
    page.get_by_role("article", name="new").get_by_role("button", name="Chat").click()
    say(page, QUESTION)
    assert answers(page) == [told(running, BASE), told(running, "steer")]
    httpx.post(f"{running.url}/v1/unload_reft_adapter", json={"reft_name": "new"}).raise_for_status()
    say(page, QUESTION)
    assert page.locator(".turn").last.locator(".outcome.error").inner_text() == "the model 'new' does not exist"


def test_a_base_model_alone_and_the_end_of_its_server(base: Path, visit: Visit) -> None:
    with serving(base, {}, ui=True, api_key="s3cret-key") as running:
        page = visit(running.url)
        page.fill("#lock-key", "s3cret-key")
        page.press("#lock-key", "Enter")
        page.get_by_text(f"{BASE} · 0 adapters").wait_for()
        assert httpx.get(f"{running.url}/ui/").status_code == 200
        for path in ("/v1/models", "/v1/reft/marks", "/tokenize"):
            assert httpx.get(f"{running.url}{path}").status_code == 401
        page.locator("#chat-settings summary").click()
        page.fill("#max-tokens", str(10**6))
        say(page, QUESTION)
        assert "maximum context length" in page.locator(".turn .outcome.error").inner_text()
        page.fill("#max-tokens", "30")
        running.brake.hold()
        page.fill("#prompt", QUESTION)
        page.click("#ask")
        running.brake.wait_until_held()
        running.server.drain("test")
        # what is asked now is refused, what runs is finished, and both are told
        page.click("#tab-adapters")
        page.get_by_text("the server is stopping").wait_for()
        page.click("#tab-chat")
        running.brake.release()
        page.locator("#stop").wait_for(state="hidden")
        assert len(answers(page)[0].split()) > 5
        ended = threading.Event()
        for _ in range(int(PATIENCE * 20)):
            if not running.server.servers[0].is_serving():
                break
            ended.wait(0.05)
        assert not running.server.servers[0].is_serving(), "an open page holds the server"


def test_from_pasted_examples_to_an_answer(base: Path, visit: Visit, tmp_path: Path) -> None:
    with serving(base, {}, ui=True, fine_tuning=FineTuning(tmp_path / "jobs", device="cpu")) as running:
        page = visit(running.url, "train")
        pairs = [(pair["prompt"], pair["completion"].strip()) for pair in PAIRS]
        page.fill("#paste-text", "\n".join("\t".join(pair) for pair in pairs))
        page.click("#paste-add")
        page.click("#show-tokens")
        until(page, f"document.querySelectorAll('.preview .tokens').length === {len(pairs)}")
        first = page.locator(".preview .tokens").first.locator(".token")
        assert [text.strip() for text in first.evaluate_all("all => all.map(e => e.firstChild.data)")] == [
            "<user>", *pairs[0][0].split(), "<assistant>", *pairs[0][1].split(), "</s>"
        ]  # fmt: skip
        page.locator("#teach-settings summary").click()
        page.select_option("[data-setting=positions]", "l1")
        page.fill("[data-setting=layers]", "all")
        page.fill("[data-setting=n_epochs]", "40")
        page.fill("[data-setting=learning_rate_multiplier]", "30")
        page.fill("[data-setting=suffix]", "words")
        page.click("#start")
        page.get_by_role("button", name="Chat with it").wait_for(timeout=120_000)
        assert page.locator("#job .curve path.train").get_attribute("d").count("L") > 20
        page.get_by_role("button", name="Chat with it").click()
        say(page, pairs[0][0])
        name = page.input_value("#adapter")
        base_answer, answer = answers(page)
        assert (
            name.startswith(f"ft:{BASE}:words:") and answer.startswith(pairs[0][1].split()[0]) and answer != base_answer
        )
        page.click("#tab-adapters")
        card = page.get_by_role("article", name=name)
        assert "8 rows" in card.inner_text() and "l1, layers 0–1: loreft of rank 4" in card.inner_text()
        with page.expect_download() as download:
            card.get_by_role("button", name="Download").click()
        assert Path(download.value.path()).read_bytes().startswith(b"PK")
        card.get_by_role("button", name="Delete").click()
        card.get_by_role("button", name="Delete its files for good?").click()
        page.get_by_text("There are no adapters yet.").wait_for()
