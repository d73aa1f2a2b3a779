"""Checkpoints of pyreft 0.0.5 to 0.1.0: `config.json` and one `intkey_….bin` for each Φ.

A checkpoint says which layers and components were edited, by Φ of which class, but not at which positions: those are in
the data that it was trained on.  Neither does it say an activation.  So both are told by who converts it.

Formulas: `pyreft/interventions.py`; names of files: `pyvene/models/intervenable_base.py`.  Classes are known by name,
nothing of pyreft is imported.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.style import PromptStyle
from ..errors import ReftuneError
from ..models import check_model
from ..specs import PositionSpec, parse_positions
from ..tuner.parts import Group, Part
from ..values import shown
from .parts import identity_of, write
from .pickles import json_object, tensors_of
from .rows import check_orthonormal, from_parametrisation

__all__ = ["CLASSES", "Checkpoint", "convert", "groups_of", "read_checkpoint"]

# what pyreft calls it → what it is called here
CLASSES = {
    "LoreftIntervention": "loreft",
    "NoreftIntervention": "noreft",
    "ConsreftIntervention": "consreft",
    "LobireftIntervention": "lobireft",
    # h + Rᵀ(Wh + b) with an orthonormal R, and h + W2ᵀ(W1h + b), which the paper calls DiReFT
    "DireftIntervention": "direft_orthonormal",
    "NodireftIntervention": "direft",
}
COMPONENTS = ("block_output", "attention_output", "mlp_output")
# where these mean the same to pyvene and here; in other models only block_output does
SAME_COMPONENTS = ("gemma", "gpt2", "gpt_neo", "gpt_neox", "llama", "mistral", "olmo", "qwen2")
# "model.layers[3].mlp.output" and the like, which pyreft takes for models that it does not know
BY_PATH = re.compile(r"(?:model\.layers|transformer\.h|gpt_neox\.layers)\[(\d+)\](?:\.(self_attn|attn|mlp))?\.output")
OF_PATH = {None: "block_output", "self_attn": "attention_output", "attn": "attention_output", "mlp": "mlp_output"}
FIELDS = ("layer", "component", "unit", "max_number_of_units", "low_rank_dimension")
PARAMETRISED = "rotate_layer.parametrizations.weight"
PASSED_OVER = ("embed_dim", "interchange_dim")


@dataclass(frozen=True)
class Checkpoint:
    """(layer, component) → the Φ there, in the order in which pyreft has them."""

    parts: dict[tuple[int, str], list[Part]]


def convert(
    folder: str | Path,
    output: str | Path,
    *,
    base: str,
    positions: str,
    before_last: bool = False,
    act_fn: str | None = None,
    style: PromptStyle | None = None,
) -> Path:
    """The checkpoint in a folder as an adapter in another; see `groups_of` for the positions.

    Raises:
        ReftuneError: it cannot be converted; nothing is written then.
    """
    checkpoint = read_checkpoint(folder, act_fn=act_fn)
    groups = groups_of(checkpoint, positions, before_last=before_last)
    kind = check_model(base).get_text_config().model_type
    odd = sorted({component for _, component in checkpoint.parts if component != "block_output"})
    if odd and kind not in SAME_COMPONENTS:
        raise ReftuneError(
            f"{odd[0]!r} of a {kind} need not be the same module to pyreft as here; of models other than "
            f"{', '.join(SAME_COMPONENTS)} only block_output can be converted"
        )
    return write(groups, base=base, output=output, style=style)


def read_checkpoint(folder: str | Path, *, act_fn: str | None = None) -> Checkpoint:
    """All Φ of the checkpoint in a folder.

    Raises:
        ReftuneError: a file is missing, cut or holds something else; or it says something that is not known here.
    """
    root, act_fn = Path(folder), None if act_fn == "linear" else act_fn
    config = json_object(_config_of(root))
    classes, written = config.get("intervention_types"), config.get("representations")
    if not isinstance(classes, list) or not isinstance(written, list) or len(classes) != len(written) or not classes:
        raise ReftuneError(
            f"{str(root)!r} is no checkpoint of pyreft: its config.json has no list of representations with as many "
            "intervention_types"
        )
    if config.get("mode", "parallel") != "parallel":
        raise ReftuneError(
            f"{str(root)!r}: mode={shown(config['mode'])} is not valid; only 'parallel' can be converted"
        )
    _refuse_head(root)
    parts: dict[tuple[int, str], list[Part]] = {}
    seen: Counter[str] = Counter()
    for name, values in zip(classes, written, strict=True):
        fields = _fields(values)
        kind, site = _kind(name), _site(fields)
        part = _part(kind, _tensors(root, fields, seen), f"layer {site[0]} of {str(root)!r}", act_fn)
        parts.setdefault(site, []).append(part)
    return Checkpoint(parts)


def _config_of(root: Path) -> Path:
    file = root / "config.json"
    if file.is_file():
        return file
    if not root.is_dir():
        raise ReftuneError(f"{str(root)!r} is no folder; name that of a checkpoint of pyreft")
    if any(root.glob("intkey_*.bin")):
        raise ReftuneError(
            f"{str(root)!r} has Φ but no config.json, as pyreft's trainer leaves them: load the checkpoint in pyreft "
            "and write it with reft_model.save(DIR)"
        )
    raise ReftuneError(f"{str(root)!r} is no checkpoint of pyreft: it has no config.json and no intkey_*.bin")


def _refuse_head(root: Path) -> None:
    """Weights of the model itself that were trained too, such as a classifier."""
    file = root / "pytorch_model.bin"
    trained = sorted(tensors_of(file)) if file.is_file() else []
    if trained:
        raise ReftuneError(
            f"{str(root)!r} was trained with weights of the model itself ({shown(trained[0])} and {len(trained) - 1} "
            "more), which an adapter of causal language models cannot hold; without them its Φ are of no use"
        )


def _fields(values: Any) -> dict[str, Any]:
    """Of one representation: pyvene writes a list in the order of its fields, or a dictionary."""
    if isinstance(values, list) and len(values) >= len(FIELDS):
        found: dict[str, Any] = dict(zip(FIELDS, values, strict=False))
    elif isinstance(values, dict):
        found = {name: values.get(name) for name in FIELDS}
    else:
        raise ReftuneError(f"config.json: {shown(values)} is no representation as pyreft writes them")
    if type(found["layer"]) is not int or not isinstance(found["component"], str):
        raise ReftuneError(f"config.json: {shown(values)} names no layer and component")
    if found["unit"] != "pos" or found["max_number_of_units"] != 1:
        raise ReftuneError(
            f"config.json: unit={shown(found['unit'])}, max_number_of_units={shown(found['max_number_of_units'])} is "
            "not valid; only single positions ('pos', 1) can be converted"
        )
    return found


def _kind(name: Any) -> str:
    """Our name of a class, which is written as <class 'pyreft.interventions.LoreftIntervention'>."""
    match = re.fullmatch(r"<class '[\w.]*?(\w+)'>", name) if isinstance(name, str) else None
    if match is None or match[1] not in CLASSES:
        raise ReftuneError(f"the intervention {shown(name)} is not known; known are {', '.join(CLASSES)}")
    return CLASSES[match[1]]


def _site(fields: dict[str, Any]) -> tuple[int, str]:
    component = fields["component"]
    if component in COMPONENTS:
        return fields["layer"], component
    match = BY_PATH.fullmatch(component)
    if match is None:
        raise ReftuneError(
            f"component={shown(component)} cannot be converted; valid are {', '.join(COMPONENTS)} and their paths, "
            "such as 'model.layers[3].output'"
        )
    return int(match[1]), OF_PATH[match[2]]


def _tensors(root: Path, fields: dict[str, Any], seen: Counter[str]) -> dict[str, Tensor]:
    """Of the file of one representation; `seen` counts those at the same place."""
    component, layer = fields["component"], fields["layer"]
    end = f"unit.{fields['unit']}.nunit.{fields['max_number_of_units']}"
    key = f"comp.{component}.{end}" if "." in component else f"layer.{layer}.comp.{component}.{end}"
    number = seen[key]
    seen[key] += 1
    # with dots before pyvene 0.1.7, with underscores since
    files = [root / f"intkey_{name}#{number}.bin" for name in (key, key.replace(".", "_"))]
    found = [file for file in files if file.is_file()]
    if not found:
        raise ReftuneError(f"{str(root)!r} is not whole: it has no {files[1].name}, nor {files[0].name}")
    return tensors_of(found[0])


def _part(kind: str, tensors: dict[str, Tensor], where: str, act_fn: str | None) -> Part:
    """One Φ under our names.

    Raises:
        ReftuneError: tensors are missing or not known.
    """
    left = {name: tensor for name, tensor in tensors.items() if name not in PASSED_OVER}
    acts = kind not in ("consreft", "lobireft")
    try:
        own: dict[str, Tensor] = {}
        if kind in ("noreft", "direft"):
            own = {"W2": left.pop("proj_layer.weight"), **_source(left, "W1")}
            own["b"] = _without_bias_of_rows(kind, own["b"], left.pop("proj_layer.bias", None), act_fn, where)
        else:
            own = {"R": _rows(left)}
            own |= _source(left, "W") if acts else {"b": left.pop("learned_source")}
    except KeyError as error:
        raise ReftuneError(
            f"{where}: a {kind} has {shown(error.args[0])}, which is missing; it has {shown(sorted(tensors))}"
        ) from None
    if left:
        raise ReftuneError(f"{where}: {shown(sorted(left))} is not known of a {kind}")
    if any(not tensor.is_floating_point() for tensor in own.values()):
        raise ReftuneError(f"{where}: its tensors are not numbers with a point")
    _check_ranks(kind, own, where)
    if "R" in own:
        check_orthonormal(own["R"], where)
    return Part(kind, {name: tensor.float() for name, tensor in own.items()}, act_fn if acts else None)


def _source(left: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The learned affine map, which LoReFT keeps without the name of its layer."""
    prefix = "" if "weight" in left else "learned_source."
    return {name: left.pop(f"{prefix}weight"), "b": left.pop(f"{prefix}bias")}


def _without_bias_of_rows(kind: str, b: Tensor, of_rows: Tensor | None, act_fn: str | None, where: str) -> Tensor:
    """NoReFT with `add_bias` is h + W2ᵀ(act(W1h + b) − (W2h + c)); DiReFT has c as well but does not use it."""
    if of_rows is None or kind == "direft" or not bool(of_rows.any()):
        return b
    if act_fn is not None:
        raise ReftuneError(f"{where}: a bias of W2 beside act_fn={act_fn!r} has no counterpart here")
    return b.float() - of_rows.float()


def _check_ranks(kind: str, own: dict[str, Tensor], where: str) -> None:
    shapes = {name: list(tensor.shape) for name, tensor in own.items()}
    r = len(own["b"]) if own["b"].ndim == 1 else -1
    wide = {tuple(tensor.shape) for name, tensor in own.items() if name != "b"}
    if len(wide) != 1 or len(shape := wide.pop()) != 2 or shape[0] != r or r > shape[1]:
        raise ReftuneError(f"{where}: {shown(shapes)} are no tensors of one {kind}")


def _rows(left: dict[str, Tensor]) -> Tensor:
    """R [r, d].  pyreft keeps its transpose: as it is, or as torch's `parametrizations.orthogonal` stores it."""
    if "rotate_layer" in left:
        kept = left.pop("rotate_layer")
    else:
        kept = from_parametrisation(left.pop(f"{PARAMETRISED}.original"), left.pop(f"{PARAMETRISED}.0.base"))
    if kept.ndim != 2:
        raise KeyError("rotate_layer of two dimensions")
    return kept.mT.contiguous()


def groups_of(checkpoint: Checkpoint, positions: str, *, before_last: bool = False) -> list[Group]:
    """The Φ at the positions that they were trained at.

    One Φ at a place is shared by all positions; of two the first is the prefix's and the second the suffix's.  With
    `before_last` the suffix ends one token before the last of the prompt, as pyreft's published scripts have it
    (`LoreftSupervisedDataset`): then each token has a Φ of its own, copies but for the last, which edits nothing.

    Raises:
        ReftuneError: positions and checkpoint do not go together.
    """
    spec = parse_positions(positions)
    if spec.scope != "span" or not spec.count:
        raise ReftuneError(f"positions={positions!r} are not pyreft's; valid are f<p>, l<s> and f<p>+l<s>")
    if before_last and not spec.last:
        raise ReftuneError(
            f"positions={positions!r} have no suffix, so it cannot end before the last token of the prompt"
        )
    found: dict[tuple[Any, ...], Group] = {}
    for (layer, component), parts in sorted(checkpoint.parts.items()):
        for text, tie, phis in _placed(parts, spec, before_last=before_last, where=f"{component} of layer {layer}"):
            kind = phis[0].kind
            group = found.setdefault((component, text, kind), Group(component, text, tie, kind))
            group.phis[layer] = phis
    return list(found.values())


def _placed(
    parts: list[Part], spec: PositionSpec, *, before_last: bool, where: str
) -> list[tuple[str, str, list[Part]]]:
    """Positions, tie and Φ of what edits one place."""
    if len(parts) > 2:
        raise ReftuneError(f"{where}: {len(parts)} Φ edit it; which positions each has is not in the checkpoint")
    if len(parts) == 2 and not (spec.first and spec.last):
        raise ReftuneError(
            f"{where}: two Φ edit it, one for the first and one for the last tokens, so positions={str(spec)!r} cannot "
            "be right; valid are such as 'f7+l7'"
        )
    first, last = parts[0], parts[-1]
    prefix = [(f"f{spec.first}", "all", [first])] if spec.first else []
    if before_last:
        suffix = [last] * spec.last + [identity_of(last)]
        return [*prefix, (f"l{spec.last + 1}", "none", suffix)]
    if len(parts) == 1:
        return [(str(spec), "all", parts)]
    if first.kind == last.kind:
        return [(str(spec), "group", parts)]
    return [*prefix, (f"l{spec.last}", "all", [last])]
