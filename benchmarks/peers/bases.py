"""Base models of the workers that run with transformers 5: from a folder, or of a shape with random weights.

Must not know: reftune, methods.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from .protocol import Case


def load_base(case: Case) -> Any:
    """Frozen, and told not to fill a cache, as the Trainer of transformers 5 does."""
    if "folder" in case.model:
        base = AutoModelForCausalLM.from_pretrained(case.model["folder"], dtype=case.torch_dtype)
        base = base.to(case.device)
    else:
        config = LlamaConfig(**case.model["llama"])
        previous = torch.get_default_dtype()
        torch.set_default_dtype(case.torch_dtype)
        try:
            # made where it is needed: 8B parameters in float32 on the host would take a minute and 32 GB
            with torch.device(case.device):
                base = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(previous)
    base.config.use_cache = False
    return base.requires_grad_(False).eval()
