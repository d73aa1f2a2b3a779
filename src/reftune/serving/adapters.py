"""Saved adapters, read and checked once, before any model or engine sees them.

Only `adapter_config.json` and `adapter_model.safetensors` are read: neither can execute anything.  All that can be
known to be wrong without the model is refused here, with the reason: broken files, other methods, tensors that do not
fit the configuration.  What needs the model's sizes is asked by `check_width` and `check_layers`.

Must not know: models, transformers, backends.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..config import ReftConfig, ReftGroup, resolve_layers
from ..errors import ReftuneError
from ..interventions import INTERVENTIONS
from ..peft_type import PREFIX

__all__ = ["AdapterError", "AdapterFiles", "check_layers", "check_width", "read_adapter"]

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
CONFIG_LIMIT = 1 << 20
WEIGHTS_LIMIT = 10**9
# Each position takes room in every batch, whatever the prompts' lengths.
POSITIONS_LIMIT = 1 << 16
KEY = re.compile(
    rf"base_model\.model\.(?P<path>.+)\.(?P<child>hidden_edit|head_edit_\d+)\.{PREFIX}(?P<unit>\d+)\.(?P<name>[A-Za-z]\w*)"
)
# One Φ of a saved adapter: its tensors by the names of its parameters.
UnitTensors = Mapping[str, Tensor]


class AdapterError(ReftuneError, ValueError):
    """A saved adapter that cannot be served; the message names its folder and what is wrong."""


@dataclass(frozen=True, eq=False)
class AdapterFiles:
    """The content of an adapter's folder.  Two with the same digest are the same adapter."""

    path: Path
    config: ReftConfig
    tensors: Mapping[str, Tensor] = field(repr=False)
    digest: str
    """Hexadecimal BLAKE2b of the bytes of both files."""
    nbytes: int
    """Of the tensors."""

    @cached_property
    def sites(self) -> dict[tuple[str, str], tuple[UnitTensors, ...]]:
        """(path of the edited module, name of the edit below it) → the tensors of each Φ there, in order."""
        found: dict[tuple[str, str], dict[int, dict[str, Tensor]]] = {}
        for key, tensor in self.tensors.items():
            match = KEY.fullmatch(key)
            if match is None:
                raise AdapterError(
                    f"the adapter {str(self.path)!r} has the tensor {key!r}, which belongs to no intervention; only "
                    "interventions are served, not other modules that were trained with them"
                )
            units = found.setdefault((match["path"], match["child"]), {})
            units.setdefault(int(match["unit"]), {})[match["name"]] = tensor
        for (path, _), units in found.items():
            if sorted(units) != list(range(len(units))):
                raise AdapterError(f"the adapter {str(self.path)!r} lacks interventions of {path!r}: {sorted(units)}")
        # in the order of the blocks, which is not that of the files
        return {site: tuple(found[site][i] for i in range(len(found[site]))) for site in sorted(found, key=_numbered)}

    @cached_property
    def blocks(self) -> dict[str, tuple[UnitTensors, ...]]:
        """Path of the edited module, as in the transformers model → the tensors of each Φ on its output, in order."""
        return {path: units for (path, child), units in self.sites.items() if child == "hidden_edit"}

    @cached_property
    def widths(self) -> frozenset[int]:
        """Widths of the hidden states that are edited: one, unless single modules or heads are."""
        groups = self.config.resolved_groups()
        found = {unit_width(unit, group) for units in self.sites.values() for unit in units for group in groups}
        return frozenset(width for width in found if width is not None)


def read_adapter(path: str | Path, *, limit: int = WEIGHTS_LIMIT) -> AdapterFiles:
    """Read an adapter's folder and check that it is whole.

    Files larger than `limit` bytes are refused before they are read.

    Raises:
        AdapterError: there is no ReFT adapter, or one that cannot be served; the message says why.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise AdapterError(f"there is no adapter in {str(path)!r}: it is not a folder")
    if not (folder / WEIGHTS).exists() and (folder / PICKLE).exists():
        raise AdapterError(
            f"the adapter {str(path)!r} holds {PICKLE}, which is refused: reading a pickle can execute code. Load it "
            f"where you trust it and save it again, which writes {WEIGHTS}"
        )
    config_bytes = _read_file(folder / CONFIG, CONFIG_LIMIT)
    weights = _read_file(folder / WEIGHTS, limit)
    digest = hashlib.blake2b(digest_size=32)
    for content in (config_bytes, weights):
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    config = _parse_config(folder, config_bytes)
    tensors = _parse_tensors(folder, weights)
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    files = AdapterFiles(folder, config, tensors, digest.hexdigest(), nbytes)
    _check_units(files)
    return files


def check_width(files: AdapterFiles, hidden_size: int) -> None:
    """Refuse an adapter of a model of another width.  Edits of single modules or heads have widths of their own.

    Raises:
        AdapterError: the width is another.
    """
    groups = files.config.resolved_groups()
    if any(group.layers is None or group.head is not None for group in groups):
        return
    if files.widths != {hidden_size}:
        raise AdapterError(
            f"the adapter {str(files.path)!r} edits hidden states of width {_listed(files.widths)}, but those of this "
            f"model have width {hidden_size}; it was made for another model"
        )


def check_layers(files: AdapterFiles, count: int) -> None:
    """Refuse an adapter of blocks whose tensors are not those of the layers that it names, in a model of `count`.

    Raises:
        AdapterError: a layer does not exist, its tensors are missing, or there are more than it names.
    """
    groups = files.config.resolved_groups()
    if any(group.layers is None or group.component != "block_output" for group in groups):
        return
    try:
        wanted = {i for group in groups for i in resolve_layers(group.layers or "all", count)}
    except ValueError as error:
        raise AdapterError(f"the adapter {str(files.path)!r}: {error}") from error
    found = {int(path.rpartition(".")[2]) for path in files.blocks if path.rpartition(".")[2].isdecimal()}
    if missing := wanted - found:
        raise AdapterError(f"the adapter {str(files.path)!r} has no tensors for layers {_listed(missing)}")
    if extra := found - wanted:
        raise AdapterError(
            f"the adapter {str(files.path)!r} has tensors for layers {_listed(extra)}, which its configuration does "
            f"not name in a model of {count} layers; it was made for another model"
        )


def unit_width(unit: UnitTensors, group: ReftGroup) -> int | None:
    """The width d for which these are the tensors of a Φ of the group, None if there is none."""
    kind, options = INTERVENTIONS[group.intervention], group.options
    shapes = {name: tuple(tensor.shape) for name, tensor in unit.items()}
    for d in sorted({size for shape in shapes.values() for size in shape}, reverse=True):
        if kind.parameter_shapes(d, options) | kind.buffer_shapes(d, options) == shapes:
            return d
    return None


def _read_file(path: Path, limit: int) -> bytes:
    """All bytes of a regular file.  Looked at once it is open, so that it cannot become another in between."""
    try:
        # nonblocking: opening a pipe that nobody writes to would never return
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AdapterError(f"there is no adapter in {str(path.parent)!r}: {path.name}: {reason}") from error
    with open(descriptor, "rb") as file:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise AdapterError(f"the adapter {str(path.parent)!r} is refused: {path.name} is not a regular file")
        if state.st_size > limit:
            raise AdapterError(
                f"the adapter {str(path.parent)!r} is refused: {path.name} has {state.st_size} bytes, more than the "
                f"{limit} that are allowed"
            )
        # it may grow while it is read
        content = file.read(limit + 1)
    if len(content) > limit:
        raise AdapterError(f"the adapter {str(path.parent)!r} is refused: {path.name} has more than {limit} bytes")
    return content


def _parse_config(folder: Path, content: bytes) -> ReftConfig:
    where = f"the {CONFIG} of {str(folder)!r}"
    try:
        values: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{where} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise AdapterError(f"{where} is not a JSON object")
    kind = values.pop("peft_type", None)
    if kind != "REFT":
        raise AdapterError(f"{where} is of an adapter of type {kind!a}; only 'REFT' is served")
    known = {f.name for f in fields(ReftConfig) if f.init}
    unknown = sorted(map(ascii, set(values) - known))
    if unknown:
        raise AdapterError(
            f"{where} has fields that this version of reftune does not know: {', '.join(unknown)}; it may be newer"
        )
    try:
        config = ReftConfig(**values)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise AdapterError(f"{where} is not valid: {error}") from error
    if config.modules_to_save:
        raise AdapterError(f"{where} has modules_to_save={config.modules_to_save!r}; only interventions are served")
    for name in ("target_modules", "exclude_modules"):
        value = getattr(config, name)
        # a repeated group can make matching take for ever
        if isinstance(value, str) and re.search(r"\)[*+{]", value):
            raise AdapterError(f"{where} has {name}={value!r}; a regex that repeats a group is refused")
    for group in config.resolved_groups():
        if group.spec.count > POSITIONS_LIMIT:
            raise AdapterError(
                f"{where} has positions={group.positions!r}; at most {POSITIONS_LIMIT} positions are served"
            )
    return config


def _parse_tensors(folder: Path, content: bytes) -> dict[str, Tensor]:
    where = f"the {WEIGHTS} of {str(folder)!r}"
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise AdapterError(f"{where} is corrupt: {error}") from error
    if not tensors:
        raise AdapterError(f"{where} has no tensors")
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise AdapterError(f"{where}: {key!r} is of {tensor.dtype}, not of floating point")
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{where}: {key!r} has values that are not finite numbers")
    return tensors


def _check_units(files: AdapterFiles) -> None:
    """Refuse tensors that do not fit the configuration, before anything of the sizes that it asks for is built."""
    groups = files.config.resolved_groups()
    units = [(path, i, unit) for (path, _), found in files.sites.items() for i, unit in enumerate(found)]
    fits = [[unit_width(unit, group) is not None for group in groups] for _, _, unit in units]
    for (path, i, unit), fit in zip(units, fits, strict=True):
        if not any(fit):
            shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(unit.items()))
            wanted = " or ".join(f"{group.intervention} of rank {group.r}" for group in groups)
            raise AdapterError(
                f"the adapter {str(files.path)!r}: the tensors of {path!r}, intervention {i} ({shapes}), are not those "
                f"of {wanted}, which its configuration names"
            )
    counts = [_unit_count(group) for group in groups]
    if not all(any(column) for column in zip(*fits, strict=True)) or len(units) < sum(counts):
        raise AdapterError(
            f"the adapter {str(files.path)!r} has tensors of {len(units)} interventions, but its configuration asks "
            f"for {' + '.join(map(str, counts))} or more"
        )


def _unit_count(group: ReftGroup) -> int:
    """How many Φ the group has at a site."""
    if group.tie == "all":
        return 1
    spec = group.spec
    return (spec.first > 0) + (spec.last > 0) if group.tie == "group" else spec.count


def _numbered(site: tuple[str, str]) -> list[tuple[bool, int, str]]:
    """To sort paths by the numbers in them."""
    parts = [part for name in site for part in name.split(".")]
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, sorted(numbers))) or "none"
