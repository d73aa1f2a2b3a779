"""Which modules an adapter's configuration names in a model, and that none of these is dropped in silence.

PEFT edits what `target_modules` matches, less what `exclude_modules` and `modules_to_save` match, and says nothing of a
name that matches nothing or of a module that is taken away.  Here these are errors, before anything is put in place.

Must not know: interventions, positions, calls.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator

from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers
from torch import nn

from ..config import ReftConfig, ReftGroup
from ..values import literal_paths, literal_regex, shown
from .sites import Site

__all__ = ["added_heads", "settle_targets"]

# PEFT adds the names of heads by itself; a model has one of them
HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


def settle_targets(model: nn.Module, config: ReftConfig, sites: list[tuple[Site, ReftGroup]] | None) -> None:
    """Check the names in the configuration, and write down what they match: as paths, which are safe to match.

    With `sites`, which the layers give, `target_modules` becomes their paths; they are for readers, as layers decide.

    Raises:
        ValueError: a name matches nothing, or what it matches would not be edited.
    """
    names = list(_names(model))
    if sites is None:
        _maybe_include_all_linear_layers(config, model)
        targets = _targets(config, names)
    else:
        targets = list(dict.fromkeys(site.path for site, _ in sites))
        _write_targets(config, targets, names)
    excluded = _excluded(config, names, targets)
    if sites is None:
        _refuse_excluded_names(config, targets, excluded)
    else:
        _refuse_excluded_layers(config, sites, excluded)
    _refuse_saved(model, config, [target for target in targets if target not in excluded])


def _names(model: nn.Module) -> Iterator[str]:
    """Of all modules that are no part of an adapter."""
    inside = None
    for name, module in model.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        inside = f"{name}." if isinstance(module, BaseTunerLayer) else None
        if name:
            yield name


def _matched(pattern: str | Collection[str], names: list[str]) -> list[str]:
    """As PEFT matches: a text is a regex of whole names, in a list are names and the ends of names."""
    if not isinstance(pattern, str):
        return [name for name in names if not set(_ends(name)).isdisjoint(pattern)]
    paths = literal_paths(pattern)
    if paths is not None:
        wanted = set(paths)
        return [name for name in names if name in wanted]
    return [name for name in names if re.fullmatch(pattern, name)]


def _ends(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


def _targets(config: ReftConfig, names: list[str]) -> list[str]:
    pattern = config.target_modules or ()
    found = _matched(pattern, names)
    if isinstance(pattern, str):
        if found and literal_paths(pattern) is None:
            config.matched[pattern] = literal_regex(found)
        return found
    ends = {end for name in found for end in _ends(name)}
    if found and (unknown := sorted(set(pattern) - ends)):
        raise ValueError(f"target_modules names {shown(unknown)}, which this model does not have")
    return found


def _write_targets(config: ReftConfig, targets: list[str], names: list[str]) -> None:
    before, regex = config.target_modules, literal_regex(targets)
    if isinstance(before, str) and before not in config.matched:
        given = literal_paths(before) or []
        # paths that are not here are of another model, where the same layers have other names
        if set(given) <= set(names) and set(given) != set(targets):
            raise ValueError(
                f"layers name {shown(targets)} in this model, but target_modules={shown(before)} names others; leave "
                "target_modules out, or name the model that the adapter was made for"
            )
    config.target_modules = config.matched[regex] = regex


def _excluded(config: ReftConfig, names: list[str], targets: list[str]) -> set[str]:
    pattern = config.exclude_modules
    if not pattern:
        return set()
    found = set(_matched(pattern, names)) & set(targets)
    if targets and not found:
        warnings.warn(f"exclude_modules={shown(pattern)} leaves out nothing that is edited", stacklevel=2)
    if isinstance(pattern, str) and literal_paths(pattern) is None:
        config.matched[pattern] = literal_regex(sorted(found)) or None
    return found


def _refuse_excluded_names(config: ReftConfig, targets: list[str], excluded: set[str]) -> None:
    if isinstance(config.target_modules, str):
        return
    left = {end for name in targets if name not in excluded for end in _ends(name)}
    gone = sorted(set(config.target_modules or ()) - left) if excluded else []
    if gone:
        raise ValueError(
            f"target_modules names {shown(gone)}, but exclude_modules={shown(config.exclude_modules)} leaves none of "
            "it; leave it out of one of them"
        )


def _refuse_excluded_layers(config: ReftConfig, sites: list[tuple[Site, ReftGroup]], excluded: set[str]) -> None:
    for site, group in sites:
        if site.path in excluded and group.layers not in (None, "all"):
            raise ValueError(
                f"layers={group.layers!r} names {site.path!r}, which exclude_modules={shown(config.exclude_modules)} "
                "leaves out; leave it out of one of them"
            )


def added_heads(config: ReftConfig) -> tuple[str, ...]:
    """Names that PEFT puts into `modules_to_save` for the task, whether or not the model has them."""
    return HEADS.get(str(getattr(config.task_type, "value", config.task_type)), ())


def _refuse_saved(model: nn.Module, config: ReftConfig, edited: list[str]) -> None:
    """A module in `modules_to_save` is replaced by a copy, without the edits of it and of what is in it."""
    wanted = list(dict.fromkeys(config.modules_to_save or ()))
    saved = [
        (name, next((end for end in wanted if name.endswith(end)), None))
        for name, _ in model.named_modules(remove_duplicate=False)
        if name
    ]
    added = added_heads(config)
    names = [name for name, _ in saved]
    for one in wanted:
        if one not in added and not any(name.endswith(one) for name in names):
            raise ValueError(f"modules_to_save names {shown(one)}, which this model does not have")
    by_name = {name: end for name, end in saved if end is not None}
    for path in edited:
        parts = path.split(".")
        around = next((up for i in range(len(parts)) if (up := ".".join(parts[: i + 1])) in by_name), None)
        if around is not None:
            raise ValueError(
                f"modules_to_save={shown(config.modules_to_save)} trains {around!r} whole, so that the edit of "
                f"{path!r} would be dropped; leave it out of modules_to_save, or out of what is edited (by layers or "
                "exclude_modules)"
            )
