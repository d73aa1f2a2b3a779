"""The Hugging Face Hub: names of what is there, and how it is asked.

Must not know: what is on it.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

__all__ = ["HUB_NAME", "hub_arguments"]

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def hub_arguments(name: str | Path) -> dict[str, Any]:
    """Where the Hub cannot be reached, only the cache is asked: without it each file is tried for half a minute."""
    return {} if Path(name).is_dir() or _hub_is_reachable() else {"local_files_only": True}


def _hub_is_reachable() -> bool:
    """Whether the Hub's name can be resolved; behind a proxy that is its business, offline nobody asks."""
    if getproxies() or os.environ.get("HF_HUB_OFFLINE"):
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True
