"""What can be chosen of an embedded server, checked when it is built.

Must not know: FastAPI, models.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import ReftuneError
from ..adapters import WEIGHTS_LIMIT
from ..jobs import FineTuning
from ..modules import ReftModule, check_name

__all__ = ["API_KEY_VARIABLE", "ServeSettings"]

API_KEY_VARIABLE = "REFTUNE_API_KEY"
DTYPES = ("auto", "float32", "bfloat16", "float16")
LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")
AT_LEAST_ONE = ("max_batch_size", "max_batch_tokens", "max_queue", "max_adapters", "max_body_bytes", "slice_steps")


@dataclass(frozen=True)
class ServeSettings:
    """Raises `ReftuneError` naming the value when a field is wrong."""

    model: str
    """Folder, Hub name or package name of the base model."""
    modules: tuple[ReftModule, ...] = ()
    """Adapters that are served from the start."""
    served_model_name: str | None = None
    """The base model's name in requests; by default `model`."""
    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free one."""
    api_key: str | None = field(default_factory=lambda: os.environ.get(API_KEY_VARIABLE) or None, repr=False)
    """Asked of every request but those to /health; by default the variable REFTUNE_API_KEY.  None: nobody is asked."""
    dtype: str = "auto"
    device: str = "auto"
    """`auto`: a GPU if there is one."""
    max_model_len: int | None = None
    """Most tokens of prompt and answer together; by default what the model's configuration says."""
    max_batch_size: int = 16
    """Most rows that are generated together."""
    max_batch_tokens: int = 16384
    """Most tokens of a batch when it begins, padding counted."""
    batch_wait: float = 0.005
    """Seconds that an idle server waits for others to join the first request."""
    slice_steps: int = 32
    """A running batch lets waiting requests in after so many tokens."""
    max_queue: int = 256
    """Most rows that wait; more are answered 429."""
    request_timeout: float = 600.0
    """Seconds until a request is answered 504."""
    max_body_bytes: int = 4 << 20
    allow_runtime_loading: bool = False
    """Whether adapters can be loaded and unloaded by requests."""
    allowed_folders: tuple[Path, ...] = ()
    """Where adapters that are loaded by requests may lie."""
    max_adapters: int = 512
    max_adapter_bytes: int = WEIGHTS_LIMIT
    ui: bool = False
    """Whether there is a page, at /ui."""
    fine_tuning: FineTuning | None = None
    """Whether adapters are trained too, and within what limits."""
    log_level: str = "info"

    def __post_init__(self) -> None:
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ReftuneError(f"{name}={getattr(self, name)!r} is not valid; it is at least 1")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ReftuneError(f"max_model_len={self.max_model_len!r} is not valid; it is at least 2")
        if self.dtype not in DTYPES:
            raise ReftuneError(f"dtype={self.dtype!r} is not valid; use one of {', '.join(DTYPES)}")
        if not 0 <= self.port < 65536:
            raise ReftuneError(f"port={self.port!r} is not valid; it lies between 0 and 65535")
        if self.request_timeout <= 0 or self.batch_wait < 0:
            raise ReftuneError("request_timeout is more than 0 seconds, batch_wait at least 0")
        if self.log_level not in LOG_LEVELS:
            raise ReftuneError(f"log_level={self.log_level!r} is not valid; use one of {', '.join(LOG_LEVELS)}")
        for module in self.modules:
            check_name(module.name, base_names=(self.base_name,))
        if len(self.modules) > self.max_adapters:
            raise ReftuneError(f"{len(self.modules)} adapters are more than max_adapters={self.max_adapters}")
        if self.allow_runtime_loading and not self.allowed_folders:
            raise ReftuneError(
                "loading at run time needs folders that adapters may come from: --reft-adapter-folder (allowed_folders)"
            )

    @property
    def base_name(self) -> str:
        """The base model's name in requests."""
        return self.served_model_name or self.model
