"""`write_report`: the report of a comparison as files.

Must not know: what a report says.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import MissingExtraError
from ...files import write_text
from .blocks import Pictures
from .html import to_html
from .markdown import to_markdown
from .results import Results, read_results

__all__ = ["check_report", "write_report"]


def check_report() -> None:
    """Raises `MissingExtraError` if matplotlib is not installed: better before the runs than after."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", extra="report")


def write_report(
    results: Results | Mapping[str, Any] | Path | str, folder: Path | str, *, name: str = "report"
) -> tuple[Path, Path]:
    """Write `<name>.md`, with its pictures in `<name>_pictures`, and `<name>.html`, which holds its own.

    Each file is written whole or not at all, and none before all are made.  Returns the paths of the two.

    Raises:
        DataError: the results are malformed.
        MissingExtraError: matplotlib is not installed.
    """
    found = results if isinstance(results, Results) else read_results(results)
    check_report()
    from .content import sections  # noqa: PLC0415 — only now is it known that the extra is there
    from .svg import THEME  # noqa: PLC0415

    target, beside = Path(folder), f"{name}_pictures"
    parts = sections(found)
    pages = {
        target / f"{name}.md": to_markdown(found.title, parts, pictures=beside),
        target / f"{name}.html": to_html(found.title, parts, theme=THEME),
    }
    for section in parts:
        for block in section.blocks:
            for picture in block.pictures if isinstance(block, Pictures) else ():
                write_text(target / beside / f"{picture.name}.svg", picture.svg)
    for path, page in pages.items():
        write_text(path, page)
    markdown, html = pages
    return markdown, html
