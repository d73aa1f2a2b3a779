"""Answers of a model by vLLM without a server, for scoring: the base alone, with a ReFT adapter, or with a LoRA.

Must not know: tasks, scores, HTTP.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from transformers import AutoConfig, GenerationConfig

from ...adapter_files import adapter_config
from ...errors import ReftuneError
from ...generation import encoded_prompts, end_tokens, parts_of_records, whole_characters
from ...hub import hub_arguments
from ...models import load_tokenizer, resolve_model
from ..adapters import read_adapter
from ..folded import fold_adapter
from ..modules import ReftModule, folder_of
from ..plans import ranges_of
from . import problem
from .architectures import ARCHITECTURES
from .launch import allow_plugin

__all__ = ["VllmEngine", "is_installed", "why_not"]

# Ranks that vLLM makes room for.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Prompts that are given to vLLM at once: an answer is written to its file when those of its batch are there.
AT_ONCE = 256
# Arguments of `generate` → fields of vLLM's SamplingParams that mean the same.
SAME = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
}
# Arguments of `generate` that vLLM has not, and the values by which they do nothing.
IDLE: dict[str, Any] = {"num_beams": 1, "no_repeat_ngram_size": 0, "pad_token_id": None}


def is_installed() -> bool:
    """Whether vLLM is there; it is not imported."""
    return importlib.util.find_spec("vllm") is not None


def why_not(base: str, adapter: str | None, generation: Sequence[Mapping[str, Any]]) -> str | None:
    """In words, why vLLM cannot answer for this model, adapter and arguments of `generate`; None if it can.

    Known from files, before anything is loaded.
    """
    for arguments in generation:
        if (reason := _unknown(arguments)) is not None:
            return reason
    resolved = resolve_model(base)
    try:
        config: Any = AutoConfig.from_pretrained(resolved, **hub_arguments(resolved))
        architecture = (config.architectures or ["no architecture"])[0]
        kind = None if adapter is None else _kind(adapter_config(adapter))
        if kind == "REFT":
            if architecture not in ARCHITECTURES:
                return f"ReFT adapters on {architecture} are not served there"
            _rank(adapter, config, architecture)
        elif kind not in (None, "LORA"):
            return f"it has no adapters of the kind {kind}"
    except (ReftuneError, OSError, ValueError) as error:
        return str(error)
    return None


def _unknown(generation: Mapping[str, Any]) -> str | None:
    """In words, which of the arguments of `generate` vLLM has not."""
    known = {*SAME, *IDLE, "do_sample", "max_length", "eos_token_id"}
    for name, value in generation.items():
        if name not in known or (name in IDLE and value not in (None, IDLE[name]) and name != "pad_token_id"):
            return f"it has no {name}={value!r} as transformers understands it"
    return None


def _kind(config: Any) -> str:
    return getattr(config.peft_type, "value", str(config.peft_type))


def _rank(adapter: str | None, config: Any, architecture: str) -> int:
    """The rank that a ReFT adapter needs room for; raises `AdapterError` where it cannot be served."""
    text = config.get_text_config()
    folded = fold_adapter(
        read_adapter(folder_of(ReftModule("scored", str(adapter)))),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        prefix=ARCHITECTURES[architecture].path,
    )
    return max(1, folded.rank)


class VllmEngine:
    """A base model with or without an adapter, held by vLLM until `close`; `evaluate_rows` takes it for a model.

    Raises:
        ReftuneError: there is no plug-in, or the adapter cannot be served; `why_not` tells what else stands against it.
    """

    def __init__(self, base: str, adapter: str | None = None, *, dtype: str = "float32") -> None:
        allow_plugin()
        # read when vLLM is imported
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm import LLM  # noqa: PLC0415 — only who asks for it has it

        self.base = resolve_model(base)
        self.tokenizer = load_tokenizer(self.base)
        self._request: Any = None
        self._extra: dict[str, Any] = {}
        more: dict[str, Any] = {}
        if adapter is not None:
            more = self._adapter(adapter)
        self._llm: Any = LLM(
            model=self.base,
            skip_tokenizer_init=True,
            dtype=dtype,
            # as long as there is memory for
            max_model_len=-1,
            **more,
        )
        if adapter is not None and not more.get("enable_lora") and (trouble := problem()) is not None:
            raise ReftuneError(f"vLLM cannot answer here: {trouble}")
        self.longest: int = self._llm.llm_engine.model_config.max_model_len
        try:
            config = GenerationConfig.from_pretrained(self.base, **hub_arguments(self.base))
        except OSError:
            config = None
        self.ends = end_tokens(config, self.tokenizer)

    def _adapter(self, adapter: str) -> dict[str, Any]:
        """Prepare requests for the adapter; the arguments that the engine needs for it."""
        from vllm.lora.request import LoRARequest  # noqa: PLC0415

        from .requests import ReftRequest  # noqa: PLC0415

        folder = folder_of(ReftModule("scored", adapter))
        found: Any = adapter_config(adapter)
        if _kind(found) == "REFT":
            config: Any = AutoConfig.from_pretrained(self.base, **hub_arguments(self.base))
            self._request = ReftRequest("scored", 1, str(folder))
            rank = _rank(adapter, config, config.architectures[0])
            return {"additional_config": {"reftune": {"max_rank": rank, "max_adapters": 1}}}
        self._request = LoRARequest("scored", 1, str(folder))
        highest = max([found.r, *(found.rank_pattern or {}).values()])
        return {"enable_lora": True, "max_lora_rank": next(r for r in LORA_RANKS if r >= highest)}

    def set_strength(self, adapter_name: str, value: float) -> None:
        """As `ReftModel.set_strength`, of the one adapter that there is.

        Raises:
            ReftuneError: it is no ReFT adapter.
        """
        from .requests import STRENGTH, ReftRequest  # noqa: PLC0415

        if not isinstance(self._request, ReftRequest):
            raise ReftuneError("only ReFT adapters have a strength, and this is none")
        self._extra = {STRENGTH: float(value)}

    def batches(
        self, prompts: Sequence[dict[str, Any] | str], *, batch_size: int | None = None, **generation: Any
    ) -> Iterator[list[tuple[int, str]]]:
        """As `reftune.generation.generate_batches`; how many run at once is vLLM's business.

        Raises:
            ReftuneError: arguments that vLLM has not; `DataError`: a prompt that cannot be put, or is too long.
        """
        reason = _unknown(generation)
        if reason is not None:
            raise ReftuneError(f"vLLM cannot answer here: {reason}; use the engine transformers")
        from vllm.inputs import TokensPrompt  # noqa: PLC0415

        if self._request is not None and parts_of_records(prompts) is not None:
            raise ReftuneError(
                "the rows choose parts of the adapter by 'subspaces', which vLLM cannot; use the engine transformers"
            )
        encoded = list(encoded_prompts(prompts, self.tokenizer))
        for start in range(0, len(encoded), AT_ONCE):
            chosen = range(start, min(start + AT_ONCE, len(encoded)))
            outputs = self._llm.generate(
                [TokensPrompt(prompt_token_ids=encoded[i][0]) for i in chosen],
                [self._sampling(generation, *encoded[i], i) for i in chosen],
                lora_request=self._request,
                use_tqdm=False,
            )
            yield [(i, self._text(output)) for i, output in zip(chosen, outputs, strict=True)]

    def _sampling(self, generation: Mapping[str, Any], ids: list[int], spans: list[int] | None, number: int) -> Any:
        from vllm import SamplingParams  # noqa: PLC0415

        from .requests import SPANS, ReftRequest  # noqa: PLC0415

        length, extra = len(ids), dict(self._extra)
        if spans is not None and isinstance(self._request, ReftRequest):
            extra[SPANS] = ranges_of(spans)
        given = {SAME[name]: value for name, value in generation.items() if name in SAME and value is not None}
        if not generation.get("do_sample"):
            given["temperature"] = 0.0
        room = self.longest - length
        if "max_tokens" not in given:
            given["max_tokens"] = (generation.get("max_length") or self.longest) - length
        if min(room, given["max_tokens"]) < 1:
            raise ReftuneError(
                f"prompt {number + 1} has {length} tokens, and with its answer more than the {self.longest} that there "
                "is room for"
            )
        ends = generation.get("eos_token_id", self.ends)
        stop = [ends] if isinstance(ends, int) else list(ends or ())
        given["max_tokens"] = min(given["max_tokens"], room)
        return SamplingParams(**given, stop_token_ids=stop, detokenize=False, extra_args=extra)

    def _text(self, output: Any) -> str:
        tokens = list(output.outputs[0].token_ids)
        return whole_characters(str(self.tokenizer.decode(tokens, skip_special_tokens=True)))

    def close(self) -> None:
        """End vLLM's processes."""
        shutdown: Callable[..., None] = self._llm.llm_engine.engine_core.shutdown
        # on a CPU its workers do not go by themselves, however long it waits
        shutdown(timeout=0.5)
