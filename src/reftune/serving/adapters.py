"""Saved adapters, read and checked once, before any model or engine sees them.

Only `adapter_config.json` and `adapter_model.safetensors` are read: neither can execute anything.  A folder may come
from a stranger, so that every size in it has its limit, texts of it are compared and never matched or looked up, and
which modules are edited is read off the names of the tensors.  All that can be known to be wrong without the model is
refused here, with the reason: broken files, other methods, tensors that do not fit the configuration.  What needs the
model's sizes is asked by `check_width` and `check_layers`.

Must not know: models, transformers, backends.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..config import ReftConfig, ReftGroup, resolve_layers
from ..errors import ReftuneError
from ..interventions import INTERVENTIONS
from ..peft_type import PREFIX
from ..positions import PositionSpec, kinds_of_ids, unit_count, unresolved_terms
from ..tuner.layer import groups_overlap
from .limits import check_sizes, cut, plain
from .pieces import breathe
from .tensors import parse_tensors

__all__ = [
    "AdapterError",
    "AdapterFiles",
    "check_layers",
    "check_width",
    "read_adapter",
    "read_file",
    "served_config",
    "unit_width",
]

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
CONFIG_LIMIT = 1 << 18
WEIGHTS_LIMIT = 10**9
GROUPS_LIMIT = 128
# What names modules is not looked at, however long it is.
NAMES = ("target_modules", "exclude_modules")
# Each position takes room in every batch, whatever the prompts' lengths, and each Φ time in every step.
POSITIONS_LIMIT = 2048
UNITS_LIMIT = 512
TERMS_LIMIT = 32
KINDS_LIMIT = 16
ORDERS_LIMIT = 8192
SHAPES_LIMIT = 256
# Canonical numbers only: "00" would be another name of what "0" names.
NUMBER = "0|[1-9][0-9]{0,5}"
KEY = re.compile(
    rf"base_model\.model\.(?P<path>.+)\.(?P<child>hidden_edit|head_edit_(?:{NUMBER}))"
    rf"\.{PREFIX}(?P<unit>{NUMBER})\.(?P<name>[A-Za-z][A-Za-z0-9_]*)"
)
# One Φ of a saved adapter: its tensors by the names of its parameters.
UnitTensors = Mapping[str, Tensor]
Shapes = frozenset[tuple[str, tuple[int, ...]]]


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
    def groups(self) -> list[ReftGroup]:
        """The configuration's, with every field filled in."""
        return self.config.resolved_groups()

    @cached_property
    def sites(self) -> dict[tuple[str, str], tuple[UnitTensors, ...]]:
        """(path of the edited module, name of the edit below it) → the tensors of each Φ there, in order."""
        found: dict[tuple[str, str], dict[int, dict[str, Tensor]]] = {}
        for key, tensor in self.tensors.items():
            breathe()
            match = KEY.fullmatch(key)
            if match is None:
                raise AdapterError(
                    f"the adapter {str(self.path)!r} has the tensor {key[:120]!a}, which belongs to no "
                    "intervention; only interventions are served, not other modules that were trained with them"
                )
            units = found.setdefault((match["path"], match["child"]), {})
            units.setdefault(int(match["unit"]), {})[match["name"]] = tensor
        for (path, _), units in found.items():
            if max(units) >= len(units):
                lacks = next(i for i in range(len(units)) if i not in units)
                raise AdapterError(f"the adapter {str(self.path)!r} lacks intervention {lacks} of {cut(path)}")
        # in the order of the blocks, which is not that of the files
        return {site: tuple(found[site][i] for i in range(len(found[site]))) for site in sorted(found, key=_numbered)}

    @cached_property
    def blocks(self) -> dict[str, tuple[UnitTensors, ...]]:
        """Path of the edited module, as in the transformers model → the tensors of each Φ on its output, in order."""
        return {path: units for (path, child), units in self.sites.items() if child == "hidden_edit"}

    @cached_property
    def widths(self) -> frozenset[int]:
        """Widths of the hidden states that are edited: one, unless single modules or heads are."""
        found = {_width_of(shapes, group) for shapes in self.shapes for group in self.groups}
        return frozenset(width for width in found if width is not None)

    @cached_property
    def shapes(self) -> frozenset[Shapes]:
        """Of the Φ that there are."""
        return frozenset(_shapes_of(unit) for units in self.sites.values() for unit in units)


def read_adapter(path: str | Path, *, limit: int = WEIGHTS_LIMIT) -> AdapterFiles:
    """Read an adapter's folder and check that it is whole.

    Files larger than `limit` bytes are refused before they are read.

    Raises:
        AdapterError: there is no ReFT adapter, or one that cannot be served; the message says why.
    """
    folder = Path(path)
    try:
        is_folder, only_pickle = folder.is_dir(), not (folder / WEIGHTS).exists() and (folder / PICKLE).exists()
    except (OSError, ValueError) as error:  # a name that is too long, or not to be looked at
        raise AdapterError(f"there is no adapter in {cut(str(path))}: {error}") from error
    if not is_folder:
        raise AdapterError(f"there is no adapter in {str(path)!r}: it is not a folder")
    if only_pickle:
        raise AdapterError(
            f"the adapter {str(path)!r} holds {PICKLE}, which is refused: reading a pickle can execute code. Load it "
            f"where you trust it and save it again, which writes {WEIGHTS}"
        )
    config_bytes = read_file(folder / CONFIG, CONFIG_LIMIT)
    config = _parse_config(folder, config_bytes.tobytes())
    weights = read_file(folder / WEIGHTS, limit)
    digest = hashlib.blake2b(digest_size=32)
    for content in (config_bytes, weights):
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)  # type: ignore[arg-type]
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
    if any(group.layers is None or group.component.startswith("attention_head") for group in files.groups):
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
    groups = files.groups
    if any(group.layers is None or group.component != "block_output" for group in groups):
        return
    try:
        wanted = {i for group in groups for i in resolve_layers(group.layers or "all", count)}
    except (ValueError, OverflowError) as error:
        raise AdapterError(f"the adapter {str(files.path)!r}: {plain(str(error))}") from error
    found = {int(path.rpartition(".")[2]) for path in files.blocks if path.rpartition(".")[2].isdecimal()}
    if missing := wanted - found:
        raise AdapterError(f"the adapter {str(files.path)!r} has no tensors for layers {_listed(missing)}")
    if extra := found - wanted:
        raise AdapterError(
            f"the adapter {str(files.path)!r} has tensors for layers {_listed(extra)}, which its configuration does "
            f"not name in a model of {count} layers; it was made for another model"
        )


def check_disjoint(files: AdapterFiles, sites: Iterable[Sequence[ReftGroup]]) -> None:
    """Refuse groups that edit the same tokens at one site.

    Raises:
        AdapterError: two of a site's groups do.
    """
    for groups in sites:
        for one, other in combinations(groups, 2):
            if groups_overlap(one, other):
                raise AdapterError(
                    f"the adapter {str(files.path)!r} has two groups that edit {one.component[:40]} of one layer at "
                    f"overlapping positions ({cut(one.positions)} and {cut(other.positions)})"
                )


def unit_width(unit: UnitTensors, group: ReftGroup) -> int | None:
    """The width d for which these are the tensors of a Φ of the group, None if there is none."""
    return _width_of(_shapes_of(unit), group)


def _shapes_of(unit: UnitTensors) -> Shapes:
    return frozenset((name, tuple(tensor.shape)) for name, tensor in unit.items())


def _width_of(shapes: Shapes, group: ReftGroup) -> int | None:
    kind, options = INTERVENTIONS[group.intervention], group.options
    found = dict(shapes)
    for d in sorted({size for shape in found.values() for size in shape}, reverse=True):
        if kind.parameter_shapes(d, options) | kind.buffer_shapes(d, options) == found:
            return d
    return None


def read_file(path: Path, limit: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """All bytes of a regular file of an adapter.

    It is looked at once it is open, so that it cannot become another in between.

    Raises:
        AdapterError: there is none, it is something else, or it is longer than `limit`.
    """
    where = f"the adapter {str(path.parent)!r} is refused: {path.name}"
    try:
        # nonblocking: opening a pipe that nobody writes to would never return
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AdapterError(f"there is no adapter in {str(path.parent)!r}: {path.name}: {reason}") from error
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise AdapterError(f"{where} is not a regular file")
        if state.st_size > limit:
            raise AdapterError(f"{where} has {state.st_size} bytes, more than the {limit} that are allowed")
        content = np.empty(state.st_size, np.uint8)
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            done = 0
            # in pieces: a call reads up to 2 GB
            while done < len(content) and (count := file.readinto(content.data[done:])):
                done += count
            if done < len(content) or file.read(1):
                raise AdapterError(f"{where} was written while it was read; load it again when it is whole")
    except OSError as error:
        raise AdapterError(f"{where} cannot be read: {error}") from error
    finally:
        os.close(descriptor)
    return content


def _parse_config(folder: Path, content: bytes) -> ReftConfig:
    where = f"the {CONFIG} of {str(folder)!r}"
    try:
        values: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{where} cannot be read: {plain(str(error))}") from error
    if not isinstance(values, dict):
        raise AdapterError(f"{where} is not a JSON object")
    kind = values.pop("peft_type", None)
    if kind != "REFT":
        raise AdapterError(f"{where} is of an adapter of type {cut(kind)}; only 'REFT' is served")
    known = {f.name for f in fields(ReftConfig) if f.init}
    unknown = sorted(cut(name) for name in set(values) - known)
    if unknown:
        raise AdapterError(
            f"{where} has fields that this version of reftune does not know: {', '.join(unknown[:10])}; it may be newer"
        )
    if values.get("modules_to_save"):
        raise AdapterError(
            f"{where} has modules_to_save={cut(values['modules_to_save'])}; only interventions are served"
        )
    # the names of the tensors say which modules are edited
    values = {name: value for name, value in values.items() if name not in NAMES}
    try:
        return served_config(values)
    except ValueError as error:
        raise AdapterError(f"{where} is not valid: {plain(str(error))}") from error


def served_config(values: dict[str, Any], tokenizer: Any = None) -> ReftConfig:
    """The configuration of these fields, within the limits of what is served; with ids of `tokenizer` for texts.

    Raises:
        ValueError: a value is not valid, or larger than is served.
    """
    try:
        check_sizes(values)
        if isinstance(values.get("groups"), list) and len(values["groups"]) > GROUPS_LIMIT:
            raise ValueError(f"{len(values['groups'])} groups are more than the {GROUPS_LIMIT} that are served")
        config = ReftConfig(**values)
        if tokenizer is not None:
            config.resolve_texts(tokenizer)
        _check_counts(config.resolved_groups())
    except (TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from error
    return config


def _check_counts(groups: list[ReftGroup]) -> None:
    """Refuse more positions or Φ than are served; `ValueError` says how many."""
    positions = sum(max(group.spec.count, group.spec.longest) for group in groups)
    if positions > POSITIONS_LIMIT:
        raise ValueError(
            f"positions={cut(groups[0].positions)}{' and so on' if len(groups) > 1 else ''}: at most "
            f"{POSITIONS_LIMIT} positions are served; 'prompt' edits every token of it"
        )
    _check_terms([group.spec for group in groups if group.spec.scope == "terms"])
    units = sum(unit_count(group.spec, group.tie) for group in groups)
    if units > UNITS_LIMIT:
        raise ValueError(f"{units} interventions a layer are asked for; at most {UNITS_LIMIT} are served")


def _check_terms(specs: list[PositionSpec]) -> None:
    """Refuse positions of terms whose orders, with all that tokens can be, are too many to be gone through."""
    terms = sum(len(spec.added) + len(spec.without) for spec in specs)
    if terms > TERMS_LIMIT:
        raise ValueError(f"positions have {terms} terms; at most {TERMS_LIMIT} are served")
    if unresolved_terms(specs):
        raise ValueError(
            "positions have a text(…) or a turn:, whose tokens are not known; adapters are saved with ids: id(…), "
            "turn(…):"
        )
    kinds = len(kinds_of_ids(specs)) + 1
    longest = sum(spec.longest for spec in specs)
    if kinds > KINDS_LIMIT or kinds * longest > ORDERS_LIMIT:
        raise ValueError(
            f"positions tell {kinds} kinds of tokens apart by their ids and count {longest} tokens; at most "
            f"{KINDS_LIMIT} kinds are served, and {ORDERS_LIMIT // kinds} tokens with so many"
        )


def _parse_tensors(folder: Path, content: np.ndarray[Any, np.dtype[np.uint8]]) -> dict[str, Tensor]:
    try:
        return parse_tensors(content)
    except ValueError as error:
        raise AdapterError(f"the {WEIGHTS} of {str(folder)!r} {error}") from error


def _check_units(files: AdapterFiles) -> None:
    """Refuse tensors that do not fit the configuration, before anything of the sizes that it asks for is built."""
    groups = list({(group.intervention, group.options): group for group in files.groups}.values())
    if len(files.shapes) > SHAPES_LIMIT:
        raise AdapterError(
            f"the adapter {str(files.path)!r} has interventions of {len(files.shapes)} different shapes, more than the "
            f"{SHAPES_LIMIT} that are served"
        )
    fits: dict[Shapes, list[bool]] = {}
    for shapes in files.shapes:
        breathe()
        fits[shapes] = [_width_of(shapes, group) is not None for group in groups]
    count = 0
    for (path, _), units in files.sites.items():
        for i, unit in enumerate(units):
            breathe()
            count += 1
            if not any(fits[_shapes_of(unit)]):
                raise AdapterError(
                    f"the adapter {str(files.path)!r}: the tensors of {cut(path)}, intervention {i} "
                    f"({_told(unit)}), are not those of {_wanted(groups)}, which its configuration names"
                )
    counts = [unit_count(group.spec, group.tie) for group in files.groups]
    if not all(any(column) for column in zip(*fits.values(), strict=True)) or count < sum(counts):
        raise AdapterError(
            f"the adapter {str(files.path)!r} has tensors of {count} interventions, but its configuration asks "
            f"for {plain(' + '.join(map(str, counts)))} or more"
        )


def _told(unit: UnitTensors) -> str:
    return plain(", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(unit.items())))


def _wanted(groups: list[ReftGroup]) -> str:
    return plain(" or ".join(f"{group.intervention} of rank {group.r}" for group in groups))


def _numbered(site: tuple[str, str]) -> list[tuple[bool, int, str]]:
    """To sort paths by the numbers in them."""
    breathe()
    parts = [part for name in site for part in name.split(".")]
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _listed(numbers: Any) -> str:
    return plain(", ".join(map(str, sorted(numbers)))) or "none"
