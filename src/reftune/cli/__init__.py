"""The command `reftune`; one file a verb.

Must not be imported by anything else of the package.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import warnings

__all__ = ["main"]


def main() -> None:
    """Entry point of the command."""
    packages = ("typer", "rich", "yaml", "pydantic", "datasets", "accelerate")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"reftune: the command needs {', '.join(missing)}: run `pip install 'reftune[cli]'`")
    _quiet_imports()
    try:
        from .app import run  # only now is it known that the extra is there
    except KeyboardInterrupt:
        sys.stderr.write("reftune: interrupted before it began\n")
        sys.exit(130)
    run()


def _quiet_imports() -> None:
    """What libraries say of themselves when they are imported is nothing that a user of the command can act on."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in (
        "transformers",
        "huggingface_hub",
        "httpx",
        "datasets",
        "torch",
        "filelock",
        "fsspec",
        "bitsandbytes",
    ):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if not (sys.warnoptions or os.environ.get("REFTUNE_DEBUG")):
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
