"""The model: SmolLM2-135M-Instruct, once for us and once as the peers' versions of transformers read it.

Transformers 4 looks for `rope_theta` at the top level of config.json, where 5 does not write it, and takes another
base in silence if it is not there.  The workers' first logits are compared, so that this cannot go unseen.

Must not know: what is measured.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from reftune.models import SMOLLM2, cache_folder, convert_smollm2

from .files import write_whole
from .methods import Method


def model_folder(method: Method) -> Path:
    """The folder that this method's transformers reads."""
    ours = convert_smollm2()
    return peers_copy(ours, cache_folder() / f"{SMOLLM2}-transformers4") if method.is_peer else ours


def peers_copy(source: Path, target: Path) -> Path:
    """The same files, linked where that can be, and the two of another form written anew."""
    written = {
        "config.json": config_of_4(json.loads((source / "config.json").read_text())),
        "tokenizer_config.json": tokenizer_config_of_4(json.loads((source / "tokenizer_config.json").read_text())),
    }
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        copy = target / file.name
        if file.name in written or copy.exists() or not file.is_file():
            continue
        try:
            os.link(file, copy)
        except OSError:
            shutil.copy(file, copy)
    for name, content in written.items():
        # never into a file that is there: it could be a link to the source's
        write_whole(target / name, json.dumps(content, indent=2) + "\n")
    return target


def config_of_4(config: dict[str, Any]) -> dict[str, Any]:
    """The same model as transformers 4 spells it."""
    config = dict(config)
    rope = config.pop("rope_parameters")
    if rope["rope_type"] != "default":
        raise ValueError(f"rope of type {rope['rope_type']!r} is not written for transformers 4")
    config["rope_theta"] = rope["rope_theta"]
    config["torch_dtype"] = config.pop("dtype", "float32")
    return config


def tokenizer_config_of_4(config: dict[str, Any]) -> dict[str, Any]:
    """Without what only transformers 5 knows."""
    kept = {name: value for name, value in config.items() if name not in ("backend", "is_local")}
    return {**kept, "tokenizer_class": "PreTrainedTokenizerFast"}
