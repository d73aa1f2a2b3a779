"""What `import reftune` costs: users who import it only to register the method should not notice it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_PROGRAM = """
import time
import peft
start = time.process_time()
import reftune
print(time.process_time() - start)
"""


def _seconds_on_top_of_peft() -> float:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


@pytest.mark.slow
def test_import_adds_little_to_peft() -> None:
    # CPU seconds, the best of three: a shared machine makes single measurements too long, never too short.
    seconds: list[float] = []
    for _ in range(3):
        seconds.append(_seconds_on_top_of_peft())
        if min(seconds) < 0.3:
            break
    assert min(seconds) < 0.3, f"import reftune took {min(seconds):.2f} CPU s on top of peft"


def test_public_names_are_pinned() -> None:
    import reftune

    assert reftune.__all__ == [
        "INTERVENTIONS",
        "DataError",
        "Gates",
        "Intervention",
        "InterventionOptions",
        "MissingExtraError",
        "PositionError",
        "PositionSpec",
        "PromptStyle",
        "ReftCollator",
        "ReftConfig",
        "ReftLayer",
        "ReftModel",
        "ReftTrainer",
        "ReftuneError",
        "build_dataset",
        "encode_prompt",
        "generate_texts",
        "load_records",
        "parameter_groups",
        "parse_positions",
        "register",
        "tokenize_record",
    ]
    assert all(getattr(reftune, name) is not None for name in reftune.__all__)
