"""Errors that users meet.  Every message names the bad value and the valid ones.

Must not know: anything of the rest of the package.
"""

from __future__ import annotations

__all__ = ["DataError", "MissingExtraError", "PositionError", "ReftuneError"]


class ReftuneError(Exception):
    """Base of all errors that reftune itself raises."""


class PositionError(ReftuneError, ValueError):
    """Which tokens are the prompt cannot be known, or the positions asked for cannot be had."""


class DataError(ReftuneError, ValueError):
    """A data file or a row of it is unusable; the message names file and row."""


class MissingExtraError(ReftuneError, ImportError):
    """A package of an optional extra is not installed; the message says how to install it."""

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed: run `pip install 'reftune[{extra}]'`"
        )
