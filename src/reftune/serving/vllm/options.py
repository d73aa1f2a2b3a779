"""What the plug-in may be told (`additional_config["reftune"]`), and whether it can serve with a vLLM configuration.

Must not know: adapters, processes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from ...errors import ReftuneError
from .architectures import ARCHITECTURES

__all__ = ["KEY", "Options", "check_content_name", "options_of", "refusal_of", "why_not"]

KEY = "reftune"
# In what vLLM hashes for its cache of compiled models: to be raised whenever what the hooks do in them changes.
FORMAT = 1
# vLLM gives an adapter of such a name to requests for the base model that have such content
CONTENT_TYPES = ("text", "image", "image_url", "audio", "input_audio", "video", "file", "refusal", "vision_chunk")


@dataclass(frozen=True)
class Options:
    """Options of the plug-in; all of them shape what is compiled."""

    max_rank: int = 16
    """Highest rank of an adapter at one layer, over all that it edits a token by."""
    slots: int = 0
    """On an accelerator: sets of interventions that are kept there at a time; 0: two for each running request."""
    max_adapters: int = 4096
    """Adapters that are kept in the memory of the host."""
    format: int = FORMAT

    def slots_for(self, sequences: int) -> int:
        """Slots of an engine that runs so many sequences at a time."""
        return self.slots or 2 * sequences

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def options_of(additional: Any) -> Options | None:
    """The options in vLLM's `additional_config`; None if the plug-in is switched off there by `"reftune": false`.

    Raises:
        ValueError: an option that there is not, or a value that is not valid.
    """
    given = additional.get(KEY, {}) if isinstance(additional, dict) else {}
    if given is False:
        return None
    if not isinstance(given, dict):
        raise ValueError(f"additional_config[{KEY!r}]={given!r} is not valid; it is false or a table of options")
    known = {field.name for field in fields(Options)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(
            f"additional_config[{KEY!r}] has unknown options {unknown}; valid are {', '.join(sorted(known))}"
        )
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < (0 if name == "slots" else 1):
            raise ValueError(f"additional_config[{KEY!r}]: {name}={value!r} is not valid; it is a whole number above 0")
    return Options(**{**given, "format": FORMAT})


def check_content_name(name: str) -> None:
    """Refuse a name that means a kind of content to vLLM.

    Raises:
        ReftuneError: it does.
    """
    if name in CONTENT_TYPES:
        raise ReftuneError(f"the adapter name {name!r} means a kind of content to vLLM; give it another")


def why_not(config: Any) -> str | None:
    """In words, why adapters cannot be served with this `VllmConfig`; None if they can."""
    model, parallel = config.model_config, config.parallel_config
    if model is None or model.runner_type != "generate":
        return "the model does not generate text"
    name = model.architecture
    if name not in ARCHITECTURES:
        return f"the architecture {name} is not among those that were tested: {', '.join(sorted(ARCHITECTURES))}"
    reasons = {
        "the model takes other inputs than text": model.is_multimodal_model,
        "the model is an encoder and a decoder": model.is_encoder_decoder,
        "speculative decoding is on": config.speculative_config is not None,
        "steps are divided into micro-batches (dbo)": parallel.use_ubatching,
        "context parallelism is on": parallel.prefill_context_parallel_size > 1
        or parallel.decode_context_parallel_size > 1,
        "experts divide the tokens among them": getattr(parallel, "use_sequence_parallel_moe", False),
        "keys and values come from elsewhere (kv_transfer_config)": config.kv_transfer_config is not None,
        "later layers run on some tokens only (kv_sharing_fast_prefill)": config.cache_config.kv_sharing_fast_prefill,
        "prompts may be embeddings (enable_prompt_embeds)": model.enable_prompt_embeds,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def refusal_of(config: Any) -> str | None:
    """In words, why an engine with this configuration serves no adapters; None if it does."""
    options = config.additional_config.get(KEY) if isinstance(config.additional_config, dict) else None
    if options:
        return None
    if options is False:
        return f"ReFT is switched off by additional_config[{KEY!r}]"
    return f"ReFT adapters cannot be served by this engine: {why_not(config) or 'it was started without the plug-in'}"
