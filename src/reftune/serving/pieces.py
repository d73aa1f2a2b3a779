"""Work beside running answers, in pieces: whoever holds the interpreter for long holds up every token of every stream.

A thread that computes in Python gives the interpreter away only every few milliseconds, and the thread that generates
asks for it at each of its operations; so a load of a second would be a second without tokens.  `breathe` gives it away
for as long as it was held.

Must not know: adapters, engines.
"""

from __future__ import annotations

import threading
import time

__all__ = ["breathe"]

HELD = 0.001
PAUSE = 0.001
_last = threading.local()


def breathe() -> None:
    """Let other threads go on, if this one has worked for a while; to be called in loops of unknown length."""
    now = time.perf_counter()
    if now - getattr(_last, "at", 0.0) >= HELD:
        time.sleep(PAUSE)
        _last.at = time.perf_counter()
