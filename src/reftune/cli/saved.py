"""What an adapter's own files tell of where it edits, without its base model and without torch.

All that is not just as `save_pretrained` writes it is left to PEFT, which loads the adapter and says what is wrong.

Must not know: models, what is printed.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from ..specs import parse_positions, unit_count

__all__ = ["Edit", "Saved", "read_saved"]

LIMIT = 2**24
MOST_GROUPS = 128
FIELDS = ("r", "layers", "component", "positions", "tie", "intervention", "vector")
COMPONENT = re.compile(r"block_output|attention_output|mlp_output|attention_head\[\d{1,6}\]", re.ASCII)
LAYERS = re.compile(r" *\d{1,6} *(?:[;,] *\d{1,6} *)*", re.ASCII)
# files beside the interventions that are none; a test holds the list to the registry
HELPERS = ("__init__", "activations", "base", "orthonormal")
KEY = re.compile(
    r"base_model\.model\.(?P<path>.+)\.(?P<child>hidden_edit|head_edit_\d+)"
    r"\.intervention_(?P<unit>\d+)\.\w+",
    re.ASCII,
)


class Edit(NamedTuple):
    """One group of an adapter at one site."""

    layer: int
    module: str
    component: str
    intervention: str
    positions: str
    rank: int
    parameters: int
    tokens: tuple[int, ...] | None = None
    """Indices of the edited prompt tokens, None if none of the prompt is edited."""


class Saved(NamedTuple):
    """An adapter as its files have it."""

    base: str | None
    edits: list[Edit]


def read_saved(folder: str | Path) -> Saved | None:
    """The sites of the adapter in a folder; None if that cannot be told with certainty from its files alone.

    It cannot for other methods, modules that were trained beside ReFT, weights that are not safetensors, layers counted
    from the end, encoders with decoders, and whatever is damaged.
    """
    try:
        file = Path(folder) / "adapter_config.json"
        config = _content(file, 0, file.stat().st_size)
        if config["peft_type"] != "REFT" or config["modules_to_save"]:
            return None
        own = {name: config[name] for name in FIELDS}
        groups = [{**own, **chosen} for chosen in config["groups"] or [{}]]
        for group in groups:
            group["layers"] = _numbers(group["layers"])
        base = config["base_model_name_or_path"]
        if len(groups) > MOST_GROUPS:
            return None
        edits = _edits(_shapes(Path(folder) / "adapter_model.safetensors"), groups)
    except (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError):
        return None
    return Saved(base if isinstance(base, str) else None, edits)


def _content(file: Path, start: int, size: int) -> Any:
    """JSON that is `size` bytes of a file."""
    if size > LIMIT or not file.is_file():
        raise ValueError("more than any adapter has, or no file")
    with file.open("rb") as opened:
        opened.seek(start)
        return json.loads(opened.read(size))


def _shapes(file: Path) -> dict[str, list[int]]:
    """Name of each tensor in a safetensors file, which is whole, → its shape."""
    if not file.is_file():
        raise ValueError("no file")
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
    found = _content(file, 8, size)
    found.pop("__metadata__", None)
    if 8 + size + max(entry["data_offsets"][1] for entry in found.values()) != file.stat().st_size:
        raise ValueError("it is cut, or longer than its header says")
    return {name: entry["shape"] for name, entry in found.items()}


def _edits(shapes: dict[str, list[int]], groups: list[dict[str, Any]]) -> list[Edit]:
    """What each group does at each site.

    Raises:
        ValueError: the tensors are not, or not for certain, those that the groups ask for.
    """
    counts = [_units(group) for group in groups]
    sites: dict[tuple[str, str], dict[int, list[list[int]]]] = {}
    for name, shape in shapes.items():
        match = KEY.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} is of no intervention")
        sites.setdefault((match["path"], match["child"]), {}).setdefault(int(match["unit"]), []).append(shape)
    found = []
    for (path, child), units in sites.items():
        (layer,) = (int(part) for part in path.split(".") if part.isdecimal())
        first = 0
        for group, count in zip(groups, counts, strict=True):
            if (len(groups) > 1 and not _is_in(group, layer)) or not _is_of(group, path, child):
                continue
            own = [shape for i in range(first, first + count) for shape in units[i]]
            if not all(group["r"] in shape for shape in own if len(shape) > 1):
                raise ValueError(f"the rank of {path} is another")
            what = (group["component"], group["intervention"], group["positions"], group["r"])
            found.append(Edit(layer, path, *what, sum(map(math.prod, own))))
            first += count
        if first != len(units):
            raise ValueError(f"{path} has {len(units)} interventions, not {first}")
    _check_layers(found, [group["layers"] for group in groups])
    return sorted(found, key=lambda edit: edit.layer)


def _units(group: dict[str, Any]) -> int:
    """How many Φ a group has at a site, once what is shown of it is seen to be valid."""
    kind, spec = group["intervention"], parse_positions(group["positions"])
    file = Path(__file__).parents[1] / "interventions" / f"{kind}.py"
    if not kind.isidentifier() or kind in HELPERS or not file.is_file():
        raise ValueError("an intervention of others")
    if group["vector"] != "learned" or type(group["r"]) is not int or group["positions"] != str(spec):
        raise ValueError("parameters, a rank or positions that are not told here")
    if group["tie"] not in ("all", "group", "none") or not COMPONENT.fullmatch(group["component"]):
        raise ValueError("a tie or a component that there is not")
    return unit_count(spec, group["tie"])


def _is_in(group: dict[str, Any], layer: int) -> bool:
    layers = group["layers"]
    if layers != "all" and not _are_counted(layers):
        raise ValueError("layers that only the model can count")
    return layers == "all" or layer in layers


def _numbers(layers: Any) -> Any:
    """Layers that are written as a text, such as "3;9", as a list; others as they are."""
    if isinstance(layers, str) and LAYERS.fullmatch(layers):
        return [int(text) for text in re.split("[;,]", layers)]
    return layers


def _are_counted(layers: Any) -> bool:
    """Whether these are numbers of blocks, none counted from the end."""
    return isinstance(layers, list) and all(type(layer) is int and layer >= 0 for layer in layers)


def _is_of(group: dict[str, Any], path: str, child: str) -> bool:
    """Whether this may be a site of the group's component; which module is attention or MLP, only the model knows."""
    component = group["component"]
    if group["layers"] is None:
        return child == "hidden_edit"
    if child != "hidden_edit":
        return component == f"attention_head[{child.removeprefix('head_edit_')}]"
    is_block = path.rpartition(".")[2].isdecimal()
    return component == "block_output" if is_block else component in ("attention_output", "mlp_output")


def _check_layers(found: list[Edit], named: list[Any]) -> None:
    """That blocks have the numbers that their paths have: an encoder and its decoder are counted through."""
    here = {edit.layer for edit in found}
    if all(map(_are_counted, named)):
        wanted = {layer for layers in named for layer in layers}
    elif "all" in named and len({re.split(r"\.\d", edit.module)[0] for edit in found}) == 1:
        wanted = set(range(max(here) + 1))
    else:
        wanted = here if named == [None] else set()
    if here != wanted:
        raise ValueError("other layers than the configuration names, or in a way that only the model can tell")
