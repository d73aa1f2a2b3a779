"""What answers while a model is scored: vLLM where it is installed and can, else transformers.

Must not know: tasks, scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import ReftuneError

__all__ = ["ENGINES", "check_engine", "choose_engine", "close_engine", "vllm_engine"]

ENGINES = ("auto", "vllm", "transformers")


def check_engine(wanted: str) -> None:
    """Raises `ReftuneError` where there is no such engine, or it is vLLM and that is not installed."""
    from ..serving.vllm.offline import is_installed  # noqa: PLC0415 — not everybody needs what it imports

    if wanted not in ENGINES:
        raise ReftuneError(f"engine={wanted!r} is not valid; use one of {', '.join(map(repr, ENGINES))}")
    if wanted == "vllm" and not is_installed():
        raise ReftuneError(
            "the engine vllm needs vLLM in the same environment (docs/serving.md says how); or use the engine "
            "transformers, whose answers are the same"
        )


def choose_engine(
    wanted: str, base: str, adapter: str | None, generation: Sequence[Mapping[str, Any]]
) -> tuple[str, str | None]:
    """`vllm` or `transformers`, for a model with or without an adapter and the arguments of `generate` of each task.

    With `auto`, vLLM if it is installed and can answer; where it is and cannot, the second value says why.

    Raises:
        ReftuneError: no such engine, or vLLM is asked for and is not installed or cannot answer.
    """
    check_engine(wanted)
    from ..serving.vllm.offline import is_installed, why_not  # noqa: PLC0415

    if wanted == "transformers" or not is_installed():
        return "transformers", None
    reason = why_not(base, adapter, generation)
    if reason is None:
        return "vllm", None
    if wanted == "vllm":
        raise ReftuneError(f"vLLM cannot answer here: {reason}; use the engine transformers")
    return "transformers", f"answers come from transformers, not from vLLM: {reason}"


def vllm_engine(base: str, adapter: str | None, *, dtype: str) -> Any:
    """The engine of vLLM with this model, to be closed when it is not needed any more."""
    from ..serving.vllm.offline import VllmEngine  # noqa: PLC0415

    return VllmEngine(base, adapter, dtype=dtype)


def close_engine(answering: Any) -> None:
    """End the processes of an engine; a model has none."""
    if not isinstance(answering, nn.Module):
        answering.close()
