"""Somebody who looks at the page in Chromium; whatever it asks for is its server's, and nothing goes wrong in it.

Must not know: which server it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.serving.page.stub import Stub, running

Visit = Callable[..., Any]
PATIENCE = 30.0


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """Opens the page, each time in a browser of its own."""
    contexts: list[Any] = []
    asked: list[tuple[str, str]] = []
    mistakes: list[str] = []

    def note(message: Any) -> None:
        # a browser calls a status of 400 and more an error, which the page tells
        if message.type == "error" and "Failed to load resource" not in message.text:
            mistakes.append(message.text)

    def open_page(url: str, tab: str = "chat", **options: Any) -> Any:
        contexts.append(browser.new_context(**{"locale": "en-GB", **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.on("request", lambda request: asked.append((url, request.url)))
        page.on("pageerror", lambda error: mistakes.append(str(error)))
        page.on("console", note)
        page.goto(f"{url}/ui#{tab}")
        until(page, "document.getElementById('server').textContent || document.getElementById('lock').open")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [one for url, one in asked if not one.startswith((f"{url}/", "blob:"))] == []
    assert mistakes == []


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def url(stub: Stub) -> Iterator[str]:
    with running(stub) as found:
        yield found


def until(page: Any, expression: str) -> None:
    """Wait until it is true in the page, which allows no functions made of strings."""
    deadline = time.monotonic() + PATIENCE
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"{expression} is never true"
        page.wait_for_timeout(30)


def say(page: Any, text: str) -> None:
    """Ask, and wait for the whole of both answers."""
    turns = page.locator(".turn").count()
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    page.locator(".turn").nth(turns).wait_for()
    page.locator("#stop").wait_for(state="hidden")


def answers(page: Any, turn: int = -1) -> list[str]:
    """Of the base model, and of the adapter if there is one."""
    return page.locator(".turn").nth(turn).locator(".words").all_inner_texts()
