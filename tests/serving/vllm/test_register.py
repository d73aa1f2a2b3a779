"""A vLLM that the plug-in does not know goes on without it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.serving.vllm.engines import prepare

pytestmark = pytest.mark.vllm

UNKNOWN = """
from vllm.v1.core import kv_cache_utils
from vllm.v1.engine.input_processor import InputProcessor
del kv_cache_utils._gen_prompt_embeds_extra_hash_keys
own = InputProcessor.process_inputs
import reftune.serving.vllm as plugin
assert plugin.problem() is not None
plugin.register()
plugin.register()
assert InputProcessor.process_inputs is own, "requests are taken though their cache has no keys"
print("PROBLEM", plugin.problem())
"""


def test_another_vllm_is_left_alone() -> None:
    prepare()
    done = subprocess.run([sys.executable, "-c", UNKNOWN], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "PROBLEM this version of vLLM is not known" in done.stdout
