"""Calls of a model that begin in its middle: blocks that pass through, one that returns what it is told to.

Must not know: what is stored, and why.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from .loss import forward_as

__all__ = ["CALL_ERRORS", "cache_name", "others_of", "passing", "takes_position_ids"]

# caches of other kinds than one of keys and values a block end in errors of all kinds
CALL_ERRORS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


@contextmanager
def passing(blocks: Sequence[nn.Module], hidden: Tensor, others: int | None) -> Iterator[None]:
    """Inside, the last of these blocks returns `hidden`, and those before it pass on what they are given.

    Their hooks run as ever.  `others` is what `others_of` says of what a block returns.
    """
    returned = _as_returned(hidden, others)
    with ExitStack() as stack:
        for block in blocks[:-1]:
            stack.enter_context(forward_as(block, partial(_pass_on, others)))
        last: Callable[..., Any] = lambda *args, **kwargs: returned  # noqa: E731
        stack.enter_context(forward_as(blocks[-1], last))
        yield


def others_of(output: Any) -> int | None:
    """How many things a block returns behind the hidden state: attention weights, which nobody asks for.

    None: it returns the hidden state alone.
    """
    return len(output) - 1 if isinstance(output, tuple) else None


def _pass_on(others: int | None, *args: Any, **kwargs: Any) -> Any:
    return _as_returned(args[0] if args else kwargs["hidden_states"], others)


def _as_returned(hidden: Tensor, others: int | None) -> Any:
    return hidden if others is None else (hidden, *[None] * others)


def takes_position_ids(root: Any) -> bool:
    """Whether the model can be told where its tokens are."""
    return "position_ids" in inspect.signature(root.forward).parameters


def cache_name(root: Any) -> str:
    """The argument for a cache: `cache` from transformers 5.24 on."""
    return "cache" if "cache" in inspect.signature(root.forward).parameters else "past_key_values"
