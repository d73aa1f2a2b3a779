"""The tensors of a safetensors file: read without a copy, and checked to the last byte before anything is made of them.

The package `safetensors` copies all tensors while it holds the interpreter, which for a large file is a pause of every
running answer, and sets no limits of its own.  The format is a length, a JSON object and the numbers.

Must not know: adapters, folders.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .pieces import breathe

__all__ = ["HEADER_LIMIT", "NAME_LIMIT", "parse_tensors"]

HEADER_LIMIT = 2 << 20
NAME_LIMIT = 512
DIMENSIONS_LIMIT = 8
METADATA = "__metadata__"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def parse_tensors(content: np.ndarray[Any, np.dtype[np.uint8]]) -> dict[str, Tensor]:
    """Name → tensor, a view of `content`, the bytes of a file.

    Raises:
        ValueError: it is not safetensors, or holds something else than finite numbers of floating point.
    """
    size = int.from_bytes(content[:8].tobytes(), "little")
    if len(content) < 8 or size > len(content) - 8:
        raise ValueError("is corrupt: it ends before its header does")
    if size > HEADER_LIMIT:
        raise ValueError(f"has a header of {size} bytes, more than the {HEADER_LIMIT} that are allowed")
    entries = _header(content[8 : 8 + size].tobytes())
    entries.pop(METADATA, None)
    if not entries:
        raise ValueError("has no tensors")
    numbers = content[8 + size :]
    places = {name: _place(name, entry, len(numbers)) for name, entry in entries.items()}
    _check_places(places, len(numbers))
    return {name: _tensor(name, *place, numbers) for name, place in places.items()}


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is corrupt: its header is not JSON: {str(error)[:200]}") from error
    if not isinstance(header, dict):
        raise ValueError("is corrupt: its header is not a JSON object")
    return header


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice")
    return found


def _place(name: str, entry: Any, size: int) -> tuple[torch.dtype, list[int], int, int]:
    """Data type, shape, and the bytes from and to which the tensor lies."""
    breathe()
    shown = ascii(name[:120])
    if len(name) > NAME_LIMIT:
        raise ValueError(f"has a tensor whose name is longer than {NAME_LIMIT} characters: {shown}…")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"is corrupt: {shown} has not just a dtype, a shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not (_are_sizes(shape) and len(shape) <= DIMENSIONS_LIMIT and _are_sizes(offsets) and len(offsets) == 2):
        raise ValueError(f"is corrupt: {shown} has a shape or data_offsets that cannot be")
    kind = entry["dtype"]
    if not isinstance(kind, str) or kind not in DTYPES:
        wanted = ", ".join(DTYPES)
        raise ValueError(f"has numbers that are not of floating point: {shown} is of {ascii(kind)[:40]}, not {wanted}")
    start, stop = offsets
    if not (start <= stop <= size and stop - start == math.prod(shape) * DTYPES[kind].itemsize):
        raise ValueError(f"is corrupt: {shown} has not the bytes that its shape asks for")
    return DTYPES[kind], shape, start, stop


def _are_sizes(value: Any) -> bool:
    # larger ones exist nowhere, and their product could take for ever
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)


def _check_places(places: dict[str, tuple[torch.dtype, list[int], int, int]], size: int) -> None:
    end = 0
    for _, _, start, stop in sorted(places.values(), key=lambda place: place[2:]):
        if start != end:
            raise ValueError("is corrupt: its tensors overlap, or there are bytes between them")
        end = stop
    if end != size:
        raise ValueError(f"is corrupt: it has {size - end} bytes that belong to no tensor")


def _tensor(name: str, dtype: torch.dtype, shape: list[int], start: int, stop: int, numbers: Any) -> Tensor:
    breathe()
    count = (stop - start) // dtype.itemsize
    if not count:
        return torch.empty(shape, dtype=dtype)
    found = torch.frombuffer(numbers, dtype=dtype, count=count, offset=start).view(shape)
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"has values that are not finite numbers, in {name[:120]!a}")
    return found
