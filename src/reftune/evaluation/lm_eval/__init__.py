"""ReFT adapters in EleutherAI's lm-evaluation-harness, as its model `reftune`.

The harness looks for no models of other packages, so that somebody must register ours before its command line runs:
`main` does both.

Must not know: tasks and scores, which are the harness's here.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ...errors import MissingExtraError, ReftuneError

if TYPE_CHECKING:
    from .model import ReftuneLM

__all__ = ["MODEL", "ReftuneLM", "main", "register"]

MODEL = "reftune"


def register() -> None:
    """Add the model `reftune` to the harness, in this process.

    Raises:
        MissingExtraError: the harness is not installed.
    """
    _check()
    # its own models come first: it looks for them only where no model is registered
    import lm_eval.models  # noqa: F401, PLC0415
    from lm_eval.api.registry import model_registry  # noqa: PLC0415

    if MODEL not in model_registry:
        model_registry.register(MODEL, target=f"{__name__}.model:ReftuneLM")


def main(arguments: Sequence[str]) -> None:
    """The harness's own command line with the model `reftune`, which is also its default here.

    Raises:
        MissingExtraError: the harness is not installed.
        ReftuneError: another model is named, or the adapter or its base cannot be loaded.
        SystemExit: arguments that the harness refuses.
    """
    register()
    from lm_eval._cli import HarnessCLI  # noqa: PLC0415
    from lm_eval.utils import setup_logging  # noqa: PLC0415

    before = sys.argv
    # the harness looks there, and puts in the verb that may be left out
    sys.argv = ["lm-eval", *arguments]
    try:
        setup_logging()
        harness = HarnessCLI()
        parsed = harness.parse_args()
        if parsed.command == "run":
            parsed.model = parsed.model or MODEL
            if parsed.model != MODEL:
                # `hf` would load a ReFT adapter too, and edit the wrong tokens without a word
                raise ReftuneError(
                    f"--model {parsed.model} is not for this command, which runs --model {MODEL}: adapters, and base "
                    "models as --model hf does. For other models call lm_eval itself"
                )
        harness.execute(parsed)
    finally:
        sys.argv = before


def _check() -> None:
    if find_spec("lm_eval") is None:
        raise MissingExtraError("lm_eval", extra="lm-eval")


def __getattr__(name: str) -> Any:
    if name == "ReftuneLM":
        _check()
        from .model import ReftuneLM as found  # noqa: PLC0415 — it needs the harness

        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
