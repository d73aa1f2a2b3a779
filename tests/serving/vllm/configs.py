"""What the plug-in looks at of a `VllmConfig`, for tests without vLLM.

Must not know: vLLM.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


def llama_config(*, layers: int, width: int, device: str = "cpu", sequences: int = 8) -> Any:
    text = SimpleNamespace(num_hidden_layers=layers, hidden_size=width)
    return SimpleNamespace(
        model_config=SimpleNamespace(hf_text_config=text, architecture="LlamaForCausalLM"),
        scheduler_config=SimpleNamespace(max_num_seqs=sequences),
        device_config=SimpleNamespace(device_type=device),
    )
