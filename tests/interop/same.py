"""What every adapter that was converted is held to.

Must not know: from where it came.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from reftune.models import load_adapter
from tests.interop.base_model import IDS, base_model

__all__ = ["assert_same_logits"]


def assert_same_logits(case: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter's logits are those that the other library wrote beside its checkpoint, to 1e-5."""
    # the tiny base has no tokenizer
    monkeypatch.setattr("reftune.models.load_tokenizer", lambda name: None)
    model: Any
    model, _ = load_adapter(adapter)
    ids = torch.tensor(IDS)
    with torch.no_grad():
        ours, bare = model(ids).logits, base_model()(ids).logits
    theirs = torch.load(case / "logits.pt", weights_only=True)
    assert (theirs - bare).abs().max() > 0.1, "the case edits nothing"
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
