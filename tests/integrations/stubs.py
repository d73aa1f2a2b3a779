"""Interfaces of programs that are not installed, as far as our plug-ins use them.

Must not know: our plug-ins.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest


def put(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    """A module of this name with these members, and the packages that it is in, until the test ends."""
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        part = ".".join(parts[:i])
        if part not in sys.modules or i == len(parts):
            module = ModuleType(part)
            module.__path__ = []
            monkeypatch.setitem(sys.modules, part, module)
    vars(sys.modules[name]).update(members)
