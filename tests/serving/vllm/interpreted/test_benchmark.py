"""What `scripts/gpu.sh` says of the kernel on a GPU, here in Triton's interpreter: right if it is, and wrong if not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.serving.vllm.engines import needs_interpreter, prepare

pytestmark = [pytest.mark.vllm, needs_interpreter]
prepare()


@pytest.fixture(autouse=True)
def _few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes its time for each."""
    from benchmarks.gpu import edit

    monkeypatch.setattr(edit, "TOKENS", (1, 17))


@pytest.mark.parametrize(("dtype", "summed"), [("float32", True), ("float16", False)])
def test_the_kernel_is_right_by_the_benchmark_s_own_reference(dtype: str, summed: bool) -> None:
    from benchmarks.gpu import edit

    found = edit.correctness(3, dtype, summed, (96,), "cpu")
    assert found["right"] and found["cases"] == len(edit.TOKENS)
    assert 0 < found["worst_of_allowed"] <= 1


@pytest.mark.parametrize("row", [0, 3, -2, -1])
def test_a_wrong_row_of_the_bank_is_seen(monkeypatch: pytest.MonkeyPatch, row: int) -> None:
    from benchmarks.gpu import edit

    packed = edit.Bank.packed

    def wrong(self: Any, maps: Any) -> torch.Tensor:
        found = packed(self, maps)
        # of the second layer, which is the one that is edited; one element of A, of B, of g and of v
        found[1, row, 5] += 0.1
        return found

    monkeypatch.setattr(edit.Bank, "packed", wrong)
    found = edit.correctness(3, "float32", True, (96,), "cpu")
    assert not found["right"] and found["worst_of_allowed"] > 1


def test_the_part_measures_the_kernel(tmp_path: Path) -> None:
    import json

    from benchmarks.gpu import edit

    edit.main(["--tiny", "--device", "cpu", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "edit.json").read_text())
    assert found["complete"]
    assert [row["right"] for key, row in found["measurements"].items() if key.startswith("rank")] == [True, True]
