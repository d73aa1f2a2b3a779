"""Learned gates: which layers and groups of positions an adapter needs, found while it trains.

Must not know: trainers, data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..config import ReftConfig
from ..errors import ReftuneError
from ..interventions import Intervention
from ..tuner import ReftLayer

__all__ = ["Gate", "Gates"]

# The stretched interval and the temperature of Louizos et al., arXiv 1712.01312, section 4.
LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3
# Of a new gate: open with a probability of 0.97.
START = 2.0
FILE = "gates.safetensors"


class Gate(NamedTuple):
    """What stands behind one gate: the edits of one group of the adapter behind one module."""

    module: str
    layer: int
    group: int
    phis: tuple[Intervention, ...]

    @property
    def parameters(self) -> int:
        return sum(p.numel() for phi in self.phis for p in phi.parameters())


class Gates(nn.Module):
    """A gate z on each (module, group) of an adapter, which multiplies its edit: h + z·(Φ(h) − h).

    In training z = min(1, max(0, 1.2 s − 0.1)) with s = sigmoid((log u − log(1 − u) + a) / (2/3)), u uniform and drawn
    anew for each step, a trained: a HardConcrete variable, which is exactly 0 or 1 with some probability (Louizos et
    al. 2018, arXiv 1712.01312).  Else s = sigmoid(a).  To the loss is added `penalty` times the part of the adapter's
    parameters that is expected to stay, Σ P(z > 0)·n / Σ n; for the first `warmup` of the steps the penalty grows from
    0, so that edits are learnt before they are paid for.

    `ReftTrainer(…, gates=Gates(model))` trains them; then `pruned()` is an ordinary adapter.  Beside it the plain
    measure, without training: `reftune explain --prune-to` leaves layers out one at a time.

    Args:
        model: with one active ReFT adapter.
        penalty: what the whole adapter costs, in units of the loss.
        warmup: part of the steps in which the penalty grows.
        learning_rate: of the gates, larger than that of Φ.

    Raises:
        ReftuneError: a number out of its range, or the model has no or several active adapters that edit.
    """

    def __init__(
        self, model: PeftModel, *, penalty: float = 0.5, warmup: float = 0.3, learning_rate: float = 0.1
    ) -> None:
        super().__init__()
        for name, value, valid in (
            ("penalty", penalty, penalty >= 0),
            ("warmup", warmup, 0 <= warmup < 1),
            ("learning_rate", learning_rate, learning_rate > 0),
        ):
            if isinstance(value, bool) or not valid or not math.isfinite(value):
                raise ReftuneError(f"{name}={value!r} is not valid for gates; see the documentation of Gates")
        self.penalty, self.warmup, self.learning_rate = penalty, warmup, learning_rate
        self.model = (model,)  # not a part of this module
        self.adapter, self.gates = _gates_of(model)
        self.sizes = torch.tensor([float(gate.parameters) for gate in self.gates])
        self.a = nn.Parameter(torch.full((len(self.gates),), START))
        self.noise = torch.full((len(self.gates),), 0.5)
        self.step, self.done = -1, 0.0
        numbered = [(number, phi) for number, gate in enumerate(self.gates) for phi in gate.phis]
        self._hooks = [phi.register_forward_hook(self._gated(number)) for number, phi in numbered]

    def _gated(self, number: int) -> Any:
        def hook(phi: nn.Module, args: Any, delta: Tensor) -> Tensor:
            return delta * self.values()[number].to(delta.device, delta.dtype)

        return hook

    def values(self) -> Tensor:
        """z of each gate, in the order of `gates`: as drawn for the step if the model trains, else its one value."""
        if self.model[0].training:
            s = torch.sigmoid((torch.logit(self.noise.to(self.a.device)) + self.a) / TEMPERATURE)
        else:
            s = torch.sigmoid(self.a)
        return _stretched(s)

    def begin(self, step: int, steps: int, seed: int = 0) -> None:
        """The u of this step of so many: by its number, so that a resumed training has the same."""
        if step != self.step:
            self.step, self.done = step, step / steps
            # Trainer empties the gradients of its model only
            self.a.grad = None
            source = torch.Generator().manual_seed(seed * 1_000_003 + step)
            self.noise = torch.rand(len(self.gates), generator=source).clamp(1e-6, 1 - 1e-6)

    def open_probability(self) -> Tensor:
        """P(z > 0) of each gate."""
        return torch.sigmoid(self.a - TEMPERATURE * math.log(-LOW / HIGH))

    def cost(self) -> Tensor:
        """What is added to the loss."""
        grown = 1.0 if not self.warmup else min(1.0, self.done / self.warmup)
        sizes = self.sizes.to(self.a.device)
        return self.penalty * grown * (self.open_probability() * sizes).sum() / sizes.sum()

    # --- what was found -----------------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """Of each gate: module, layer, group, positions, its value, the probability that it is open, parameters."""
        config: Any = self.model[0].peft_config[self.adapter]
        positions = [group.positions for group in config.resolved_groups()]
        with torch.no_grad():
            values, open_ = _stretched(torch.sigmoid(self.a)).tolist(), self.open_probability().tolist()
        return [
            {
                "module": gate.module,
                "layer": gate.layer,
                "group": gate.group,
                "positions": positions[gate.group],
                "value": value,
                "open": probability,
                "parameters": gate.parameters,
            }
            for gate, value, probability in zip(self.gates, values, open_, strict=True)
        ]

    def open(self) -> list[Gate]:
        """Those whose value is above 0."""
        return [gate for gate, row in zip(self.gates, self.rows(), strict=True) if row["value"] > 0]

    def config(self) -> ReftConfig:
        """The adapter's configuration with what stands behind open gates only.

        Raises:
            ReftuneError: no gate is open; or what is edited is named by modules and not by layers.
        """
        old: Any = self.model[0].peft_config[self.adapter]
        if old.layers is None:
            raise ReftuneError(
                "gates choose among layers, and this adapter names modules: use layers in its configuration"
            )
        left = self.open()
        if not left:
            raise ReftuneError(f"no gate is open: the penalty of {self.penalty} is more than the edits are worth")
        given = {f.name: getattr(old, f.name) for f in fields(old) if f.init}
        given |= {"target_modules": None, "exclude_modules": None}
        of_groups = [sorted({gate.layer for gate in left if gate.group == number}) for number in range(self._groups)]
        if old.groups is None:
            given["layers"] = of_groups[0]
        else:
            pairs = zip(old.groups, of_groups, strict=True)
            given["groups"] = [{**group, "layers": layers} for group, layers in pairs if layers]
        new = ReftConfig(**given)
        new.prompt_style = old.prompt_style
        return new

    def pruned(self) -> PeftModel:
        """The base model with an adapter of the open gates' edits as they were trained, without gates: train it on.

        The model that was given has no adapter any more.
        """
        config, left = self.config(), self.open()
        self.close()
        model = self.model[0]
        states = {(gate.module, gate.group): [phi.state_dict() for phi in gate.phis] for gate in left}
        of_new = sorted({gate.group for gate in left})
        pruned = get_peft_model(model.unload(), config)
        assert isinstance(pruned, PeftModel)
        for gate in _gates_of(pruned)[1]:
            for phi, state in zip(gate.phis, states[gate.module, of_new[gate.group]], strict=True):
                phi.load_state_dict(state)
        return pruned

    def save(self, folder: Path) -> None:
        """Into a checkpoint."""
        save_file({"a": self.a.detach().contiguous()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """What `save` wrote.

        Raises:
            ReftuneError: the checkpoint is of a training without gates, or with others.
        """
        saved = load_file(folder / FILE) if (folder / FILE).is_file() else {}
        if "a" not in saved or saved["a"].shape != self.a.shape:
            raise ReftuneError(f"{str(folder)!r} is of a training without these gates: resume it as it was begun")
        with torch.no_grad():
            self.a.copy_(saved["a"])

    def close(self) -> None:
        """Take the gates away: edits are whole again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @property
    def _groups(self) -> int:
        return 1 + max(gate.group for gate in self.gates)


def _stretched(s: Tensor) -> Tensor:
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def _gates_of(model: PeftModel) -> tuple[str, list[Gate]]:
    """The active adapter and its places, in the order of the model's modules."""
    active: Sequence[str] = model.active_adapters
    found: list[Gate] = []
    for path, module in model.named_modules():
        if isinstance(module, ReftLayer) and len(active) == 1 and active[0] in module.groups:
            name, groups = active[0], module.groups[active[0]]
            numbers = _numbers(model, name, groups)
            units = module.units(name)
            for own, number in enumerate(numbers):
                phis = tuple(module.phi(name, unit) for unit in units if unit.group is groups[own])
                found.append(Gate(path.rpartition(".")[0], module.layer, number, phis))
    if not found:
        raise ReftuneError(f"gates need one active adapter that edits hidden states; active are {list(active)}")
    return active[0], found


def _numbers(model: PeftModel, adapter: str, groups: Sequence[Any]) -> list[int]:
    """Which groups of the configuration those of one module are."""
    config: Any = model.peft_config[adapter]
    left = list(enumerate(config.resolved_groups()))
    numbers = []
    for group in groups:
        number, _ = next((i, own) for i, own in left if own == group)
        left = [(i, own) for i, own in left if i > number]
        numbers.append(number)
    return numbers
