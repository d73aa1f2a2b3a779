"""A tiny model with adapters at known places, and what its blocks return, with an adapter and without.

Must not know: how reftune finds blocks, prompts and columns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import peft
import torch
from torch import Tensor, nn

from reftune import ReftConfig
from tests.tuner.oracle import Spec

from . import inputs

SPECS = {
    "f1+l1": Spec("span", 1, 1),
    "l1": Spec("span", 0, 1),
    "prompt": Spec("prompt"),
    "all": Spec("all"),
    "response": Spec("response"),
}
EVERYWHERE = "everywhere"


class Place(NamedTuple):
    """Where an adapter edits: its positions, and the number of its block."""

    positions: str
    layer: int

    @property
    def adapter(self) -> str:
        return f"{self.positions.replace('+', '_')}_at_{self.layer}"


@dataclass
class Subject:
    """A base with an adapter of each of the positions at the first block of each stack, and one at each other block."""

    task: str
    base: Any
    rows: inputs.Rows = field(default_factory=inputs.rows)
    model: Any = None
    blocks: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    sides: tuple[str, ...] = ("left", "right")
    """Where rows are padded."""
    loss_fails: bool = False
    """Whether the base itself cannot compute a loss of text alone."""
    kept: dict[Any, Any] = field(default_factory=dict)

    # --- what it is -----------------------------------------------------------------------------------------------

    @property
    def two_stacks(self) -> bool:
        return bool(self.base.config.is_encoder_decoder)

    @property
    def of_text(self) -> bool:
        return self.base.main_input_name == "input_ids"

    @property
    def has_responses(self) -> bool:
        """Whether prompt and response are in one row."""
        return not self.two_stacks and self.task == "CAUSAL_LM"

    @property
    def starts(self) -> list[int]:
        """Numbers of the first block of each stack."""
        parents = [path.rpartition(".")[0] for path in self.blocks]
        return [i for i, parent in enumerate(parents) if i == 0 or (self.two_stacks and parent != parents[i - 1])]

    def is_decoder_block(self, layer: int) -> bool:
        """Of an encoder-decoder.  One whose encoder has no blocks that are edited would be a fault elsewhere."""
        return self.two_stacks and layer >= self.starts[-1]

    # --- adapters -------------------------------------------------------------------------------------------------

    def config(self, positions: str, layers: Any) -> ReftConfig:
        # PEFT's wrapper of sequence-to-sequence models knows tokens only
        task = self.task if self.of_text else None
        return ReftConfig(r=2, positions=positions, layers=layers, init="random", task_type=task)

    def __post_init__(self) -> None:
        if not self.of_text:
            self.sides = ("left",)

    def adapt(self) -> None:
        """Make all adapters, on a copy of the base."""
        base = copy.deepcopy(self.base)
        self.model = peft.get_peft_model(base, self.config("f1+l1", "all"), adapter_name=EVERYWHERE).eval()
        paths = [name.split(".hidden_edit")[0] for name, _ in self.model.named_parameters() if ".hidden_edit" in name]
        self.blocks = [path.removeprefix("base_model.model.") for path in dict.fromkeys(paths)]
        self.places = [Place(positions, layer) for layer in self.starts for positions in SPECS]
        self.places += [Place("f1+l1", layer) for layer in range(len(self.blocks)) if layer not in self.starts]
        for place in self.places:
            self.model.add_adapter(place.adapter, self.config(place.positions, [place.layer]))

    def active(self, adapter: str | None) -> AbstractContextManager[Any]:
        """Inside, this adapter is active; none for None."""
        if adapter is None:
            return self.model.disable_adapter()
        self.model.base_model.set_adapter(adapter)
        return nullcontext()

    # --- calls ----------------------------------------------------------------------------------------------------

    def batch(self, side: str, rows: inputs.Rows | None = None) -> dict[str, Any]:
        """Arguments of a call, without what says where the prompt ends."""
        rows = rows or self.rows
        if self.of_text:
            given = inputs.text(self.base, *rows.padded(side))
        else:
            given = inputs.sound(self.base, len(rows.tokens))
        if self.two_stacks and self.task == "SEQ_2_SEQ_LM":
            given["decoder_input_ids"] = inputs.decoder_ids(len(rows.tokens))
        return given

    def find_out_about_loss(self) -> bool:
        """Whether the base cannot compute the loss of text alone; then no labels are given."""
        if self.has_responses:
            try:
                logits(self.base, self.batch("left"), labels=self.rows.labels("left"))
            except Exception:  # noqa: BLE001 — whatever it needs beside
                self.loss_fails = True
        return self.loss_fails

    def lengths(self, rows: inputs.Rows | None = None) -> dict[str, Any]:
        """The argument that says where the prompts end, if there are responses."""
        return {"prompt_length": (rows or self.rows).prompts} if self.has_responses else {}

    def logits(self, adapter: str | None, given: dict[str, Any], **more: Any) -> Tensor:
        with self.active(adapter):
            return logits(self.model, given, **more)

    def record(self, adapter: str | None, call: Callable[[], Any]) -> tuple[Any, list[list[Tensor]]]:
        """What `call` returns, and what each block returned in turn, edits included."""
        outputs: list[list[Tensor]] = [[] for _ in self.blocks]

        def keep(number: int, module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, (tuple, list)) else output
            outputs[number].append(first.detach().clone())

        with ExitStack() as stack:
            for number, path in enumerate(self.blocks):
                block = self.model.base_model.model.get_submodule(path)
                stack.callback(block.register_forward_hook(partial(keep, number)).remove)
            stack.enter_context(self.active(adapter))
            return call(), outputs

    def base_record(self, key: Any, call: Callable[[], Any]) -> tuple[Any, list[list[Tensor]]]:
        """`record` without an adapter, done once for a key."""
        if key not in self.kept:
            self.kept[key] = self.record(None, call)
        return self.kept[key]


def logits(model: Any, given: dict[str, Any], **more: Any) -> Tensor:
    """What the model computes, without a graph."""
    with torch.no_grad():
        output = model(**given, **more)
    found = getattr(output, "logits", None)
    return (output[0] if found is None else found).detach()


def size(h: Tensor) -> Tensor:
    """Of each vector, its largest number."""
    return h.float().abs().amax(-1)


def changed(with_it: list[Tensor], without: list[Tensor]) -> list[Tensor]:
    """Call by call, what an adapter changed [B, T], relative to the state."""
    if len(with_it) != len(without):
        raise AssertionError(f"{len(with_it)} calls of the block with the adapter, {len(without)} without")
    pairs = zip(with_it, without, strict=True)
    return [size(a - b).nan_to_num() / size(b).nan_to_num().max().clamp(min=1e-6) for a, b in pairs]


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value."""
    if a.shape != b.shape:
        return float("inf")
    finite = b[b.isfinite()]
    scale = finite.abs().max().clamp(min=1e-6) if finite.numel() else torch.ones(())
    return float((a - b).nan_to_num(0, 0, 0).abs().max() / scale)
