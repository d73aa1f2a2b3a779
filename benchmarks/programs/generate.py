"""Seconds to the first new token (prefill) and of each further one (decode), of several variants in turn.

Request: `folder` of the model, `batch`, `prompt`, `new`, `rounds`, and `variants`: {"name", "adapters"}: 0 is the bare
model, 1 a model with one adapter on all layers, more a batch whose rows use that many adapters by turns.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

from benchmarks.cases import ALL, random_rows
from benchmarks.peers.protocol import synchronise
from reftune import ReftConfig


class Clock(LogitsProcessor):
    """Notes when the logits of each new token are there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        synchronise(scores.device.type)
        self.times.append(time.perf_counter())
        return scores


def adapted(base: Any, count: int) -> Any:
    """A model with `count` adapters that do change it."""
    config = ReftConfig(r=ALL.rank, positions=f"f{ALL.first}+l{ALL.last}", init="paper", task_type="CAUSAL_LM")
    model = get_peft_model(base, config, adapter_name="a0")
    for index in range(1, count):
        model.add_adapter(f"a{index}", config)
    return model.eval()


def load(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def once(model: Any, ids: torch.Tensor, new: int, names: list[str] | None, **more: Any) -> tuple[float, float | None]:
    """Seconds of the prefill, and of one decoded token; `more` goes to `generate`."""
    clock = Clock()
    given = more if names is None else {**more, "adapter_names": names}
    synchronise(ids.device.type)
    begin = time.perf_counter()
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        logits_processor=LogitsProcessorList([clock]),
        **given,
    )
    first, last = clock.times[0], clock.times[-1]
    return first - begin, (last - first) / (new - 1) if new > 1 else None


def main(request: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    counts = {variant["name"]: variant["adapters"] for variant in request["variants"]}
    most = max(counts.values())
    # one model for all mixtures, so that they differ in nothing else
    models = {0: load(request["folder"])} if 0 in counts.values() else {}
    if most:
        models.update(dict.fromkeys(range(1, most + 1), adapted(load(request["folder"]), most)))
    ids = torch.tensor([row for row, _ in random_rows(request["prompt"], count=request["batch"], response=0)])
    result: dict[str, Any] = {name: {"prefill_s": [], "decode_s": []} for name in counts}
    for index in range(request["rounds"] + 1):
        names = list(counts)
        for name in names if index % 2 else reversed(names):
            count = counts[name]
            mixture = [f"a{row % count}" for row in range(len(ids))] if most > 1 and count else None
            prefill, decode = once(models[count], ids, request["new"], mixture)
            if index == 0:
                continue  # warms up
            result[name]["prefill_s"].append(prefill)
            if decode is not None:
                result[name]["decode_s"].append(decode)
    return {"variants": result}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
