"""ReFT adapters of AdapterHub's library `adapters` 1.x: `adapter_config.json` and the weights beside it.

Its files do not say whether Φ subtracts the projection (the field has no annotation, so it is not saved), which is what
tells DiReFT from NoReFT; loaded again there, every DiReFT is a NoReFT.  So who converts it says which, where the
projection is not orthonormal.

Formulas and positions: `adapters/methods/reft.py`.  Nothing of the library is imported.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..data.style import PromptStyle
from ..errors import ReftuneError
from ..tuner.parts import Group, Part
from ..values import shown
from .parts import write
from .pickles import json_object, tensors_of
from .rows import check_orthonormal, from_parametrisation

__all__ = ["Saved", "convert", "read"]

WEIGHTS = ("adapter.safetensors", "model_adapter.safetensors", "pytorch_adapter.bin")
KEY = re.compile(r"(?:.*\.)?(?:layers|h|layer)\.(\d+)\.reft_layer\.refts\.([^.]+)\.units\.([01])\.(.+)")
FREE = ("noreft", "direft")
ACTS = {None: None, "linear": None, "relu": "relu", "gelu": "gelu", "tanh": "tanh", "swish": "silu", "silu": "silu"}


class Saved:
    """An adapter as its files have it: the fields of its configuration, and layer → unit → tensors."""

    def __init__(self, folder: str | Path) -> None:
        self.root = Path(folder)
        if not (self.root / "adapter_config.json").is_file() and any(self.root.glob("intkey_*")):
            raise ReftuneError(f"{str(self.root)!r} looks like a checkpoint of pyreft: reftune convert pyreft")
        whole = json_object(self.root / "adapter_config.json")
        config = whole.get("config")
        if not isinstance(config, dict) or config.get("architecture") != "reft":
            raise ReftuneError(
                f"{str(self.root)!r} holds no ReFT adapter of AdapterHub's: its config is {shown(config)}"
            )
        self.model_type = str(whole.get("model_type") or "")
        self.prefix, self.suffix = (self._number(config, f"{name}_positions") for name in ("prefix", "suffix"))
        self.rank = self._number(config, "r")
        self.tied, self.orthonormal = config.get("tied_weights") is True, config.get("orthogonality") is True
        act = config.get("non_linearity")
        if act not in ACTS:
            raise ReftuneError(f"non_linearity={shown(act)} is not known; known are {', '.join(map(str, ACTS))}")
        self.act_fn = ACTS[act]
        self._refuse_head()
        self.units = self._units()

    def _number(self, config: dict[str, Any], name: str) -> int:
        value = config.get(name)
        if type(value) is not int or value < 0:
            raise ReftuneError(f"{str(self.root)!r}: {name}={shown(value)} is no whole number of 0 or more")
        return value

    def _refuse_head(self) -> None:
        file = self.root / "head_config.json"
        head = json_object(file).get("config") if file.is_file() else None
        if head is not None:
            raise ReftuneError(
                f"{str(self.root)!r} was trained with a head of AdapterHub's own ({shown(head)}), which an adapter of "
                "causal language models cannot hold; without it its Φ are of no use"
            )

    def _units(self) -> dict[int, dict[int, dict[str, Tensor]]]:
        file = next((self.root / name for name in WEIGHTS if (self.root / name).is_file()), None)
        if file is None:
            raise ReftuneError(f"{str(self.root)!r} is not whole: it has none of {', '.join(WEIGHTS)}")
        try:
            tensors = load_file(file) if file.suffix == ".safetensors" else tensors_of(file)
        except SafetensorError as error:
            raise ReftuneError(f"{str(file)!r} is no file of tensors, or is cut: {error}") from error
        found: dict[int, dict[int, dict[str, Tensor]]] = {}
        for name, tensor in tensors.items():
            match = KEY.fullmatch(name)
            if match is None:
                raise ReftuneError(f"{str(file)!r}: {shown(name)} is no tensor of a ReFT adapter")
            found.setdefault(int(match[1]), {}).setdefault(int(match[3]), {})[match[4]] = tensor
        count = 1 if self.tied else 2
        if not found or any(sorted(units) != list(range(count)) for units in found.values()):
            raise ReftuneError(
                f"{str(file)!r} has not {count} Φ at each layer, which tied_weights={self.tied} asks for"
            )
        return found


def read(folder: str | Path, *, intervention: str | None = None) -> tuple[list[Group], Saved]:
    """The adapter in a folder as groups, and what its configuration says.

    `intervention` is "noreft" or "direft" where the files do not say which.

    Raises:
        ReftuneError: a file is missing, cut or holds something else; or it cannot be known what it does.
    """
    saved = Saved(folder)
    if saved.orthonormal:
        if intervention is not None:
            raise ReftuneError(f"intervention={intervention!r} is only for files that do not say it: this is a LoReFT")
        intervention = "loreft"
    elif intervention not in FREE:
        raise ReftuneError(
            f"{str(folder)!r} is a NoReFT or a DiReFT: AdapterHub does not save which, and loads both as NoReFT. Name "
            "what it was trained as, noreft or direft (--intervention)"
        )
    texts = [f"f{saved.prefix}"] * bool(saved.prefix), [f"l{saved.suffix}"] * bool(saved.suffix)
    if not any(texts):
        raise ReftuneError(f"{str(folder)!r} edits no position: prefix_positions and suffix_positions are 0")
    kind = (intervention, saved.rank, saved.act_fn)
    both = saved.prefix and saved.suffix
    group = Group("block_output", "+".join(texts[0] + texts[1]), "group" if both and not saved.tied else "all", kind)
    for layer, units in sorted(saved.units.items()):
        parts = [_part(intervention, saved, units[i], f"layer {layer} of {str(folder)!r}") for i in sorted(units)]
        # a Φ for no positions is saved too
        group.phis[layer] = parts if group.tie == "group" else parts[:1] if saved.prefix else parts[-1:]
    return [group], saved


def _part(kind: str, saved: Saved, tensors: dict[str, Tensor], where: str) -> Part:
    left = dict(tensors)
    try:
        W, b = left.pop("learned_source.weight"), left.pop("learned_source.bias")
        if kind == "loreft":
            stored = "projection.parametrizations.weight"
            rows = from_parametrisation(left.pop(f"{stored}.original").mT, left.pop(f"{stored}.0.base")).mT
            check_orthonormal(rows, where)
            own = {"R": rows, "W": W, "b": b}
        else:
            own = {"W1": W, "W2": left.pop("projection.weight"), "b": b}
    except KeyError as error:
        raise ReftuneError(f"{where}: {shown(error.args[0])} is missing; it has {shown(sorted(tensors))}") from None
    if left:
        raise ReftuneError(f"{where}: {shown(sorted(left))} is not known of a {kind}")
    if any(tensor.shape[0] != saved.rank for tensor in own.values()):
        raise ReftuneError(f"{where}: its tensors are not of the rank {saved.rank} that its configuration says")
    return Part(kind, {name: tensor.float() for name, tensor in own.items()}, saved.act_fn)


def convert(
    folder: str | Path,
    output: str | Path,
    *,
    base: str,
    intervention: str | None = None,
    style: PromptStyle | None = None,
) -> tuple[Path, list[str]]:
    """The adapter in a folder as one of ours in another; and where it does not do the same, in sentences.

    Raises:
        ReftuneError: it cannot be converted; nothing is written then.
    """
    groups, saved = read(folder, intervention=intervention)
    written = write(groups, base=base, output=output, of=saved.model_type, style=style)
    notes = []
    if saved.prefix:
        notes.append(
            "AdapterHub edits the first tokens of every call, so each new token as well while it generates; here only "
            "those of the prompt"
        )
    if saved.suffix:
        notes.append(
            f"AdapterHub's suffix of {saved.suffix} is the end of the whole text, the response included; here it is "
            "the end of the prompt. For a text without a response both are the same; what was trained on responses may "
            "be worse"
        )
    if intervention == "direft":
        notes.append("taken for a DiReFT; AdapterHub itself loads these files as a NoReFT, with other answers")
    return written, notes
