"""Entry point of the command `reftune`.

Help, completion and wrong flags must not wait for torch.  But whatever is imported of a package, its `__init__` runs
first, and that of `reftune` loads torch and PEFT, to register the method.  So the package is put in its place here
without that; `reftune.cli.app` makes up for it when a verb begins.

Must not know: verbs.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec

__all__ = ["main"]


def main() -> None:
    """Run the command."""
    if "reftune" not in sys.modules:
        spec = find_spec("reftune")
        assert spec is not None
        sys.modules["reftune"] = module_from_spec(spec)
    from reftune.cli import main as command  # noqa: PLC0415 — now that its package has not run

    command()
