"""In a process of vLLM that takes requests: `ReftRequest`s are resolved, so that the engine knows what they edit.

Must not know: HTTP, weights.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import Any

from ...data.spans import MARKERS, has_marks
from ...errors import DataError
from ..adapters import AdapterError
from ..cards import AdapterCard
from ..folded import FoldedAdapter
from ..limits import STRONGEST
from ..plans import Ranges
from ..prompts import ranges_within
from .adapters import ReadAdapter, Reader
from .loaded import Loaded
from .options import KEY, options_of, refusal_of, why_not
from .requests import SPANS, STRENGTH, WIRE, ReftRequest, Wire

__all__ = ["forget", "install", "load_async", "reader_of", "ready"]

BEAMS = "beam search asks for the answer so far as a new prompt, so that the edited positions would move"


def install() -> None:
    """Wrap what makes the configuration and what takes requests."""
    from vllm.engine.arg_utils import EngineArgs  # noqa: PLC0415 — in processes of vLLM only
    from vllm.entrypoints.generate.beam_search.offline import BeamSearchOfflineMixin  # noqa: PLC0415
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin  # noqa: PLC0415
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # noqa: PLC0415
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest  # noqa: PLC0415
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415
    from vllm.v1.engine.input_processor import InputProcessor  # noqa: PLC0415
    from vllm.v1.engine.llm_engine import LLMEngine  # noqa: PLC0415

    for body in (ChatCompletionRequest, CompletionRequest):
        body.to_sampling_params = _with_strength(body.to_sampling_params)
    EngineArgs.create_engine_config = _configured(EngineArgs.create_engine_config)
    InputProcessor.process_inputs = _resolved(InputProcessor.process_inputs)
    LLMEngine.add_request = _ensured(LLMEngine.add_request)
    AsyncLLM.add_request = _ensured_async(AsyncLLM.add_request)
    for mixin in (BeamSearchOfflineMixin, BeamSearchOnlineMixin):
        mixin.beam_search = _without_adapters(mixin.beam_search)


def _configured(own: Any) -> Any:
    @functools.wraps(own)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = own(self, *args, **kwargs)
        options = options_of(config.additional_config)
        additional = dict(config.additional_config) if isinstance(config.additional_config, dict) else None
        if additional is None:
            return config
        additional.pop(KEY, None)
        if options is not None and why_not(config) is None:
            # vLLM hashes it with all that its compiled models depend on, and hands it to every process
            additional[KEY] = options.as_dict()
        elif options is None:
            additional[KEY] = False
        config.additional_config = additional
        return config

    return create_engine_config


def _resolved(own: Any) -> Any:
    signature = inspect.signature(own)

    @functools.wraps(own)
    def process_inputs(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        values = given.arguments
        request, params = values.get("lora_request"), values.get("params")
        if WIRE in (getattr(params, "extra_args", None) or {}):
            raise _error(f"{WIRE!r} is not for clients to set", WIRE)
        strength = _strength(params)
        given_spans = (getattr(params, "extra_args", None) or {}).get(SPANS)
        if not isinstance(request, ReftRequest):
            if strength is not None:
                raise _error("the request is for no ReFT adapter, so it has no strength", STRENGTH)
            if given_spans is not None:
                raise _error("the request is for no ReFT adapter, so none of its tokens are edited", SPANS)
            return own(*given.args, **given.kwargs)
        if request.card is None:
            raise _error(f"the adapter {request.lora_name!r} was not loaded before the request", "lora_request")
        if not hasattr(params, "extra_args"):
            raise _error("a ReFT adapter is for text generation only, not for pooling", "lora_request")
        if values.get("resumable"):
            raise _error(
                "a prompt that comes in parts cannot have a ReFT adapter: its end is not known", "lora_request"
            )
        # vLLM would refuse it where LoRA is off, and take it for a LoRA where it is on
        values["lora_request"] = None
        made = own(*given.args, **given.kwargs)
        if not made.prompt_token_ids or made.mm_features:
            raise _error("a ReFT adapter needs a prompt of tokens only", "prompt")
        ids = made.prompt_token_ids
        spans = _marked(values.get("prompt"), given_spans, len(ids))
        wire = Wire.of(request.card, ids, spans=spans, strength=1.0 if strength is None else strength)
        # these are a copy of its own
        made.sampling_params.extra_args = {**(made.sampling_params.extra_args or {}), WIRE: wire.to_wire()}
        return made

    return process_inputs


def _marked(prompt: Any, given: Any, length: int) -> Ranges:
    """What of a prompt of `length` tokens is marked: by markers, which are taken out already, or by ranges of tokens.

    Raises:
        VLLMValidationError: by both, by markers that nobody has taken out, or the ranges are none.
    """
    rendered = prompt if isinstance(prompt, dict) else {"prompt": prompt}
    if SPANS in rendered:
        if given is not None:
            raise _error("the prompt marks spans already; leave one of the two out", SPANS)
        return rendered[SPANS]
    text = rendered.get("prompt")
    if isinstance(text, str) and has_marks(text, MARKERS):
        raise _error(
            f"the prompt has markers of spans ({MARKERS[0]}), which are taken out of chats and of texts sent to the "
            f"server only; here give tokens, and extra_args={{{SPANS!r}: [[start, stop], …]}} of them",
            "prompt",
        )
    try:
        return () if given is None else ranges_within(given, length)
    except DataError as error:
        raise _error(str(error), SPANS) from error


def _strength(params: Any) -> float | None:
    """What a request says of it, None if nothing.

    Raises:
        VLLMValidationError: it is no number, or too large.
    """
    value = (getattr(params, "extra_args", None) or {}).get(STRENGTH)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -STRONGEST <= value <= STRONGEST:
        raise _error(f"{STRENGTH}={value!r} is not valid; use a number from -{STRONGEST} to {STRONGEST}", STRENGTH)
    return float(value)


def _with_strength(own: Any) -> Any:
    """A field of the body becomes one of the sampling parameters."""

    @functools.wraps(own)
    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = own(self, *args, **kwargs)
        value = (getattr(self, "model_extra", None) or {}).get(STRENGTH)
        if value is not None:
            made.extra_args = {**(made.extra_args or {}), STRENGTH: value}
        return made

    return to_sampling_params


def _ensured(own: Any) -> Any:
    signature = inspect.signature(own)

    @functools.wraps(own)
    def add_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs)
        request = given.arguments.get("lora_request")
        if isinstance(request, ReftRequest):
            given.arguments["lora_request"] = ready(self, request)
        return own(*given.args, **given.kwargs)

    return add_request


def _ensured_async(own: Any) -> Any:
    signature = inspect.signature(own)

    @functools.wraps(own)
    async def add_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs)
        request = given.arguments.get("lora_request")
        if not isinstance(request, ReftRequest):
            return await own(*given.args, **given.kwargs)
        found = request.card or _known(self, request)
        maps = None
        if found is None:
            maps, found = await asyncio.get_running_loop().run_in_executor(None, _read, self, request)
        with _loaded(self).coming(found.digest):
            # it may have gone while others were awaited
            if request.card is None and found.digest not in _loaded(self):
                if maps is None:
                    maps, _ = _read(self, request)
                await _brought(self, request, maps)
            given.arguments["lora_request"] = request.with_card(found)
            return await own(*given.args, **given.kwargs)

    return add_request


async def _brought(engine: Any, request: ReftRequest, maps: FoldedAdapter) -> None:
    try:
        await load_async(engine, maps, named=False)
    except AdapterError as error:
        raise _error(str(error), "lora_request") from error
    former = _loaded(engine).rewritten(request.lora_path, maps.digest)
    if former is not None:
        await forget(engine, former, grace=0.0)


def ready(engine: Any, request: ReftRequest) -> ReftRequest:
    """The request once its adapter is loaded, by an `LLMEngine`.

    Raises:
        VLLMValidationError: the adapter cannot be served.
    """
    if request.card is not None:
        return request
    known = _loaded(engine)
    card = _known(engine, request)
    if card is None:
        maps, card = _read(engine, request)
        answer = _call(engine, "reft_load", card.digest, maps.to_bytes(), known.spare())
        if answer["problem"]:
            raise _error(answer["problem"], "lora_request")
        known.add(card.digest, named=False, dropped=answer["dropped"])
        former = known.rewritten(request.lora_path, card.digest)
        if former is not None:
            _call(engine, "reft_unload", former, 0.0)
            known.discard(former)
    known.touch(card.digest)
    return request.with_card(card)


def _call(engine: Any, method: str, *args: Any) -> Any:
    """The answer of the core of an `LLMEngine`."""
    core = engine.engine_core
    # without processes of its own, the core is right here
    call = getattr(core, "call_utility", None)
    return call(method, *args) if call is not None else getattr(core.engine_core, method)(*args)


async def load_async(engine: Any, maps: FoldedAdapter, *, named: bool = True) -> None:
    """Have the engine's workers keep an adapter; one that is named until `forget`, another until there is no room.

    Raises:
        AdapterError: they do not.
    """
    content = await asyncio.get_running_loop().run_in_executor(None, maps.to_bytes)
    known = _loaded(engine)
    answers = await _asked(engine, "reft_load", maps.digest, content, known.spare())
    for answer in answers:
        for digest in answer["dropped"]:
            known.discard(digest)
    problem = next((answer["problem"] for answer in answers if answer["problem"]), None)
    if problem:
        raise AdapterError(problem)
    known.add(maps.digest, named=named)


async def forget(engine: Any, digest: str, *, grace: float | None = None) -> None:
    """Have the engine's workers let an adapter go when no request needs it."""
    _loaded(engine).discard(digest)
    await _asked(engine, "reft_unload", digest, *([] if grace is None else [grace]))


async def _asked(engine: Any, method: str, *args: Any) -> list[Any]:
    """The answer of each of the engine's cores."""
    core = engine.engine_core
    if hasattr(core, "call_utility_all_async"):
        return await core.call_utility_all_async(method, *args)
    return [await core.call_utility_async(method, *args)]


def reader_of(engine: Any) -> Reader:
    """The engine's reader of adapters.

    Raises:
        AdapterError: the engine serves none.
    """
    found = engine.__dict__.get("_reftune_reader")
    if found is None:
        refusal = refusal_of(engine.vllm_config)
        options = None if refusal else options_of(engine.vllm_config.additional_config)
        if refusal or options is None:
            raise AdapterError(refusal or "ReFT is switched off")
        found = engine.__dict__["_reftune_reader"] = Reader(engine.vllm_config, options)
    return found


def _read(engine: Any, request: ReftRequest) -> ReadAdapter:
    try:
        return reader_of(engine).read(request.lora_path)
    except AdapterError as error:
        raise _error(str(error), "lora_request") from error


def _known(engine: Any, request: ReftRequest) -> AdapterCard | None:
    """The card of a request's adapter, if it is loaded and its files are as they were."""
    try:
        found = reader_of(engine).known(request.lora_path)
    except AdapterError as error:
        raise _error(str(error), "lora_request") from error
    return found if found is not None and found.digest in _loaded(engine) else None


def _loaded(engine: Any) -> Loaded:
    """The adapters that this process had the engine load."""
    found = engine.__dict__.get("_reftune_loaded")
    if found is None:
        found = engine.__dict__["_reftune_loaded"] = Loaded()
    return found


def _without_adapters(own: Any) -> Any:
    signature = inspect.signature(own)

    def check(args: Any, kwargs: Any) -> None:
        found = signature.bind(*args, **kwargs).arguments.get("lora_request")
        if any(isinstance(one, ReftRequest) for one in (found if isinstance(found, (list, tuple)) else [found])):
            raise _error(f"a ReFT adapter cannot be used here: {BEAMS}", "lora_request")

    @functools.wraps(own)
    def beam_search(*args: Any, **kwargs: Any) -> Any:
        check(args, kwargs)
        return own(*args, **kwargs)

    return beam_search


def _error(message: str, parameter: str) -> Exception:
    from vllm.exceptions import VLLMValidationError  # noqa: PLC0415

    return VLLMValidationError(message, parameter=parameter)
