"""Stanford Alpaca's prompt as the ReFT paper's tasks have it: with a line break after `### Response:`.

Must not know: any one set.
"""

from __future__ import annotations

from ...data.templates import alpaca_text

__all__ = ["alpaca_prompt"]


def alpaca_prompt(instruction: str, extra: str = "") -> dict[str, str]:
    """`reftune.data` ends its prompt with the colon, as Alpaca itself did, so the text is given whole."""
    return {"prompt": alpaca_text({"instruction": instruction, "input": extra}) + "\n"}
