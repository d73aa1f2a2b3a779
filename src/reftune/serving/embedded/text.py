"""Tokens to text as they come: whole characters only, and never a part of a stop string.

Both classes take pieces and return what can be shown; how the pieces were cut makes no difference to the whole.

Must not know: requests, models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Detokeniser", "StopHolder"]

BROKEN = "\N{REPLACEMENT CHARACTER}"
CONTEXT = 8


class Detokeniser:
    """Decodes one token after another.  The pieces together are the text of all tokens.

    What a token reads like can depend on those before it (a space in front, the bytes of one character in several
    tokens), so a window of tokens is decoded with and without the new ones, and the difference is the new text.  The
    window moves on only when it ends with a whole character.
    """

    def __init__(self, tokenizer: Any, *, context: Sequence[int] = ()) -> None:
        """`context`: tokens that the text goes on from, such as a prompt to be completed; they are not repeated."""
        self.tokenizer = tokenizer
        self.window = list(context[-CONTEXT:])
        self.known = len(self.window)

    def push(self, token: int) -> str:
        """The text that this token completes; empty in the midst of a character."""
        self.window.append(token)
        before, after = self._decode(self.window[: self.known]), self._decode(self.window)
        new = _difference(before, after)
        if not new or after.endswith(BROKEN):
            return ""
        self.window, self.known = self.window[self.known :], len(self.window) - self.known
        return new

    def flush(self) -> str:
        """What is left at the end, broken characters as the sign for them."""
        before, after = self._decode(self.window[: self.known]), self._decode(self.window)
        self.known = len(self.window)
        return _difference(before, after)

    def _decode(self, tokens: list[int]) -> str:
        text = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def _difference(before: str, after: str) -> str:
    # a context may end in the midst of a character, which the new tokens make whole
    if after.startswith(before):
        return after[len(before) :]
    same = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(after))
    return after[same:]


class StopHolder:
    """Passes text on up to the first stop string, and holds back what may become one.

    The stop string that is complete first ends the text; of two that are complete at once, the longer.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stop for stop in stops if stop)
        self.held = ""
        self.stopped: str | None = None

    def push(self, text: str) -> str:
        """What can be shown; once `stopped` names a stop string, nothing more."""
        if self.stopped is not None:
            return ""
        if not self.stops:
            return text
        text, self.held = self.held + text, ""
        found = [(start + len(stop), start, stop) for stop in self.stops if (start := text.find(stop)) >= 0]
        if found:
            _, start, self.stopped = min(found)
            return text[:start]
        held = self._beginning(text)
        shown, self.held = text[: len(text) - held], text[len(text) - held :]
        return shown

    def flush(self) -> str:
        """What was held back and has become no stop string."""
        text, self.held = self.held, ""
        return text

    def _beginning(self, text: str) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        longest = max(len(stop) for stop in self.stops) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.stops):
                return length
        return 0
