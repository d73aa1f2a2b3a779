"""What an adapter writes into the residual stream, by layers: the span of its rows, or of the B of a LoRA.

Must not know: edits, answers.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from ...config import ReftConfig
from ...interop.merge import spaces_of
from ...tuner import ReftLayer, find_root, find_stacks
from ...tuner.parts import taken_apart
from ...tuner.together import row_space
from ...values import shown
from .switches import Text, first_of

__all__ = ["written_spaces"]

IN_STREAM = ("block_output", "attention_output", "mlp_output")
NO_ANGLES = "so it has no principal angles there; what comes of it is in the edits"


def written_spaces(model: PeftModel, text: Text) -> tuple[dict[int, Tensor], list[str]]:
    """Layer → an orthonormal basis [d, k] in float64 on the CPU; and of what else the adapter has, why it has none.

    A text is needed to see which modules of a LoRA give what they return to the stream as it is.
    """
    config: Any = model.active_peft_config
    if isinstance(config, ReftConfig):
        return _of_reft(model)
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind == "LORA":
        return _of_lora(model, text)
    return {}, [f"is of the method {kind}, of which it is not known what it writes into, {NO_ANGLES}"]


def _of_reft(model: PeftModel) -> tuple[dict[int, Tensor], list[str]]:
    layers = [module for module in model.modules() if isinstance(module, ReftLayer)]
    try:
        groups = taken_apart(layers, str(model.active_adapter))
    except ValueError:
        return {}, [f"names its modules by target_modules, {NO_ANGLES}"]
    notes = [
        f"edits {component}, which enters the stream through a projection, {NO_ANGLES}"
        for component in dict.fromkeys(group.component for group in groups)
        if component not in IN_STREAM
    ]
    written = spaces_of([group for group in groups if group.component in IN_STREAM])
    known = {layer for _, layer in written}
    without = sorted({group.kind[0] for group in groups for layer in group.phis if layer not in known})
    notes += [f"its Φ {name} has no rows, {NO_ANGLES}" for name in without]
    return _by_layer(written), notes


def _by_layer(written: dict[tuple[str, int], Tensor]) -> dict[int, Tensor]:
    found: dict[int, list[Tensor]] = {}
    for (_, layer), basis in written.items():
        found.setdefault(layer, []).append(basis.cpu())
    return {layer: bases[0] if len(bases) == 1 else row_space(torch.cat(bases, 1).mT) for layer, bases in found.items()}


def _of_lora(model: PeftModel, text: Text) -> tuple[dict[int, Tensor], list[str]]:
    root: Any = find_root(model)
    blocks = {path: i for i, path in enumerate(find_stacks(root)[0].blocks)}
    name = str(model.active_adapter)
    layers: dict[str, LoraLayer] = {
        path: module
        for path, module in root.named_modules()
        if isinstance(module, LoraLayer) and name in {*module.lora_A, *module.lora_embedding_A}
    }
    writes = _writers(model, text, list(blocks), list(layers))
    found: dict[tuple[str, int], Tensor] = {}
    left: dict[str, None] = {}
    for path, module in layers.items():
        layer = next((i for block, i in blocks.items() if path.startswith(f"{block}.")), None)
        if layer is None or path not in writes or name not in module.lora_B or module.use_dora.get(name):
            left[path.rpartition(".")[2]] = None
            continue
        B: Any = module.lora_B[name]
        found[path, layer] = row_space(B.weight.detach().double().cpu().mT)
    if not left:
        return _by_layer(found), []
    what = f"its {shown(list(left))} does not write into the stream as it is"
    dora = " (DoRA also scales what the base has)" if any(any(m.use_dora.values()) for m in layers.values()) else ""
    return _by_layer(found), [f"{what}{dora}, {NO_ANGLES}"]


@torch.no_grad()
def _writers(model: PeftModel, text: Text, blocks: list[str], asked: list[str]) -> set[str]:
    """Those of the paths whose output is that of a part of a block, and is handed to no other module, as to a norm."""
    root: Any = find_root(model)
    outputs: dict[str, Tensor] = {}
    read: dict[str, list[Tensor]] = {block: [] for block in blocks}

    def look(block: str, path: str, args: Any, out: Any) -> None:
        value = first_of(out)
        if not isinstance(value, Tensor):
            return
        outputs[path] = value
        # a dropout that does nothing hands on what it is given
        if args and isinstance(args[0], Tensor) and not _same(args[0], value):
            read[block].append(args[0])

    handles = []
    for path, module in root.named_modules():
        block = next((block for block in blocks if path.startswith(f"{block}.")), None)
        if block is not None:
            hook: Any = lambda _, args, out, block=block, path=path: look(block, path, args, out)  # noqa: E731
            handles.append(module.register_forward_hook(hook))
    ids = torch.tensor([text.ids], device=model.device)
    try:
        with model.disable_adapter():
            called: Any = model
            called(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    found = set()
    for block in blocks:
        own = [path for path in outputs if path.startswith(f"{block}.")]
        parts = [outputs[path] for path in own if "." not in path[len(block) + 1 :]]
        for path in set(asked) & set(own):
            value = outputs[path]
            if any(_same(part, value) for part in parts) and not any(_same(given, value) for given in read[block]):
                found.add(path)
    return found


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))
