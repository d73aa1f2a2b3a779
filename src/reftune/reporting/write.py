"""`write_page`: a report as files.

Must not know: what a report says.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ..errors import MissingExtraError
from ..files import write_text
from .blocks import Pictures, Section
from .page import to_html, to_markdown

__all__ = ["check_report", "write_page"]


def check_report() -> None:
    """Raises `MissingExtraError` if matplotlib is not installed: better before the runs than after."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", extra="report")


def write_page(title: str, sections: Sequence[Section], folder: Path, *, name: str = "report") -> tuple[Path, Path]:
    """Write `<name>.md`, with its pictures in `<name>_pictures`, and `<name>.html`, which holds its own.

    Each file is written whole or not at all, and none before all are made.  Returns the paths of the two.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_report()
    from .svg import THEME  # noqa: PLC0415 — only now is it known that the extra is there

    beside = f"{name}_pictures"
    pages = {
        folder / f"{name}.md": to_markdown(title, sections, pictures=beside),
        folder / f"{name}.html": to_html(title, sections, theme=THEME),
    }
    for section in sections:
        for block in section.blocks:
            for picture in block.pictures if isinstance(block, Pictures) else ():
                write_text(folder / beside / f"{picture.name}.svg", picture.svg)
    for path, page in pages.items():
        write_text(path, page)
    markdown, html = pages
    return markdown, html
