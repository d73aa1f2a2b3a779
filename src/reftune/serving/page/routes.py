"""What the page adds to a server: its files under `/ui`, and `/v1/reft/marks`, the marks on a prompt's tokens.

Must not know: which server it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any, NamedTuple

from fastapi import APIRouter, FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict

from ..cards import AdapterCard
from .marks import marked_tokens, summary, token_text

__all__ = ["PATH", "Cards", "attach_page"]

PATH = "/ui"
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "jsonl": "text/plain"}
HEADERS = {
    # scripts and styles are files of ours, and texts never become markup: the browser is told to hold us to it
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # another version of the server has other files
    "cache-control": "no-cache",
}

Cards = Callable[[Request], Mapping[str, AdapterCard]]


class File(NamedTuple):
    """A file of the page; `tag` changes with its content."""

    content: bytes
    media_type: str
    tag: str


class MarksRequest(BaseModel):
    """What `/tokenize` told of a prompt of the model."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    tokens: list[int]
    token_strs: list[str]
    spans: list[int] | None = None


@cache
def page_files() -> dict[str, File]:
    found = {}
    # what the page fills in for those who have no examples at hand: the demo's
    for item in (
        *files("reftune.serving.page").joinpath("static").iterdir(),
        files("reftune.data").joinpath("demo_inbox.jsonl"),
    ):
        content, kind = item.read_bytes(), TYPES[item.name.rpartition(".")[2]]
        found[item.name] = File(content, f"{kind}; charset=utf-8", f'"{sha256(content).hexdigest()[:16]}"')
    return found


def attach_page(app: FastAPI, *, cards: Cards) -> None:
    """Put the page at `/ui` of an app that has `/tokenize` and the OpenAI API; `cards` are those of its adapters now.

    The files are the same for everybody and hold no secret: they are given without a key.  What they ask the server for
    is not.
    """
    router = APIRouter()

    # an address that is relative to this one, so that it is right behind a proxy's prefix
    @router.api_route(PATH, methods=["GET", "HEAD"], include_in_schema=False)
    async def door() -> Response:
        return Response(status_code=307, headers={"location": f"{PATH.lstrip('/')}/"})

    @router.api_route(f"{PATH}/{{name}}", methods=["GET", "HEAD"], include_in_schema=False)
    @router.api_route(f"{PATH}/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request, name: str = "index.html") -> Response:
        file = page_files().get(name)
        if file is None:
            return Response("there is no such page\n", 404, HEADERS, "text/plain")
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=HEADERS)
        return Response(file.content, 200, {**HEADERS, "etag": file.tag}, file.media_type)

    @router.post("/v1/reft/marks")
    def marks(body: MarksRequest, request: Request) -> Any:
        return marks_of(body, cards(request).get(body.model))

    app.include_router(router)


def marks_of(body: MarksRequest, card: AdapterCard | None) -> dict[str, Any]:
    """Each token as it reads and the number of what edits it, all that edits, and a line about it."""
    count = min(len(body.tokens), len(body.token_strs))
    ids, texts, spans = body.tokens[:count], body.token_strs[:count], body.spans and body.spans[:count]
    if card is None:
        return {"tokens": [{"text": token_text(text), "mark": None} for text in texts], "marks": [], "summary": None}
    found = marked_tokens(texts, ids, card.as_dict(), spans)
    marks = list(dict.fromkeys(mark for _, mark in found if mark is not None))
    numbers = {mark: number for number, mark in enumerate(marks)}
    tokens = [{"text": text, "mark": None if mark is None else numbers[mark]} for text, mark in found]
    return {"tokens": tokens, "marks": marks, "summary": summary(ids, card.as_dict(), spans)}
