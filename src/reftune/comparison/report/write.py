"""`write_report`: the report of a comparison as files.

Must not know: HTML, Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...reporting import check_report, write_page
from .results import Results, read_results

__all__ = ["write_report"]


def write_report(
    results: Results | Mapping[str, Any] | Path | str, folder: Path | str, *, name: str = "report"
) -> tuple[Path, Path]:
    """The files of `write_page`.

    Raises:
        DataError: the results are malformed.
        MissingExtraError: matplotlib is not installed.
    """
    found = results if isinstance(results, Results) else read_results(results)
    check_report()
    from .content import sections  # noqa: PLC0415 — only now is it known that the extra is there

    return write_page(found.title, sections(found), Path(folder), name=name)
