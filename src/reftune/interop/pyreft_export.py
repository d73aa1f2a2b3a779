"""Adapters as checkpoints that pyreft 0.0.5 to 0.1.0 loads: `config.json` and one `intkey_….bin` for each Φ.

The inverse of `pyreft.convert`.  Every affine low-rank edit, h + W2ᵀ(W1h + b), is one of pyreft's with orthonormal R:
by W2ᵀ = RᵀT it is h + Rᵀ(TW1h + Tb), so that nothing is lost where pyreft has no class that loads (it cannot load its
own NoreftIntervention and NodireftIntervention).  What a checkpoint cannot say is refused by name: an activation,
positions that pyreft has not.

Must not know: training, the command line.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ReftuneError
from ..files import check_writable, told, write_json
from ..models import check_model
from ..specs import PositionSpec, parse_positions
from ..tuner.parts import Group, Part
from ..tuner.together import rows_of
from .parts import base_of, groups_in
from .pyreft import CLASSES, COMPONENTS, PARAMETRISED, SAME_COMPONENTS
from .rows import ORTHONORMAL

__all__ = ["Exported", "export", "placed"]

NAMES = {ours: theirs for theirs, ours in CLASSES.items()}


@dataclass(frozen=True)
class Exported:
    """What was written: for each Φ layer, component and pyreft's class; and how it is used there."""

    phis: list[tuple[int, str, str]]
    positions: str
    share_weights: bool
    notes: list[str]


def export(adapter: str, output: str | Path, *, base: str | None = None) -> Exported:
    """Write the adapter in a folder or on the Hub as a checkpoint of pyreft, in a folder that is not there or empty.

    Raises:
        ReftuneError: the adapter has no such form, or the folder cannot be written to; nothing is written then.
    """
    folder = Path(output)
    check_writable(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ReftuneError(f"{str(folder)!r} is not empty; name another folder, or delete it first")
    name = base or base_of([adapter])
    try:
        config = check_model(name).get_text_config()
        if config.model_type not in SAME_COMPONENTS:
            raise ReftuneError(
                f"its base is a {config.model_type}, in which pyreft need not find the same modules; valid are "
                f"{', '.join(SAME_COMPONENTS)}"
            )
        found, spec, shared = placed(groups_in(adapter, base=name))
        made = [_made(part, group, f"layer {layer}") for layer, part, group in found]
    except (ReftuneError, ValueError) as error:
        raise ReftuneError(f"{adapter!r} cannot be a checkpoint of pyreft: {error}") from error
    sites = [(layer, group.component) for layer, _, group in found]
    with told(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            part = Path(temporary) / "part"
            part.mkdir()
            _write(part, sites, made, config.hidden_size)
            os.replace(part, folder)
    phis = [(layer, component, kind) for (layer, component), (kind, _) in zip(sites, made, strict=True)]
    return Exported(phis, str(spec), shared, _notes(found, made))


def placed(groups: Sequence[Group]) -> tuple[list[tuple[int, Part, Group]], PositionSpec, bool]:
    """Layer, Φ and group of each, in pyreft's order; the positions of all; whether one Φ is shared by them.

    Where the first and the last tokens have a Φ each, pyreft has those of the first before those of the last.

    Raises:
        ReftuneError: pyreft has not such positions, or Φ at the same place are not one or two of these.
    """
    ends: dict[tuple[str, int], dict[str, tuple[Part, Group]]] = {}
    for group in groups:
        if group.component not in COMPONENTS:
            raise ReftuneError(f"it edits {group.component}; a checkpoint has {', '.join(COMPONENTS)}")
        for layer, parts in group.phis.items():
            here = ends.setdefault((group.component, layer), {})
            for where, part in _ends(group, parts).items():
                if where in here:
                    raise ReftuneError(f"it has two Φ for {where} at {group.component} of layer {layer}")
                here[where] = (part, group)
    schemes = {tuple(sorted(here)) for here in ends.values()}
    if len(schemes) > 1:
        told_apart = " and ".join(sorted("+".join(sorted(scheme)) for scheme in schemes))
        raise ReftuneError(
            f"its layers differ in positions ({told_apart}); a checkpoint is loaded with the same positions for all"
        )
    wheres = sorted(schemes.pop())
    spec = parse_positions("+".join(wheres))
    if len(wheres) > 2 or (len(wheres) == 2 and not (spec.first and spec.last)):
        raise ReftuneError(
            f"it has Φ for each of {', '.join(wheres)}; pyreft has one for the first and the last tokens"
        )
    found = [(layer, *here[where]) for where in wheres for (_, layer), here in sorted(ends.items())]
    return found, spec, len(wheres) == 1


def _ends(group: Group, parts: Sequence[Part]) -> dict[str, Part]:
    """The Φ of a group by pyreft's positions: all of them, or the first and the last tokens.

    Raises:
        ReftuneError: there are none such.
    """
    spec = parse_positions(group.positions)
    if spec.scope != "span" or not spec.count or str(spec) != group.positions:
        raise ReftuneError(f"it edits the positions {group.positions!r}; pyreft has f<p>, l<s> and f<p>+l<s>")
    if len(parts) == 1:
        return {str(spec): parts[0]}
    if group.tie == "group" and len(parts) == 2:
        return {f"f{spec.first}": parts[0], f"l{spec.last}": parts[1]}
    raise ReftuneError(
        f"it has a Φ for each of the positions {group.positions!r} (tie={group.tie!r}); pyreft has one for all or, of "
        "f<p>+l<s>, two"
    )


def _made(part: Part, group: Group, where: str) -> tuple[str, dict[str, Tensor]]:
    """Our name of pyreft's class, and its tensors under the names there."""
    if part.act_fn not in (None, "linear") and part.intervention not in ("consreft", "lobireft"):
        raise ReftuneError(f"{where} has act_fn={part.act_fn!r}, which pyreft loses when it loads a checkpoint")
    try:
        W1, b, W2, _ = rows_of(part, group)
    except ValueError as error:
        raise ReftuneError(f"{where}: {error}") from error
    width = W2.shape[1]
    off = (W2 @ W2.mT - torch.eye(len(W2), dtype=W2.dtype)).abs().max()
    if part.intervention in ("loreft", "consreft") and float(off) <= ORTHONORMAL:
        if part.intervention == "loreft":
            tensors = {"weight": W1 + W2, "bias": b, "rotate_layer": W2.mT}
            return "loreft", {name: tensor.float().contiguous() for name, tensor in tensors.items()}
        if float((W1 + W2).abs().max()) <= ORTHONORMAL:
            return "consreft", {"learned_source": b.float(), **_buffers(width), **_rotation(W2)}
    Q, T = torch.linalg.qr(W2.mT)
    W1, b = T @ W1, T @ b
    if not bool(W1.any()):
        return "lobireft", {"learned_source": b.float(), **_buffers(width), **_rotation(Q.mT)}
    source = {"learned_source.weight": W1.float().contiguous(), "learned_source.bias": b.float()}
    return "direft_orthonormal", {**_buffers(width), **_rotation(Q.mT), **source}


def _buffers(width: int) -> dict[str, Tensor]:
    return {name: torch.tensor(width) for name in ("embed_dim", "interchange_dim")}


def _rotation(R: Tensor) -> dict[str, Tensor]:
    """R [r, d] as torch's orthogonal parametrisation keeps it when it has just been made of R."""
    r, width = R.shape
    base = torch.linalg.qr(R.mT, mode="complete").Q
    base[:, :r] = R.mT
    original = torch.zeros(width, r)
    original.diagonal().fill_(-1)
    return {f"{PARAMETRISED}.original": original, f"{PARAMETRISED}.0.base": base.float().contiguous()}


def _write(folder: Path, sites: Sequence[tuple[int, str]], made: Sequence[tuple[str, Any]], width: int) -> None:
    keys: list[str] = []
    for (layer, component), (_, tensors) in zip(sites, made, strict=True):
        place = f"layer.{layer}.comp.{component}.unit.pos.nunit.1"
        number = sum(key.rpartition("#")[0] == place for key in keys)
        keys.append(f"{place}#{number}")
        # with dots before pyvene 0.1.7, with underscores since: one content under both names
        dots, underscores = (folder / f"intkey_{name}#{number}.bin" for name in (place, place.replace(".", "_")))
        torch.save(tensors, underscores)
        try:
            os.link(underscores, dots)
        except OSError:
            shutil.copyfile(underscores, dots)
    ranks = [tensors["bias" if kind == "loreft" else _SOURCES[kind]].shape[0] for kind, tensors in made]
    config = {
        "intervention_constant_sources": [True] * len(made),
        "intervention_dimensions": [width] * len(made),
        "intervention_types": [f"<class 'pyreft.interventions.{NAMES[kind]}'>" for kind, _ in made],
        "mode": "parallel",
        "representations": [[*site, "pos", 1, r] for site, r in zip(sites, ranks, strict=True)],
        "sorted_keys": [key.replace(".", "_") for key in keys],
    }
    write_json(folder / "config.json", config)


_SOURCES = {"consreft": "learned_source", "lobireft": "learned_source", "direft_orthonormal": "learned_source.bias"}


def _notes(found: Sequence[tuple[int, Part, Group]], made: Sequence[tuple[str, Any]]) -> list[str]:
    notes = []
    for ours, theirs in sorted({(p.intervention, kind) for (_, p, _), (kind, _) in zip(found, made, strict=True)}):
        if ours != theirs:
            notes.append(f"{ours} is written as {NAMES[theirs]}, which does the same")
    if any(group.more.get("subspaces") and not group.more.get("active_subspaces") for _, _, group in found):
        notes.append("all parts of its subspaces are on; pyreft has no partition of these classes")
    notes.append("pyreft rounds W and b to bfloat16 when it loads a checkpoint, whatever is in it")
    if any(kind == "loreft" for kind, _ in made):
        notes.append("a LoreftIntervention that pyreft has loaded runs on a base model in bfloat16 only")
    return notes
