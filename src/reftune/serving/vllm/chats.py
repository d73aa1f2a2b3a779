"""Prompts as an adapter's training had them, in vLLM's server and offline: what `reftune.json` says is done.

vLLM puts every chat by the chat template.  An adapter that was trained on bare texts or on instructions is given those,
and one that was trained with a system turn is given it unless the request has one of its own.

Must not know: the engine, weights.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
from collections.abc import Sequence
from typing import Any

from ...data.style import PromptStyle
from ...errors import ReftuneError
from ..cards import AdapterCard
from ..prompts import PromptReader
from .requests import ReftRequest

__all__ = ["install", "put_prompts"]

REGISTRY, READER = "_reftune_registry", "_reftune_prompts"


def install() -> None:
    """Wrap what makes prompts of requests."""
    from vllm.entrypoints.common.offline import OfflineInferenceMixin  # noqa: PLC0415 — in processes of vLLM only
    from vllm.renderers.online_renderer import OnlineRenderer  # noqa: PLC0415

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
        card = _card_of(renderer, request)
        if card is None or card.style is None:
            return await own(*args, **kwargs)
        if card.style.style == "messages":
            given.arguments["messages"] = _with_system(messages, card.style)
            return await own(*given.args, **given.kwargs)
        if given.arguments.get("tool_dicts"):
            raise _error(f"this adapter's prompts are of the style {card.style.style!r}, which has no tools")
        turns = _turns(messages)
        prompt = await _made(_reader(renderer).chat, turns, card.style)
        skip = given.arguments.get("skip_mm_cache", False)
        inputs = await renderer.preprocess_cmpl(request, [{"prompt_token_ids": prompt}], skip_mm_cache=skip)
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
        adds = getattr(request, "add_special_tokens", True)
        if not is_text or not adds or given.arguments.get("prompt_embeds") or _card_of(renderer, request) is None:
            return await own(*args, **kwargs)
        reader = _reader(renderer)
        made = [{"prompt": text, "prompt_token_ids": await _made(reader.text, text)} for text in texts]
        skip = given.arguments.get("skip_mm_cache", False)
        return await renderer.preprocess_cmpl(request, made, skip_mm_cache=skip)

    return preprocess_completion


def _card_of(renderer: Any, request: Any) -> AdapterCard | None:
    registry = renderer.__dict__.get(REGISTRY)
    found = None if registry is None else registry.get(getattr(request, "model", None))
    return found.card if isinstance(found, ReftRequest) else None


async def _made(run: Any, *args: Any) -> list[int]:
    try:
        return (await asyncio.to_thread(run, *args)).ids
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


class _Prompt(list[Any]):
    """A conversation whose prompt is made already."""

    tokens: list[int]


def _offline(own: Any) -> Any:
    signature = inspect.signature(own)

    @functools.wraps(own)
    def add_chat_requests(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        llm, messages, requests = given.arguments["self"], given.arguments["messages"], given.arguments["lora_request"]
        many = bool(messages) and isinstance(messages[0], list)
        chats = list(messages) if many else [messages]
        chosen = list(requests) if isinstance(requests, (list, tuple)) else [requests] * len(chats)
        if len(chosen) == len(chats) and any(isinstance(one, ReftRequest) for one in chosen):
            given.arguments["messages"] = [_put(llm, *pair) for pair in zip(chats, chosen, strict=True)]
        return own(*given.args, **given.kwargs)

    return add_chat_requests


def _put(llm: Any, messages: Any, request: Any) -> Any:
    if not isinstance(request, ReftRequest):
        return messages
    try:
        style = PromptStyle.read(request.lora_path)
        if style is None:
            return messages
        if style.style == "messages":
            return _with_system(messages, style)
        found = _Prompt(messages)
        found.tokens = _reader(llm).chat(_turns(messages), style).ids
    except ReftuneError as error:
        raise _error(str(error)) from error
    return found


def _offline_one(own: Any) -> Any:
    @functools.wraps(own)
    def preprocess_chat_one(self: Any, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(conversation, _Prompt):
            return self._preprocess_cmpl_one({"prompt_token_ids": conversation.tokens})
        return own(self, conversation, *args, **kwargs)

    return preprocess_chat_one


def _error(message: str) -> Exception:
    from vllm.exceptions import VLLMValidationError  # noqa: PLC0415

    return VLLMValidationError(message, parameter="messages")
