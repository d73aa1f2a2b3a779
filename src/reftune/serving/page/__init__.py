"""The chat page of a server, under `/ui`: base model and adapter side by side, and the tokens that are edited.

`marks` (what to show of a prompt), `asks` (what the page asks its server, by HTTP), `gate` (what of Gradio can be
reached, and by whom), `blocks` (the page itself).  Gradio and httpx are in the extra `ui`; this module imports neither.

Must not know: how a server answers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from ...errors import MissingExtraError

__all__ = ["PATH", "attach_page", "check_page"]

PATH = "/ui"


def check_page() -> None:
    """Raises `MissingExtraError` if the page's packages are not installed."""
    for package in ("gradio", "httpx"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra="ui")


def attach_page(app: Any, *, keys: Sequence[str] = (), scheme: str = "http") -> None:
    """Put the page at `/ui` of a FastAPI app that has the routes of `asks`.

    keys: those of the server's API.  Where there are any, the page asks for one of them, as the password of HTTP's
    basic authentication, and answers nothing without; browsers are not told them.  scheme: what the server itself
    speaks.

    Raises:
        MissingExtraError: Gradio is not installed.
    """
    check_page()
    from .blocks import mount  # noqa: PLC0415 — only now is it known that the extra is there
    from .gate import PageGate  # noqa: PLC0415

    mount(app, path=PATH, key=keys[0] if keys else None, scheme=scheme)
    app.add_middleware(PageGate, path=PATH, keys=tuple(keys))
