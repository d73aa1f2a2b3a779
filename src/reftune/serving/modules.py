"""Which adapters a server is told to serve: names and folders from the command line or from a request.

Must not know: what is in the folders, models, the backends.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from ..errors import ReftuneError
from ..hub import HUB_NAME
from .limits import cut

__all__ = ["FILES", "ReftModule", "allowed_path", "check_name", "folder_of", "parse_modules"]

FILES = ("adapter_config.json", "adapter_model.safetensors", "reftune.json")
"""What is ever read of an adapter's folder."""
KEYS = ("name", "path", "base_model_name")
FORMS = 'name=path or {"name": "...", "path": "..."}'
LONGEST_NAME = 256


@dataclass(frozen=True)
class ReftModule:
    """A name that requests may give as their `model`, and the folder or Hub name of its adapter."""

    name: str
    path: str


def parse_modules(texts: Sequence[str], *, base_names: Collection[str] = ()) -> list[ReftModule]:
    """The adapters of `--reft-modules`, in order; each is `name=path` or a JSON object, as vLLM's `--lora-modules`.

    Raises:
        ReftuneError: a text that is neither, or a name that is taken, by another adapter or by the base model.
    """
    found: dict[str, ReftModule] = {}
    for text in texts:
        module = _parse(text, base_names)
        check_name(module.name, base_names=base_names)
        if module.name in found:
            raise ReftuneError(
                f"the adapter name {module.name!r} is given twice, for {found[module.name].path!r} and "
                f"{module.path!r}; each adapter needs a name of its own"
            )
        found[module.name] = module
    return list(found.values())


def check_name(name: str, *, base_names: Collection[str] = ()) -> None:
    """Refuse a name that requests could not give, or that means the base model.

    Raises:
        ReftuneError: the name is empty, too long, has unprintable characters or outer spaces, or is the base's.
    """
    if not name or name != name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
        raise ReftuneError(
            f"the adapter name {cut(name)} is not valid; it has 1 to {LONGEST_NAME} printable characters and no "
            "space at its ends"
        )
    if name in base_names:
        raise ReftuneError(f"the adapter name {name!r} is that of the base model; give the adapter another")


def folder_of(module: ReftModule) -> Path:
    """The folder of an adapter that is served from the start; one on the Hub is fetched.

    Raises:
        ReftuneError: there is none.
    """
    folder = Path(module.path)
    if folder.is_dir() or not HUB_NAME.fullmatch(module.path):
        return folder
    try:
        return Path(snapshot_download(module.path, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:
        raise ReftuneError(
            f"the adapter {module.name!r}: {module.path!r} is neither a folder nor to be had from the Hub"
        ) from error


def allowed_path(path: str, folders: Sequence[str | Path]) -> Path:
    """The real folder of an adapter that is loaded at run time, which lies in one of the allowed folders.

    Links are followed first, those of the adapter's files too, so that none leads out.

    Raises:
        ReftuneError: it lies elsewhere; whether there is anything, is not told.
    """
    places = [Path(folder).resolve() for folder in folders]
    refusal = ReftuneError(
        f"the adapter path {cut(path)} is not in a folder that adapters may be loaded from at run time; "
        f"allowed: {', '.join(map(str, places)) or 'none'}"
    )
    try:
        real = Path(path).resolve()
        targets = [real, *((real / name).resolve() for name in FILES)]
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, a loop of links
        raise refusal from error
    for target in targets:
        if not any(target.is_relative_to(place) for place in places):
            raise refusal
    return real


def _parse(text: str, base_names: Collection[str]) -> ReftModule:
    if text.lstrip().startswith(("{", "[")):
        return _parse_json(text, base_names)
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise ReftuneError(f"the adapter {cut(text)} cannot be read; write it as {FORMS}")
    return ReftModule(name, path)


def _parse_json(text: str, base_names: Collection[str]) -> ReftModule:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReftuneError(f"the adapter {cut(text)} is not valid JSON ({error}); write it as {FORMS}") from error
    if not isinstance(value, dict):
        raise ReftuneError(f"the adapter {cut(text)} is not one JSON object; write one for each adapter, as {FORMS}")
    unknown = sorted(set(value) - set(KEYS))
    if unknown:
        raise ReftuneError(f"the adapter {cut(text)} has unknown keys {unknown}; valid are {', '.join(KEYS)}")
    texts = [value.get("name"), value.get("path")]
    if not all(isinstance(item, str) and item for item in texts):
        raise ReftuneError(f"the adapter {cut(text)} needs a name and a path, both texts; write it as {FORMS}")
    base = value.get("base_model_name")
    if base is not None and base not in base_names:
        raise ReftuneError(
            f"the adapter {value['name']!r} is for the base model {base!r}, but this server has "
            f"{' or '.join(map(repr, base_names)) or 'another'}"
        )
    return ReftModule(value["name"], value["path"])
