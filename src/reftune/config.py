"""`ReftConfig`: everything that defines a ReFT adapter, checked when it is built.

Must not know: models and torch modules; it looks up the registry of interventions and the grammar of positions only.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peft.config import PeftConfig

from .card import Training, write_card
from .interventions import ACTIVATIONS, INTERVENTIONS, InterventionOptions
from .peft_type import REFT
from .positions import PositionSpec, Tie, parse_positions, resolve_texts, unresolved_terms
from .values import PATH, literal_paths, of_layers, plain, shown

if TYPE_CHECKING:
    from .data.style import PromptStyle

__all__ = ["ReftConfig", "ReftGroup", "refuse_patterns", "resolve_layers"]

TIES = ("all", "group", "none")
INITS = ("zero", "identity", "paper", "random")
FORMS = ("direct", "delta")
UNKNOWN_PROMPTS = ("refuse", "whole")
VECTORS = ("learned", "given")
ACT_FNS = ("linear", *ACTIVATIONS)
COMPONENTS = ("block_output", "attention_output", "mlp_output", "attention_head[i]")
LAYERS_HELP = "'all', an index such as 3 or -1, a fraction such as 0.5, a list of these, or a text such as '3;9;18'"


Layer = int | float
Layers = str | Layer | list[Layer]

# Asked for at every call of a model, of every layer.
_parsed = lru_cache(maxsize=2**10)(parse_positions)


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
    form: str
    alpha: float | None
    rms: bool
    vector: str
    subspaces: list[list[int]] | None
    active_subspaces: list[int] | None

    @property
    def spec(self) -> PositionSpec:
        """The positions, parsed."""
        return _parsed(self.positions) if isinstance(self.positions, str) else parse_positions(self.positions)

    @property
    def head(self) -> int | None:
        """i of `attention_head[i]`, None for other components."""
        return int(self.component[len("attention_head[") : -1]) if self.component.startswith("attention_head") else None

    @property
    def options(self) -> InterventionOptions:
        """What the Φ itself needs."""
        return InterventionOptions(**{f.name: getattr(self, f.name) for f in fields(InterventionOptions)})

    @property
    def active_rows(self) -> frozenset[int]:
        """Rows of the rank that this group edits: all, unless `active_subspaces` chooses."""
        if self.subspaces is None or self.active_subspaces is None:
            return frozenset(range(self.r))
        return frozenset(row for i in self.active_subspaces for row in self.subspaces[i])


GROUP_FIELDS = tuple(f.name for f in fields(ReftGroup))
NAMES = ("target_modules", "exclude_modules", "modules_to_save")


@dataclass
class ReftConfig(PeftConfig):
    """Configuration of representation finetuning (ReFT, arXiv 2404.03592) as a PEFT method.

    A frozen model's hidden states h are replaced by Φ(h) at some positions of some layers.  By default Φ is LoReFT,
    h + Rᵀ(Wh + b − Rh).  Raises `ValueError` naming the value and the valid ones when a field is wrong.
    """

    r: int = field(default=8, metadata={"help": "Rank of the edit, at most the width of the hidden state."})
    layers: Layers | None = field(
        default=None,
        metadata={"help": f"Blocks to edit: {LAYERS_HELP}. None: all, unless target_modules names modules."},
    )
    component: str = field(
        default="block_output",
        metadata={"help": f"What is edited: one of {', '.join(COMPONENTS)} (the input of the output projection)."},
    )
    positions: str = field(
        default="prompt",
        metadata={
            "help": "f<p>, l<s>, f<p>+l<s>: the first p, last s prompt tokens; prompt; all; response; g<k>: the first "
            'k generated; p[a:b]: a slice; id(13,30), text("."): by id, by text; + joins, - leaves out.'
        },
    )
    tie: Tie = field(
        default="all",
        metadata={"help": "Share Φ over the positions of a layer: all (one Φ), group (one for each term), none."},
    )
    intervention: str = field(default="loreft", metadata={"help": "Registry key of Φ: see INTERVENTIONS."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the edit, never on the hidden state."})
    act_fn: str | None = field(default=None, metadata={"help": "Activation of the learned projection."})
    init: str | None = field(
        default=None,
        metadata={
            "help": "zero, identity (with both a fresh adapter changes nothing), paper, random. "
            "None: zero, where Φ can start so."
        },
    )
    form: str | None = field(
        default=None,
        metadata={
            "help": "loreft, noreft: direct keeps W, delta keeps W - R. None: direct with init identity, paper, random."
        },
    )
    alpha: float | None = field(default=None, metadata={"help": "Scales the edit by alpha / sqrt(r). None: by 1."})
    rms: bool = field(default=False, metadata={"help": "Feed Φ the RMS-normalised hidden state."})
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
        # no field: it is kept in a file of its own, which adapters of other methods can have too
        self.prompt_style: PromptStyle | None = None
        # for the model card
        self.training: Training | None = None
        _choose("intervention", self.intervention, INTERVENTIONS)
        _choose("unknown_prompt", self.unknown_prompt, UNKNOWN_PROMPTS)
        if self.act_fn is not None:
            _choose("act_fn", self.act_fn, ACT_FNS)
        # as they are after they were saved and loaded
        for name in (*GROUP_FIELDS, "groups", "init_weights", *NAMES):
            setattr(self, name, plain(name, getattr(self, name)))
        self.positions, self.layers = _positions(self.positions), _layers(self.layers)
        # what a regex, as the user or reftune wrote it, matched in the model that the adapter was put on
        self.matched: dict[str, str | None] = {}
        self._check_init_weights()
        if self.form is None:
            self.form = _default_form(self.intervention, self.act_fn, self.init)
        if self.init is None:
            self.init = _default_init(self.intervention, self.act_fn)
        self._check_groups()
        self._check_names()
        self.resolved_groups()

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write `adapter_config.json`, `reftune.json` if `prompt_style` is known, and the card of weights beside it."""
        super().save_pretrained(save_directory, **kwargs)
        if self.prompt_style is not None:
            self.prompt_style.write(save_directory)
        write_card(save_directory, self.training)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> Any:
        """What `save_pretrained` wrote, or the Hub has; of an adapter in a folder also its `prompt_style`."""
        from .data.style import PromptStyle  # noqa: PLC0415 — `import reftune` must not cost what the data package does

        config: Any = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        config.prompt_style = PromptStyle.read(Path(pretrained_model_name_or_path, subfolder or ""))
        return config

    def _check_names(self) -> None:
        if isinstance(self.modules_to_save, str):
            self.modules_to_save = [self.modules_to_save]
        for name in NAMES:
            value = getattr(self, name)
            if isinstance(value, str) and value:
                continue
            if value is not None and not (isinstance(value, list) and all(isinstance(x, str) and x for x in value)):
                what = "" if name == "modules_to_save" else ", or a regex as a text"
                raise ValueError(f"{name}={value!r} is not valid; it is a list of names{what}")
            if value is not None and name != "modules_to_save":
                # as in PEFT's other configs
                setattr(self, name, set(value))
        self._check_target_modules()

    def _check_target_modules(self) -> None:
        """Of two ways to say what is edited, none is dropped in silence."""
        targets = self.target_modules
        if targets is None:
            return
        chosen = [
            layers for layers in (self.layers, *(g.get("layers") for g in self.groups or ())) if layers is not None
        ]
        if chosen and not (isinstance(targets, str) and of_layers(targets)):
            given = targets if isinstance(targets, str) else sorted(targets)
            raise ValueError(
                f"layers={chosen[0]!r} and target_modules={given!r} both say what is edited; "
                "name blocks by layers, or modules by target_modules"
            )
        components = [group.get("component", self.component) for group in self.groups or [{}]]
        component = next((component for component in components if component != "block_output"), None)
        if component is not None and not chosen:
            raise ValueError(
                f"component={component!r} is of the blocks that layers name, but target_modules names modules, whose "
                "outputs are edited; leave one of the two out"
            )
        if isinstance(targets, set) and isinstance(self.exclude_modules, set) and targets & self.exclude_modules:
            both = sorted(targets & self.exclude_modules)
            raise ValueError(f"target_modules and exclude_modules both name {both!r}; leave it out of one of them")

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
        if not isinstance(self.groups, list) or not self.groups:
            raise ValueError(
                f"groups={self.groups!r} is not a list of dicts such as {{'layers': [2], 'positions': 'f1'}}"
            )
        for group in self.groups:
            unknown = sorted(set(group) - set(GROUP_FIELDS), key=str) if isinstance(group, dict) else [group]
            if unknown:
                raise ValueError(f"groups has unknown fields {unknown}; valid are {', '.join(GROUP_FIELDS)}")
            if "positions" in group:
                group["positions"] = _positions(group["positions"])
            if "layers" in group:
                group["layers"] = _layers(group["layers"])

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary, which is what is saved: paths in place of a regex, once it is known what it matches."""
        values = super().to_dict()
        for name in ("target_modules", "exclude_modules"):
            value = values[name]
            values[name] = self.matched.get(value, value) if isinstance(value, str) else value and sorted(value)
        return values

    def resolve_texts(self, tokenizer: Any) -> ReftConfig:
        """Put ids of `tokenizer` in the place of every `text(…)` of the positions; returns the configuration itself.

        A token is meant if it reads as the text, with or without a space before it.  `turn:` gets the ids of the tokens
        by which the chat template begins messages: `turn(1):`.

        Raises:
            ValueError: a text is no token of the tokenizer, and the message says how it is split; or the template
                begins messages with no tokens of their own.
        """
        self.positions = resolve_texts(self.positions, tokenizer)
        for group in self.groups or ():
            if "positions" in group:
                group["positions"] = resolve_texts(group["positions"], tokenizer)
        return self

    @property
    def has_texts(self) -> bool:
        """Whether there is a `text(…)` or a `turn:` of which it is not known yet which tokens it means."""
        return any(unresolved_terms([group.spec]) for group in self.resolved_groups())

    def resolved_groups(self) -> list[ReftGroup]:
        """The groups with every field filled in; one if `groups` is not used."""
        own = {name: getattr(self, name) for name in GROUP_FIELDS}
        merged = []
        for chosen in self.groups or [{}]:
            values = {**own, **chosen}
            if "init" not in chosen and {"intervention", "act_fn"} & set(chosen) and self.init != "random":
                values["init"] = None
            if "form" not in chosen and {"intervention", "act_fn", "init"} & set(chosen) and self.form == "delta":
                values["form"] = None
            merged.append(_checked(ReftGroup(**values)))
        return merged


def _layers(layers: Any) -> Any:
    """All layers are written in one way."""
    return "all" if isinstance(layers, str) and layers.strip().lower() == "all" else layers


def _positions(positions: Any) -> Any:
    """The one way to write these positions; what cannot be read stays as it is, and is refused with its group."""
    try:
        return str(parse_positions(positions))
    except ValueError:
        return positions


def _default_init(intervention: str, act_fn: str | None) -> str:
    """A fresh adapter is the base model where Φ can be the identity; ConsReFT, for one, cannot."""
    return "zero" if INTERVENTIONS[intervention].supports_zero(act_fn) else "paper"


def _default_form(intervention: str, act_fn: str | None, init: str | None) -> str:
    if init in ("identity", "paper", "random"):
        # before there were forms, every configuration was saved with one of these, and keeps its meaning
        return "direct"
    return "delta" if INTERVENTIONS[intervention].supports_form("delta", act_fn) else "direct"


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
    group = _checked_start(group)
    spec = group.spec
    if spec.scope == "span" and spec.count == 0:
        warnings.warn(f"positions={group.positions!r} edits no token at all", stacklevel=4)
    if group.tie != "all" and spec.scope not in ("span", "terms"):
        raise ValueError(
            f"tie={group.tie!r} needs positions of the form f<p>+l<s>, but positions={group.positions!r}; use tie='all'"
        )
    if group.tie == "none" and (open_end := next((term for term in spec.added if term.slots is None), None)):
        raise ValueError(
            f"tie='none' needs positions whose number is fixed, such as f<p>+l<s>, g<k> or p[2:5], but how many tokens "
            f"{str(open_end)!r} names depends on the text; use tie='all' or 'group'"
        )
    if not re.fullmatch(r"block_output|attention_output|mlp_output|attention_head\[\d{1,6}\]", str(group.component)):
        raise ValueError(f"component={group.component!r} is not valid; use one of {', '.join(COMPONENTS)}")
    if group.layers is not None:
        _parse_layers(group.layers)
    _check_subspaces(group)
    if group.vector == "given" and group.intervention != "steer":
        warnings.warn(f"vector='given' has no effect on intervention={group.intervention!r}", stacklevel=4)
    return group


def _checked_start(group: ReftGroup) -> ReftGroup:
    """The group with `init` and `form` resolved, and these, `alpha` and `rms` looked at."""
    phi = INTERVENTIONS[group.intervention]
    if group.form is None:
        group = replace(group, form=_default_form(group.intervention, group.act_fn, group.init))
    if group.init is None:
        group = replace(group, init=_default_init(group.intervention, group.act_fn))
    _choose("init", group.init, INITS)
    _choose("form", group.form, FORMS)
    if not phi.supports_start(group.init, group.act_fn):
        raise ValueError(
            f"init={group.init!r} is not valid: {group.intervention} with act_fn={group.act_fn!r} cannot be the "
            "identity; use init='paper'"
        )
    if not phi.supports_form(group.form, group.act_fn):
        raise ValueError(
            f"form={group.form!r} is not valid: it is of loreft and noreft without act_fn, and this is "
            f"{group.intervention} with act_fn={group.act_fn!r}; use form='direct'"
        )
    alpha = group.alpha
    if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < 1e9):
        raise ValueError(f"alpha={alpha!r} is not valid; it is a number above 0, or None for no scale")
    if not isinstance(group.rms, bool):
        raise ValueError(f"rms={group.rms!r} is not valid; use True or False")
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
    if len(rows) != group.r or rows != list(range(group.r)) or not all(parts):
        example = list(range(1, group.r)) if 1 < group.r < 100 else [0]
        raise ValueError(
            f"subspaces={parts!r} is not a partition of the rows 0..{group.r - 1}; "
            f"valid is, for example, [[0], {example}]"
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
        if not all(re.fullmatch(r"-?\d{1,9}|0?\.\d+|[01]\.0*", text) for text in texts):
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


def refuse_patterns(config: ReftConfig) -> None:
    """Refuse what PEFT would match as a regex and reftune has not written; for configurations that come from a file.

    PEFT takes a text in `target_modules` or `exclude_modules` and every name in `modules_to_save` for a regex; lists
    in the first two are names, compared as they are.

    Raises:
        ValueError: one of them is not made of literal paths; the message names the field.
    """
    for name in ("target_modules", "exclude_modules"):
        value = getattr(config, name)
        if isinstance(value, str) and literal_paths(value) is None:
            raise ValueError(
                f"{name}={shown(value)} is a regex that reftune did not write; from a file only module paths are "
                "taken, as a regex can take for ever. Where you trust it, load it with PeftModel.from_pretrained and "
                "save it again, which writes the paths"
            )
    for value in config.modules_to_save or ():
        if not PATH.fullmatch(value):
            raise ValueError(f"modules_to_save names {shown(value)}, which is no name of a module such as 'lm_head'")


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
