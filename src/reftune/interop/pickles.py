"""Tensors from files of torch that strangers made: read without running anything that is in them.

Must not know: what the tensors mean.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ReftuneError
from ..values import shown

__all__ = ["json_object", "tensors_of"]

JSON_LIMIT = 2**22
TENSOR_LIMIT = 2**34


def json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ReftuneError: there is no such file, or something else is in it.
    """
    try:
        if file.stat().st_size > JSON_LIMIT:
            raise ReftuneError(f"{str(file)!r} has more than {JSON_LIMIT} bytes, which no configuration has")
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReftuneError(f"{str(file)!r} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ReftuneError(f"{str(file)!r} is not JSON, or is cut: {error}") from error
    if not isinstance(found, dict):
        raise ReftuneError(f"{str(file)!r} is not a JSON object but {shown(found)}")
    return found


def tensors_of(file: Path) -> dict[str, Tensor]:
    """Name → tensor, on the CPU; a pickle with anything but tensors in it is not unpickled.

    Raises:
        ReftuneError: there is no such file, it is cut, or it holds something else.
    """
    try:
        if file.stat().st_size > TENSOR_LIMIT:
            raise ReftuneError(f"{str(file)!r} has more than {TENSOR_LIMIT} bytes, which no adapter has")
        found = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ReftuneError(f"{str(file)!r} cannot be read: {error.strerror or 'the file is cut'}") from error
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(file):
            raise ReftuneError(
                f"{str(file)!r} is a pickle that holds more than tensors, which could run code; it is not read"
            ) from error
        raise ReftuneError(f"{str(file)!r} is no file of tensors that torch can read, or is cut") from error
    except (AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ReftuneError(f"{str(file)!r} is no file of tensors that torch can read, or is cut") from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise ReftuneError(f"{str(file)!r} is not a table of names and tensors")
    for name, tensor in found.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ReftuneError(f"{str(file)!r}: {shown(name)} has entries that are no numbers")
    return found
