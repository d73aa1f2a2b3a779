"""The command `reftune`; one file a verb.

Must not be imported by anything else of the package.
"""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the command."""
    missing = [name for name in ("typer", "rich", "yaml", "datasets") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"reftune: the command needs {', '.join(missing)}: run `pip install 'reftune[cli]'`")
    from .app import run  # noqa: PLC0415 — only now is it known that the extra is there

    run()
