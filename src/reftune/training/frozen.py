"""What of a forward call no trained parameter can change, for `reuse`: the plan, and why there may be none.

Let block r be the last one whose output depends on nothing trained, and w the first position of an example that is
edited or predicts a label.  Constant are the output of block r, and the keys and values of all later blocks before w.

Must not know: storage, Trainer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..interventions import Intervention
from ..peft_type import PREFIX
from ..positions import PositionSpec, content_terms, first_edited
from ..tuner import ReftLayer, find_root, find_stacks
from .rows import Row

__all__ = ["GAIN", "FrozenPlan", "Watch", "base_tensors", "fingerprint", "frozen_plan", "starts_of"]

# A part of a step must be saved for the trouble and the memory.
GAIN = 1.05


@dataclass(frozen=True)
class FrozenPlan:
    """Which blocks of a model are constant, and from which token on an example is not."""

    root: Any
    """The transformers model."""
    blocks: tuple[nn.Module, ...]
    replayed: int
    """r, the last block whose output is constant; −1 if there is none."""
    sites: tuple[tuple[PositionSpec, ...], ...]
    """What is edited, a site each."""

    def starts(self, rows: Sequence[Row]) -> list[int]:
        """w of each row."""
        return starts_of(self.sites, rows)

    def gain(self, rows: Sequence[Row], passes: float) -> float:
        """How many times less work `passes` over the rows are, the first pass over the base included.

        In blocks × tokens, forward and backward; the head does the same work in any case.
        """
        later = len(self.blocks) - self.replayed - 1
        tokens = sum(len(row.ids) for row in rows)
        left = tokens - sum(self.starts(rows))
        plain = passes * tokens * (len(self.blocks) + later)
        reused = tokens * len(self.blocks) + passes * left * 2 * later
        return plain / reused


def starts_of(sites: tuple[tuple[PositionSpec, ...], ...], rows: Sequence[Row]) -> list[int]:
    """The first token of each row that is edited at one of these sites or predicts a label."""
    by_content = any(content_terms(specs) for specs in sites)

    def of_tokens(row: Row) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
        return (row.ids, row.spans) if by_content else (None, None)

    return [min(_first_edited(sites, row.prompt_length, *of_tokens(row)), row.first_target) for row in rows]


@lru_cache(maxsize=2**16)
def _first_edited(
    sites: tuple[tuple[PositionSpec, ...], ...],
    length: int,
    ids: tuple[int, ...] | None,
    spans: tuple[int, ...] | None,
) -> int:
    lengths = torch.tensor([length])
    tokens, marked = (None if values is None else torch.tensor([values]) for values in (ids, spans))
    return min(int(first_edited(specs, lengths, tokens, marked)) for specs in sites)


def frozen_plan(model: nn.Module) -> FrozenPlan | str:
    """The plan, or in words why nothing can be reused exactly."""
    root: Any = find_root(model)
    stacks = find_stacks(root)
    if len(stacks) != 1 or stacks[0].role != "causal":
        return "the model is not a causal language model"
    problem = _not_deterministic(model) or _others(model)
    if problem:
        return problem
    blocks = stacks[0].blocks
    sites: list[tuple[PositionSpec, ...]] = []
    replayed = len(blocks) - 1
    for path, layer in root.named_modules():
        if not isinstance(layer, ReftLayer) or layer.disable_adapters:
            continue
        specs = tuple(
            unit.group.spec for name in layer.active_adapters if name in layer.groups for unit in layer.units(name)
        )
        if not specs:
            continue
        number = next((i for i, block in enumerate(blocks) if path.startswith(f"{block}.")), None)
        if number is None:
            return f"{path.rsplit('.', 1)[0]!r} is edited, which lies outside of the blocks"
        sites.append(specs)
        # an edit within a block already changes what that block returns
        of_output = path.rsplit(".", 1)[0] == blocks[number]
        replayed = min(replayed, number if of_output else number - 1)
    if not sites:
        return "no adapter is active"
    if replayed < 0 and all(_edits_token_zero(specs) for specs in sites):
        return "position 0 of layer 0 is edited, so that nothing is constant"
    return FrozenPlan(root, tuple(root.get_submodule(block) for block in blocks), replayed, tuple(dict.fromkeys(sites)))


def _edits_token_zero(specs: tuple[PositionSpec, ...]) -> bool:
    return int(first_edited(specs, torch.tensor([1000]))) == 0


def _not_deterministic(model: nn.Module) -> str | None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and PREFIX not in name:
            return f"{name!r} of the base model is trained"
    root: Any = find_root(model)
    for name, tensor in base_tensors(root):
        if type(tensor.data) is not torch.Tensor:
            return f"{name!r} of the base model is a {type(tensor.data).__name__}, whose content is not looked into"
    if any(type(module).__name__ == "Linear8bitLt" for module in root.modules()):
        return "an 8-bit base rounds activations by what else is in the call"
    for name, rate in root.config.get_text_config().to_dict().items():
        # some models have these fields for a head that a language model lacks
        if name in ("classifier_dropout", "summary_first_dropout") or not isinstance(rate, float) or rate <= 0:
            continue
        if any(word in name for word in ("dropout", "pdrop", "layerdrop", "jitter")):
            return f"the base model is random in training ({name} {rate})"
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return "gradient checkpointing is on, which allows no cache"
    return None


def _others(model: nn.Module) -> str | None:
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and not isinstance(module, ReftLayer):
            active = [name for name in module.active_adapters if name in _adapters_of(module)]
            if active and not module.disable_adapters:
                return f"another adapter is active ({type(module).__name__} {active[0]!r})"
    return None


def _adapters_of(layer: BaseTunerLayer) -> set[str]:
    found: set[str] = set()
    for name in layer.adapter_layer_names:
        value = getattr(layer, name, None)
        if isinstance(value, (nn.ModuleDict, nn.ParameterDict)):
            found |= set(value.keys())
    return found


def fingerprint(root: Any) -> str:
    """Of all that the constant part of a forward call depends on but tokens: configuration, weights, revision.

    All weights go in, by sums of the bits of each row and each column.
    """
    digest = blake2b(digest_size=16)
    # what is written into a configuration at run time is no part of the file's content
    digest.update(repr((type(root).__name__, root.config.to_json_string(use_diff=False))).encode())
    digest.update(repr((getattr(root.config, "_commit_hash", None), root.config._attn_implementation)).encode())
    for name, tensor in base_tensors(root):
        digest.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        for sums in _sums_of_bits(tensor):
            digest.update(sums.cpu().numpy().tobytes())
    return digest.hexdigest()


def _sums_of_bits(tensor: torch.Tensor) -> Iterable[torch.Tensor]:
    """By rows and by columns: whole numbers, so the same in whatever order they are added."""
    if not tensor.numel():
        return
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.element_size(), torch.uint8)
    rows = tensor.shape[0] if tensor.ndim > 1 else 1
    table = tensor.detach().contiguous().reshape(rows, -1).view(kind)
    yield table.sum(1, dtype=torch.int64)
    yield table.sum(0, dtype=torch.int64)


def base_tensors(root: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
        if PREFIX not in name:
            yield name, tensor


class Watch:
    """Whether what is replayed may have changed since: at each step, so by what is quick to look at.

    These are, of each weight of the base, where it lies, torch's count of changes in place and one element, and which
    adapters are active.  Buffers that are not saved are left out: rotary embeddings write theirs anew.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        tensors, self._adapters = self._look()
        self._seen = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        # views of the weights themselves
        middles: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
        for tensor in tensors:
            if tensor.numel():
                middle = tensor.detach().reshape(-1)[tensor.numel() // 2]
                middles.setdefault((tensor.device, tensor.dtype), []).append(middle)
        self._middles = list(middles.values())
        self._elements = self._now()

    def is_unchanged(self) -> bool:
        tensors, adapters = self._look()
        seen = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        return (seen, adapters) == (self._seen, self._adapters) and all(map(torch.equal, self._now(), self._elements))

    def _now(self) -> list[torch.Tensor]:
        with torch.no_grad():
            return [torch.stack(part).nan_to_num() for part in self._middles]

    def _look(self) -> tuple[list[torch.Tensor], list[Any]]:
        tensors: list[torch.Tensor] = []
        adapters: list[Any] = []
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer):
                adapters.append((id(module), tuple(module.active_adapters), module.disable_adapters))
            if not isinstance(module, (ReftLayer, Intervention)):
                tensors += [tensor for tensor in module._parameters.values() if tensor is not None]
                fleeting = module._non_persistent_buffers_set
                tensors += [t for name, t in module._buffers.items() if t is not None and name not in fleeting]
        return tensors, adapters
