"""`ReftConfig`: everything that defines a ReFT adapter, checked when it is built.

Must not know: models and torch modules; it looks up the registry of interventions and the grammar of positions only.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from peft.config import PeftConfig

from .interventions import ACTIVATIONS, INTERVENTIONS, InterventionOptions
from .peft_type import REFT
from .positions import PositionSpec, Tie, parse_positions

__all__ = ["ReftConfig", "ReftGroup", "resolve_layers"]

TIES = ("all", "group", "none")
INITS = ("identity", "paper", "random")
UNKNOWN_PROMPTS = ("refuse", "whole")
VECTORS = ("learned", "given")
ACT_FNS = ("linear", *ACTIVATIONS)
COMPONENTS = ("block_output", "attention_output", "mlp_output", "attention_head[i]")
LAYERS_HELP = "'all', an index such as 3 or -1, a fraction such as 0.5, a list of these, or a text such as '3;9;18'"

Layer = int | float
Layers = str | Layer | list[Layer]


@dataclass(frozen=True)
class ReftGroup:
    """One intervention of the paper's Def. 3.2: a Φ, its positions and its layers, all fields valid."""

    r: int
    layers: Layers | None
    component: str
    positions: str
    tie: Tie
    intervention: str
    dropout: float
    act_fn: str | None
    init: str
    vector: str
    subspaces: list[list[int]] | None
    active_subspaces: list[int] | None

    @property
    def spec(self) -> PositionSpec:
        """The positions, parsed."""
        return parse_positions(self.positions)

    @property
    def head(self) -> int | None:
        """i of `attention_head[i]`, None for other components."""
        return int(self.component[len("attention_head[") : -1]) if self.component.startswith("attention_head") else None

    @property
    def options(self) -> InterventionOptions:
        """What the Φ itself needs."""
        return InterventionOptions(
            r=self.r, act_fn=self.act_fn, dropout=self.dropout, init=self.init, vector=self.vector
        )

    @property
    def active_rows(self) -> frozenset[int]:
        """Rows of the rank that this group edits: all, unless `active_subspaces` chooses."""
        if self.subspaces is None or self.active_subspaces is None:
            return frozenset(range(self.r))
        return frozenset(row for i in self.active_subspaces for row in self.subspaces[i])


GROUP_FIELDS = tuple(f.name for f in fields(ReftGroup))


@dataclass
class ReftConfig(PeftConfig):
    """Configuration of representation finetuning (ReFT, arXiv 2404.03592) as a PEFT method.

    A frozen model's hidden states h are replaced by Φ(h) at some positions of some layers.  By default Φ is LoReFT,
    h + Rᵀ(Wh + b − Rh).  Raises `ValueError` naming the value and the valid ones when a field is wrong.
    """

    r: int = field(default=4, metadata={"help": "Rank of the edit, at most the width of the hidden state."})
    layers: Layers | None = field(
        default=None,
        metadata={"help": f"Blocks to edit: {LAYERS_HELP}. None: all, unless target_modules names modules."},
    )
    component: str = field(
        default="block_output",
        metadata={"help": f"What is edited: one of {', '.join(COMPONENTS)} (the input of the output projection)."},
    )
    positions: str = field(
        default="f7+l7",
        metadata={"help": "f<p>, l<s>, f<p>+l<s>: the first p, last s prompt tokens; prompt; all; response."},
    )
    tie: Tie = field(
        default="all",
        metadata={"help": "Share Φ over the positions of a layer: all (one Φ), group (prefix, suffix), none."},
    )
    intervention: str = field(default="loreft", metadata={"help": "Registry key of Φ: see INTERVENTIONS."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the edit, never on the hidden state."})
    act_fn: str | None = field(default=None, metadata={"help": "Activation of the learned projection."})
    init: str | None = field(
        default=None,
        metadata={"help": "identity (a fresh adapter changes nothing), paper, random. None: identity if Φ has one."},
    )
    init_weights: bool = field(
        default=True, metadata={"help": "PEFT's name for it: False is init='random', for tests."}
    )
    vector: str = field(default="learned", metadata={"help": "For steer: whether v is learned or given."})
    subspaces: list[list[int]] | None = field(
        default=None, metadata={"help": "A partition of the rows 0..r-1; a call can switch parts on and off."}
    )
    active_subspaces: list[int] | None = field(
        default=None, metadata={"help": "Indices into subspaces that this adapter edits. None: all of them."}
    )
    groups: list[dict[str, Any]] | None = field(
        default=None,
        metadata={"help": "Several interventions in one adapter; each overrides the fields above that it names."},
    )
    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Module names or a regex, in place of layers. Written when layers are chosen."}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Module names or a regex not to edit."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules outside of ReFT that are trained and saved whole (a classifier)."}
    )
    unknown_prompt: str = field(
        default="refuse",
        metadata={"help": "Training where nothing says where the prompt ends: refuse, or whole: the whole text is it."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = REFT
        _choose("intervention", self.intervention, INTERVENTIONS)
        _choose("unknown_prompt", self.unknown_prompt, UNKNOWN_PROMPTS)
        if self.act_fn is not None:
            _choose("act_fn", self.act_fn, ACT_FNS)
        # as they are after they were saved and loaded
        for name in GROUP_FIELDS:
            setattr(self, name, _as_lists(getattr(self, name)))
        self._check_init_weights()
        if self.init is None:
            self.init = _default_init(self.intervention, self.act_fn)
        self._check_groups()
        self._check_names()
        self.resolved_groups()

    def _check_names(self) -> None:
        for name in ("target_modules", "exclude_modules", "modules_to_save"):
            value = getattr(self, name)
            if value is None or isinstance(value, str):
                continue
            if not isinstance(value, (list, tuple, set)) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"{name}={value!r} is not valid; it is a list of names, or a regex as a text")
            if name != "modules_to_save":
                # as in PEFT's other configs
                setattr(self, name, set(value))
        chosen = [group["layers"] for group in [{"layers": self.layers}, *(self.groups or [])] if group.get("layers")]
        # A text is what layers were written as when the adapter was made.
        if chosen and isinstance(self.target_modules, set):
            raise ValueError(
                f"layers={chosen[0]!r} and target_modules={sorted(self.target_modules)!r} both say what is edited; "
                "name blocks by layers, or modules by target_modules"
            )

    def _check_init_weights(self) -> None:
        if not isinstance(self.init_weights, bool):
            raise ValueError(f"init_weights={self.init_weights!r} is not valid; use True or False, or the field init")
        if not self.init_weights:
            if self.init not in (None, "random"):
                raise ValueError(f"init_weights=False means init='random', but init={self.init!r} was given too")
            self.init = "random"

    def _check_groups(self) -> None:
        if self.groups is None:
            return
        if not isinstance(self.groups, (list, tuple)) or not self.groups:
            raise ValueError(
                f"groups={self.groups!r} is not a list of dicts such as {{'layers': [2], 'positions': 'f1'}}"
            )
        groups = self.groups = [_as_lists(group) for group in self.groups]
        for group in groups:
            unknown = sorted(set(group) - set(GROUP_FIELDS)) if isinstance(group, dict) else [group]
            if unknown:
                raise ValueError(f"groups has unknown fields {unknown}; valid are {', '.join(GROUP_FIELDS)}")

    def resolved_groups(self) -> list[ReftGroup]:
        """The groups with every field filled in; one if `groups` is not used."""
        own = {name: getattr(self, name) for name in GROUP_FIELDS}
        merged = []
        for chosen in self.groups or [{}]:
            values = {**own, **chosen}
            if "init" not in chosen and {"intervention", "act_fn"} & set(chosen) and self.init != "random":
                values["init"] = None
            merged.append(_checked(ReftGroup(**values)))
        return merged


def _as_lists(value: Any) -> Any:
    """Tuples and ranges as lists, at any depth, since JSON has nothing else."""
    if isinstance(value, dict):
        return {key: _as_lists(item) for key, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, (list, tuple, range)) else value


def _default_init(intervention: str, act_fn: str | None) -> str:
    """A fresh adapter is the base model where Φ can be the identity; ConsReFT, for one, cannot."""
    return "identity" if INTERVENTIONS[intervention].supports_identity(act_fn) else "paper"


def _checked(group: ReftGroup) -> ReftGroup:
    """The group with defaults resolved; raises `ValueError` on the first field that is not valid."""
    if isinstance(group.r, bool) or not isinstance(group.r, int) or group.r < 1:
        raise ValueError(f"r={group.r!r} is not valid; the rank is a whole number of at least 1")
    _choose("intervention", group.intervention, INTERVENTIONS)
    _choose("tie", group.tie, TIES)
    _choose("vector", group.vector, VECTORS)
    if group.act_fn is not None:
        _choose("act_fn", group.act_fn, ACT_FNS)
    if isinstance(group.dropout, bool) or not isinstance(group.dropout, (int, float)) or not 0 <= group.dropout < 1:
        raise ValueError(f"dropout={group.dropout!r} is not valid; it is a number from 0 up to, not including, 1")
    if group.init is None:
        group = replace(group, init=_default_init(group.intervention, group.act_fn))
    _choose("init", group.init, INITS)
    if group.init == "identity" and not INTERVENTIONS[group.intervention].supports_identity(group.act_fn):
        raise ValueError(
            f"init='identity' is not valid: {group.intervention} with act_fn={group.act_fn!r} cannot be the identity; "
            "use init='paper'"
        )
    spec = group.spec
    if spec.scope == "span" and spec.count == 0:
        warnings.warn(f"positions={group.positions!r} edits no token at all", stacklevel=4)
    if group.tie != "all" and spec.scope != "span":
        raise ValueError(
            f"tie={group.tie!r} needs positions of the form f<p>+l<s>, but positions={group.positions!r}; use tie='all'"
        )
    if not re.fullmatch(r"block_output|attention_output|mlp_output|attention_head\[\d+\]", str(group.component)):
        raise ValueError(f"component={group.component!r} is not valid; use one of {', '.join(COMPONENTS)}")
    if group.layers is not None:
        _parse_layers(group.layers)
    _check_subspaces(group)
    if group.vector == "given" and group.intervention != "steer":
        warnings.warn(f"vector='given' has no effect on intervention={group.intervention!r}", stacklevel=4)
    return group


def _choose(name: str, value: Any, valid: Any) -> None:
    if not isinstance(value, str) or value not in valid:
        raise ValueError(f"{name}={value!r} is not valid; use one of {', '.join(map(repr, valid))}")


def _check_subspaces(group: ReftGroup) -> None:
    parts = group.subspaces
    if parts is None:
        if group.active_subspaces is not None:
            raise ValueError(f"active_subspaces={group.active_subspaces!r} needs subspaces, a partition of the rank")
        return
    if not INTERVENTIONS[group.intervention].has_subspaces:
        raise ValueError(f"subspaces={parts!r} is not valid: {group.intervention} has no rank to be partitioned")
    try:
        rows = sorted(row for part in parts for row in part)
    except TypeError:
        rows = []
    if rows != list(range(group.r)) or not all(parts):
        raise ValueError(
            f"subspaces={parts!r} is not a partition of the rows 0..{group.r - 1}; "
            f"valid is, for example, [[0], {list(range(1, group.r)) or [0]}]"
        )
    chosen = group.active_subspaces
    if chosen is not None and not (isinstance(chosen, list) and chosen and all(i in range(len(parts)) for i in chosen)):
        raise ValueError(f"active_subspaces={chosen!r} is not valid; choose among 0..{len(parts) - 1}")


def _parse_layers(layers: Layers) -> Literal["all"] | list[Layer]:
    """Text, number or list → "all" or a list of numbers; `ValueError` quotes what cannot be read."""
    problem = ValueError(f"layers={layers!r} cannot be read; valid are {LAYERS_HELP}")
    if isinstance(layers, str):
        if layers.strip().lower() == "all":
            return "all"
        texts = [text.strip() for text in re.split(r"[;,]", layers)]
        if not all(re.fullmatch(r"-?\d+|0?\.\d+|[01]\.0*", text) for text in texts):
            raise problem
        return [float(text) if "." in text else int(text) for text in texts]
    items = list(layers) if isinstance(layers, (list, tuple, range)) else [layers]
    parsed: list[Layer] = []
    for item in items:
        if isinstance(item, str) and item.strip().lower() != "all":
            parsed.extend(_parse_layers(item))  # type: ignore[arg-type]
        elif (
            isinstance(item, bool)
            or not isinstance(item, (int, float))
            or (isinstance(item, float) and not 0 <= item <= 1)
        ):
            raise problem
        else:
            parsed.append(item)
    if not parsed:
        raise problem
    return parsed


def resolve_layers(layers: Layers, count: int) -> list[int]:
    """Layer indices 0..count-1, sorted.  A fraction f is layer ⌊f·count⌋, at most the last.

    Raises:
        ValueError: an index that the model does not have, or one given twice.
    """
    parsed = _parse_layers(layers)
    if parsed == "all":
        return list(range(count))
    indices = []
    for item in parsed:
        index = min(int(item * count), count - 1) if isinstance(item, float) else int(item)
        if not -count <= index < count:
            raise ValueError(f"layers={layers!r}: layer {item} does not exist; this model has layers 0..{count - 1}")
        indices.append(index % count)
    if len(set(indices)) < len(indices):
        raise ValueError(f"layers={layers!r} names a layer twice: {sorted(indices)}")
    return sorted(indices)
