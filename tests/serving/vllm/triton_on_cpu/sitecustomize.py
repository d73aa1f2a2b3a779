"""For tests only, on PYTHONPATH: lets what needs Triton run on a CPU, in Triton's interpreter.

vLLM's second runner starts only where Triton has a backend for the device, so one is pretended.  With
REFTUNE_TEST_BANK the plug-in takes its way of an accelerator, too.
"""

import os
import types

if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.backends import backends

    class Driver:
        @staticmethod
        def is_active() -> bool:
            return True

    backends.setdefault("cpu", types.SimpleNamespace(driver=Driver, compiler=None))

if os.environ.get("REFTUNE_TEST_BANK"):
    from reftune.serving.vllm import worker

    worker.needs_bank = lambda device: True
