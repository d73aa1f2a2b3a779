"""An adapter with fewer layers, as a folder.

Must not know: why these layers.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from ...card import named, write_card
from ...config import ReftConfig, resolve_layers
from ...errors import ReftuneError
from ...files import check_writable, sync, told
from ...models import name_for_others
from ...tuner import ReftLayer
from ...values import literal_regex, ranges
from .probe import Probe

__all__ = ["check_prune_to", "save_pruned"]


def check_prune_to(folder: Path) -> None:
    """Raises `ReftuneError` if there is something in the folder already, or nothing can be written there."""
    if folder.is_dir() and any(folder.iterdir()):
        raise ReftuneError(f"{str(folder)!r} is not empty; name a new folder, so that no adapter is written over")
    check_writable(folder)


def save_pruned(
    probe: Probe, layers: Sequence[int], folder: str | Path, *, of: str | Path | None = None, why: str = ""
) -> Path:
    """Write the adapter with the edits of these layers only; what stays has the same weights, bit for bit.

    Its model card says so, names the folder of the whole adapter (`of`) and says why these layers.

    Raises:
        ReftuneError: a layer is not one of the adapter's, or the folder has something in it.
    """
    target = Path(folder)
    chosen = sorted(set(layers))
    if not chosen or not set(chosen) <= set(probe.layers):
        raise ReftuneError(f"layers {list(layers)} cannot be kept; the adapter edits {probe.layers}")
    check_prune_to(target)
    kept = [
        name
        for name, module in probe.model.named_modules()
        if isinstance(module, ReftLayer) and probe.adapter in module.groups and module.layer in chosen
    ]
    weights = {
        key: value.contiguous()
        for key, value in get_peft_model_state_dict(probe.model, adapter_name=probe.adapter).items()
        if key.startswith(tuple(f"{name}." for name in kept))
    }
    config = _with_layers(probe, chosen, [name.removeprefix("base_model.model.").rpartition(".")[0] for name in kept])
    with told(target):
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".saving.") as temporary:
            config.save_pretrained(temporary)
            name_for_others(Path(temporary, "adapter_config.json"))
            save_file(weights, Path(temporary, "adapter_model.safetensors"), metadata={"format": "pt"})
            # safetensors lets only the owner read; who may read the configuration may read the weights
            shutil.copymode(Path(temporary, "adapter_config.json"), Path(temporary, "adapter_model.safetensors"))
            name = "an adapter without a name" if of is None else f"the adapter {named(of)}"
            origin = f"The edits of layers {ranges(chosen)} of {name}, whose weights are unchanged. {why}".rstrip()
            write_card(temporary, origin=origin, of=of)
            # the configuration last: without it there is no adapter
            for file in sorted(Path(temporary).iterdir(), key=lambda file: file.name == "adapter_config.json"):
                sync(file)
                os.replace(file, target / file.name)
    return target


def _with_layers(probe: Probe, chosen: Sequence[int], paths: Sequence[str]) -> ReftConfig:
    """The adapter's configuration, of these layers; `paths` are those of the modules that are edited in them."""
    old = probe.config
    given: dict[str, Any] = {f.name: getattr(old, f.name) for f in fields(old) if f.init}
    given["target_modules"] = literal_regex(list(dict.fromkeys(paths)))
    given["exclude_modules"] = None

    def kept(own: Any) -> list[int]:
        return [layer for layer in resolve_layers(own, len(probe.blocks)) if layer in chosen]

    if old.layers is not None:
        given["layers"] = list(chosen)
    if old.groups is not None:
        groups = []
        for group in old.groups:
            own = group.get("layers", old.layers)
            if own is None:
                groups.append(group)
            elif left := kept(own):
                groups.append({**group, "layers": left})
        given["groups"] = groups
    new = ReftConfig(**given)
    new.prompt_style = old.prompt_style
    return new
