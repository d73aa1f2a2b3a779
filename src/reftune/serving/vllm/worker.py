"""In a worker of vLLM: hooks on the blocks, and the edits of each step told to them.  Both of vLLM's runners are known.

Must not know: the server, names of adapters.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..folded import FoldedAdapter
from . import cpu_lora
from .architectures import ARCHITECTURES, blocks_of
from .bank import Bank
from .edits import Edits, Window, activate, active
from .options import KEY, Options, options_of
from .requests import Wire, wire_of

__all__ = ["install"]

logger = logging.getLogger("vllm.reftune")

LAYER = "_reftune_layer"


def install() -> None:
    """Attach to a model when a worker has loaded it, and give workers the calls by which adapters come and go."""
    from vllm.v1.worker.gpu_worker import Worker  # noqa: PLC0415 — in processes of vLLM only
    from vllm.v1.worker.worker_base import WorkerBase  # noqa: PLC0415

    load_model = Worker.load_model

    def loaded(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = load_model(self, *args, **kwargs)
        # it is there if the engine was started with the plug-in
        if isinstance(self.vllm_config.additional_config, dict) and KEY in self.vllm_config.additional_config:
            options = options_of(self.vllm_config.additional_config)
            if options is not None:
                attach(self.model_runner, options)
        return result

    Worker.load_model = loaded
    WorkerBase.reft_load = reft_load
    WorkerBase.reft_unload = reft_unload
    WorkerBase.reft_info = reft_info


# --- calls from the engine: they must not raise, since other workers' answers would be left unread ------------------


def reft_load(worker: Any, content: bytes) -> str | None:
    """Keep an adapter in memory; in words, why not."""
    edits = active()
    if edits is None:
        return "the worker's model has no ReFT hooks"
    try:
        edits.load(FoldedAdapter.from_bytes(content))
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return None


def reft_unload(worker: Any, digest: str) -> str | None:
    """Let an adapter go."""
    edits = active()
    if edits is not None:
        edits.unload(digest)
    return None


def reft_info(worker: Any) -> dict[str, Any]:
    """What is in memory, for metrics and tests."""
    edits = active()
    if edits is None:
        return {"adapters": 0, "bytes": 0, "missing": 0, "slots": 0}
    return {
        "adapters": len(edits.adapters),
        "bytes": sum(adapter.nbytes for adapter in edits.adapters.values()),
        "missing": len(edits.missing),
        "slots": 0 if edits.bank is None else len(edits.bank.used),
    }


# --- attaching ----------------------------------------------------------------------------------------------------


def attach(runner: Any, options: Options) -> None:
    """Hooks on the blocks of the runner's model, and on the runner to know what each step computes."""
    config = runner.vllm_config
    text = config.model_config.hf_text_config
    architecture = config.model_config.architecture
    blocks = blocks_of(runner.get_model(), architecture, text.num_hidden_layers)
    bank = None
    if needs_bank(runner.device):
        bank = Bank(
            slots=options.slots_for(config.scheduler_config.max_num_seqs),
            layers=tuple(blocks),
            rank=options.max_rank,
            width=text.hidden_size,
            tokens=config.scheduler_config.max_num_batched_tokens,
            device=runner.device,
        )
    edits = Edits(tuple(blocks), bank)
    activate(edits)
    hook = {"sum": edit_sum, "first": edit_first}[ARCHITECTURES[architecture].form]
    for number, block in blocks.items():
        setattr(block, LAYER, number)
        block.register_forward_hook(hook)
    if config.lora_config is not None and runner.device.type == "cpu":
        cpu_lora.repair()
    if hasattr(runner, "model_state"):
        watch_second(runner, edits)
    else:
        watch_classic(runner, edits)
    logger.info("ReFT adapters are served: hooks on %d blocks of %s", len(blocks), architecture)


def needs_bank(device: torch.device) -> bool:
    """Whether the op is a kernel there, which cannot look for its matrices itself."""
    return device.type != "cpu"


def edit_sum(block: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Forward hook of a block whose output is the sum of what it returns."""
    torch.ops.reftune.edit_sum_(output[0], output[1], getattr(block, LAYER))
    return output


def edit_first(block: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook of a block that returns its output, alone or before something that nobody uses."""
    torch.ops.reftune.edit_(output[0] if isinstance(output, tuple) else output, getattr(block, LAYER))
    return output


def watch_classic(runner: Any, edits: Edits) -> None:
    """vLLM's first runner: behind `_prepare_inputs` its batch is that of the step; before, it is the last one's."""

    def requests(counts: Any) -> Iterator[tuple[Wire | None, int, int, int]]:
        batch = runner.input_batch
        for i, name in enumerate(batch.req_ids):
            wire = wire_of(runner.requests[name].sampling_params)
            # the prompt as it came, not what is computed anew after a preemption
            length = int(batch.num_prompt_tokens[i])
            yield wire, length, int(batch.num_computed_tokens_cpu[i]), int(counts[i])

    def prepared(result: Any, scheduler_output: Any, counts: Any, *args: Any, **kwargs: Any) -> None:
        # on the device: what the step before has sampled may not have come to the host yet
        edits.begin(_windows(requests(counts), runner.input_ids.gpu))

    _after(runner, "_prepare_inputs", prepared)
    _before(runner, "_dummy_run", edits.rest)


def watch_second(runner: Any, edits: Edits) -> None:
    """vLLM's second runner tells the state of its model which requests come and go, and what a step computes."""
    state = runner.model_state
    known: dict[str, tuple[Wire | None, int]] = {}

    def added(result: Any, req_index: int, new: Any) -> None:
        known[new.req_id] = (wire_of(new.sampling_params), int(new.prompt_len))

    def removed(result: Any, req_id: str) -> None:
        # it may be told of one twice, and of one that it never had
        known.pop(req_id, None)

    def requests(batch: Any) -> Iterator[tuple[Wire | None, int, int, int]]:
        for i, name in enumerate(batch.req_ids):
            # requests of trial runs are not known
            wire, length = known.get(name, (None, 0))
            yield wire, length, int(batch.num_computed_tokens_np[i]), int(batch.num_scheduled_tokens[i])

    def prepared(result: Any, batch: Any, *args: Any, **kwargs: Any) -> None:
        edits.begin(_windows(requests(batch), batch.input_ids))

    _after(state, "add_request", added)
    _after(state, "remove_request", removed)
    _after(state, "prepare_inputs", prepared)
    _before(state, "prepare_dummy_inputs", edits.rest)


def _windows(requests: Iterable[tuple[Wire | None, int, int, int]], input_ids: Tensor) -> Iterator[Window]:
    """Of each request (wire, length of the prompt, first token and number of tokens in the step) in batch order.

    `input_ids` are those of the step, one request behind the other; they are fetched only if an adapter looks at them.
    """
    ids: list[int] = []

    def fetched(at: int, count: int) -> list[int]:
        if not ids:
            ids.extend(input_ids.tolist())
        return ids[at : at + count]

    offset = 0
    for wire, length, start, count in requests:
        stop = start + count
        if wire is None:
            yield Window(None, (), start, stop)
        else:
            tokens = partial(fetched, offset, count)
            yield Window(wire.digest, wire.edits(length, start, stop, tokens), start, stop, wire.strength)
        offset += count


def _after(owner: Any, name: str, told: Callable[..., None]) -> None:
    """Have `told(result, *arguments)` called whenever this object's method has run."""
    own = getattr(owner, name)

    def both(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        told(result, *args, **kwargs)
        return result

    setattr(owner, name, both)


def _before(owner: Any, name: str, told: Callable[[], None]) -> None:
    own = getattr(owner, name)

    def both(*args: Any, **kwargs: Any) -> Any:
        told()
        return own(*args, **kwargs)

    setattr(owner, name, both)
