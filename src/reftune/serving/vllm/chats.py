"""Prompts as an adapter's training had them, in vLLM's server and offline: what `reftune.json` says is done.

vLLM puts every chat by the chat template.  An adapter that was trained on bare texts or on instructions is given those,
and one that was trained with a system turn is given it unless the request has one of its own.  Markers of spans are
taken out, and which tokens they mark goes with the prompt; one that vLLM puts otherwise than we do is refused then.

Must not know: the engine, weights.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from ...data.spans import MARKERS, has_marks, without_markers
from ...data.style import PromptStyle
from ...errors import ReftuneError
from ..cards import AdapterCard
from ..plans import ranges_of
from ..prompts import Prompt, PromptReader
from .requests import SPANS, ReftRequest

__all__ = ["install", "put_prompts"]

REGISTRY, READER = "_reftune_registry", "_reftune_prompts"
# Marks of the prompts of a request that asks for tokens, by 0 and 1, if one is under way.
ASKED: ContextVar[list[list[int]] | None] = ContextVar("reftune_marks", default=None)


def install() -> None:
    """Wrap what makes prompts of requests."""
    from vllm.entrypoints.common.offline import OfflineInferenceMixin  # noqa: PLC0415 — in processes of vLLM only
    from vllm.entrypoints.serve.tokenize.serving import ServingTokenization  # noqa: PLC0415
    from vllm.renderers.online_renderer import OnlineRenderer  # noqa: PLC0415

    ServingTokenization.create_tokenize = _tokenize(ServingTokenization.create_tokenize)
    OnlineRenderer.preprocess_chat = _chat(OnlineRenderer.preprocess_chat)
    OnlineRenderer.preprocess_completion = _completion(OnlineRenderer.preprocess_completion)
    OfflineInferenceMixin._add_chat_requests = _offline(OfflineInferenceMixin._add_chat_requests)
    OfflineInferenceMixin._preprocess_chat_one = _offline_one(OfflineInferenceMixin._preprocess_chat_one)


def put_prompts(renderer: Any, registry: Any) -> None:
    """Have a server's renderer put the prompts of these adapters as their training did."""
    renderer.__dict__[REGISTRY] = registry


# --- the server -------------------------------------------------------------------------------------------------------


def _chat(own: Any) -> Any:
    signature = inspect.signature(own)

    @functools.wraps(own)
    async def preprocess_chat(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        renderer, request, messages = (given.arguments[name] for name in ("self", "request", "messages"))
        if renderer.__dict__.get(REGISTRY) is None:
            return await own(*args, **kwargs)
        if _field(request) is not None:
            raise _error(f"{SPANS} is of prompts that are text or tokens; in messages put {' and '.join(MARKERS)}")
        card, style = _card_of(renderer, request), None
        messages, marked = _read(messages)
        if card is not None:
            style = card.style
        tools = given.arguments.get("tool_dicts")
        if card is None or style is None or style.style == "messages":
            plain = without_markers(messages, MARKERS) if marked else messages
            given.arguments["messages"] = plain if style is None else _with_system(plain, style)
            found = await own(*given.args, **given.kwargs)
            if card is not None and marked:
                _mark(found[1], [await _made(_reader(renderer).chat, _turns(messages), style, tools)])
            return found
        if tools:
            raise _error(f"this adapter's prompts are of the style {style.style!r}, which has no tools")
        turns = _turns(messages)
        prompt = await _made(_reader(renderer).chat, turns, style)
        skip = given.arguments.get("skip_mm_cache", False)
        inputs = await renderer.preprocess_cmpl(request, [{"prompt_token_ids": prompt.ids}], skip_mm_cache=skip)
        _mark(inputs, [prompt])
        return turns, inputs

    return preprocess_chat


def _completion(own: Any) -> Any:
    signature = inspect.signature(own)

    @functools.wraps(own)
    async def preprocess_completion(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        renderer, request, prompts = (given.arguments[name] for name in ("self", "request", "prompt_input"))
        texts = [prompts] if isinstance(prompts, str) else prompts
        is_text = isinstance(texts, list) and bool(texts) and all(isinstance(text, str) for text in texts)
        spans, card = _field(request), _card_of(renderer, request)
        if card is None:
            if spans is not None:
                raise _error("the request is for no ReFT adapter, so none of its tokens are edited", SPANS)
            if is_text and renderer.__dict__.get(REGISTRY) is not None:
                given.arguments["prompt_input"] = without_markers(prompts, MARKERS)
            return await own(*given.args, **given.kwargs)
        if not getattr(request, "add_special_tokens", True) or given.arguments.get("prompt_embeds"):
            if spans is not None or (is_text and any(has_marks(text, MARKERS) for text in texts)):
                raise _error("spans are marked in whole prompts only: of text with its special tokens, or of tokens")
            return await own(*args, **kwargs)
        if not is_text and spans is None:
            return await own(*args, **kwargs)
        asked = texts if is_text or (texts and isinstance(texts[0], list)) else [texts]
        made = await _made(_reader(renderer).prompts, asked, spans)
        inputs = await renderer.preprocess_cmpl(
            request,
            [
                {"prompt_token_ids": prompt.ids, **({"prompt": without_markers(text, MARKERS)} if is_text else {})}
                for text, prompt in zip(asked, made, strict=True)
            ],
            skip_mm_cache=given.arguments.get("skip_mm_cache", False),
        )
        _mark(inputs, made)
        return inputs

    return preprocess_completion


def _tokenize(own: Any) -> Any:
    @functools.wraps(own)
    async def create_tokenize(*args: Any, **kwargs: Any) -> Any:
        found: list[list[int]] = []
        token = ASKED.set(found)
        try:
            reply = await own(*args, **kwargs)
        finally:
            ASKED.reset(token)
        if found and hasattr(reply, "tokens"):
            reply.spans = found[0]
        return reply

    return create_tokenize


def _field(request: Any) -> Any:
    """What the body of a request says of spans."""
    return (getattr(request, "model_extra", None) or {}).get(SPANS)


def _read(messages: Sequence[Any]) -> tuple[list[Any], bool]:
    """The messages, whose contents can be gone through more than once, and whether a marker is in them."""
    found = [
        {**one, "content": list(one["content"])} if one.get("content") and not isinstance(one["content"], str) else one
        for one in messages
    ]
    return found, without_markers(found, MARKERS) != found


def _mark(inputs: Sequence[Any], prompts: Sequence[Prompt]) -> None:
    """Put with each of the engine's inputs what its prompt marks.

    Raises:
        VLLMValidationError: it has other tokens, so that it is not known which of them are marked.
    """
    for one, prompt in zip(inputs, prompts, strict=True):
        if prompt.spans is None:
            continue
        if list(one.get("prompt_token_ids") or ()) != prompt.ids:
            raise _error(
                "with these options the prompt is other than the one that is marked (it is cut, or a template or "
                "arguments of one are given), so which tokens are marked is not known; leave them out"
            )
        one[SPANS] = ranges_of(prompt.spans)
        if (asked := ASKED.get()) is not None:
            asked.append(prompt.spans)


def _card_of(renderer: Any, request: Any) -> AdapterCard | None:
    registry = renderer.__dict__.get(REGISTRY)
    found = None if registry is None else registry.get(getattr(request, "model", None))
    return found.card if isinstance(found, ReftRequest) else None


async def _made(run: Any, *args: Any) -> Any:
    try:
        return await asyncio.to_thread(run, *args)
    except ReftuneError as error:
        raise _error(str(error)) from error


def _reader(owner: Any) -> PromptReader:
    """Of a renderer or an `LLM`; with a tokenizer of its own, since vLLM uses its own in other threads."""
    found = owner.__dict__.get(READER)
    if found is None:
        config = owner.model_config
        tokenizer = copy.deepcopy(owner.renderer.get_tokenizer())
        limit, vocabulary = config.max_model_len, config.get_vocab_size()
        found = owner.__dict__[READER] = PromptReader(tokenizer, limit=limit, vocabulary=vocabulary)
    return found


# --- turns ------------------------------------------------------------------------------------------------------------


def _with_system(messages: Sequence[Any], style: PromptStyle) -> list[Any]:
    """The messages behind the system turn of the adapter's training, unless they have one."""
    # another name of it
    has_system = any(message.get("role") == "developer" for message in messages)
    return list(messages) if has_system else style.conversation(messages)["messages"]


def _turns(messages: Sequence[Any]) -> list[dict[str, str]]:
    """Role and text of each message."""
    return [{"role": str(message.get("role")), "content": _text(message.get("content"))} for message in messages]


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = list(content)
    if not all(isinstance(part, str) or (isinstance(part, dict) and part.get("type") == "text") for part in parts):
        raise _error("this adapter's prompts are of text only")
    return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in parts)


# --- offline ----------------------------------------------------------------------------------------------------------


class _Chat(list[Any]):
    """A conversation that is put as an adapter's training did, or has markers."""

    style: PromptStyle | None = None


def _offline(own: Any) -> Any:
    signature = inspect.signature(own)

    @functools.wraps(own)
    def add_chat_requests(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        messages, requests = given.arguments["messages"], given.arguments["lora_request"]
        many = bool(messages) and isinstance(messages[0], list)
        chats = list(messages) if many else [messages]
        chosen = list(requests) if isinstance(requests, (list, tuple)) else [requests] * len(chats)
        if len(chosen) == len(chats) and any(isinstance(one, ReftRequest) for one in chosen):
            given.arguments["messages"] = [_put(*pair) for pair in zip(chats, chosen, strict=True)]
        return own(*given.args, **given.kwargs)

    return add_chat_requests


def _put(messages: Any, request: Any) -> Any:
    if not isinstance(request, ReftRequest):
        return messages
    found = _Chat(messages)
    try:
        found.style = PromptStyle.read(request.lora_path)
    except ReftuneError as error:
        raise _error(str(error)) from error
    return found


def _offline_one(own: Any) -> Any:
    signature = inspect.signature(own)

    @functools.wraps(own)
    def preprocess_chat_one(self: Any, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(conversation, _Chat):
            return own(self, conversation, *args, **kwargs)
        style, tools = conversation.style, signature.bind(self, conversation, *args, **kwargs).arguments.get("tools")
        messages, marked = _read(conversation)
        has_own = style is not None and style.style != "messages"
        try:
            made = _reader(self).chat(_turns(messages), style, tools) if marked or has_own else None
        except ReftuneError as error:
            raise _error(str(error)) from error
        if has_own:
            assert made is not None
            found = self._preprocess_cmpl_one({"prompt_token_ids": made.ids})
        else:
            plain = without_markers(messages, MARKERS) if marked else messages
            found = own(self, plain if style is None else _with_system(plain, style), *args, **kwargs)
        if made is not None:
            _mark([found], [made])
        return found

    return preprocess_chat_one


def _error(message: str, parameter: str = "messages") -> Exception:
    from vllm.exceptions import VLLMValidationError  # noqa: PLC0415

    return VLLMValidationError(message, parameter=parameter)
