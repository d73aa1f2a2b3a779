"""Requests and replies of the OpenAI API, as far as they are served.

What a request asks for and is not served is refused by name, never left out in silence; parameters at the value that
asks for nothing, and those that only label a request, may be there.

Must not know: models, batches.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ...errors import DataError
from ..limits import STRONGEST
from .sampling import SamplingOptions

__all__ = [
    "ChatChunk",
    "ChatReply",
    "ChatRequest",
    "CompletionReply",
    "CompletionRequest",
    "GenerationRequest",
    "LoadRequest",
    "Model",
    "ModelList",
    "TokenReply",
    "TokenizeRequest",
    "UnloadRequest",
    "Usage",
]

# Parameters that are not served, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "echo": (False,),
    "best_of": (1,),
    "use_beam_search": (False,),
    "min_tokens": (0,),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "add_generation_prompt": (True,),
}
# Parameters that label a request and have no effect on its answer.
LABELS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})


class Request(BaseModel):
    """Refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def refuse_unserved(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        unknown = set(values) - set(cls.model_fields)
        unserved = [
            name
            for name in unknown - LABELS
            if values[name] is not None and not any(values[name] == value for value in NEUTRAL.get(name, ()))
        ]
        if unserved:
            raise ValueError(f"not served: {', '.join(ascii(name)[1:-1] for name in sorted(unserved))}")
        return {name: value for name, value in values.items() if name not in unknown}


class StreamOptions(Request):
    include_usage: bool | None = None


class GenerationRequest(Request, ABC):
    """What chats and completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    reft_strength: Annotated[float, Field(ge=-STRONGEST, le=STRONGEST)] | None = None

    @field_validator("stop")
    @classmethod
    def few_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and (len(value) > 16 or any(len(stop) > 1000 for stop in value)):
            raise ValueError("at most 16 stop strings of at most 1000 characters")
        return value

    @model_validator(mode="after")
    def stream_options_need_stream(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream=true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    @abstractmethod
    def reported(self) -> int | None:
        """How many log-probabilities are wanted beside each token's own, None for none at all."""

    def sampling(self, index: int, *, vocabulary: int) -> SamplingOptions:
        """Options of the answer of this number among `n`: each draws other numbers.

        Raises:
            DataError: logit_bias names a token that does not exist.
        """
        bias: dict[int, float] = {}
        for key, value in (self.logit_bias or {}).items():
            if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < vocabulary):
                raise DataError(f"logit_bias names the token {key[:20]!a}; valid are 0 to {vocabulary - 1}")
            bias[int(key)] = value
        return SamplingOptions(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            logit_bias=bias,
            seed=None if self.seed is None else self.seed + index,
            logprobs=self.reported,
        )


class TextPart(Request):
    type: Literal["text"]
    text: str


class ChatMessage(Request):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def fits_role(self) -> ChatMessage:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls are for the role 'assistant'")
        if self.role != "tool" and (self.name or self.tool_call_id):
            raise ValueError("name and tool_call_id are for the role 'tool'; others are not served")
        if self.content is None and not self.tool_calls:
            raise ValueError("content is needed, unless there are tool_calls")
        return self

    def as_turn(self) -> dict[str, Any]:
        """The turn for a chat template, which knows no `developer`."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        turn = {"role": "system" if self.role == "developer" else self.role, "content": text}
        others = {"name": self.name, "tool_calls": self.tool_calls, "tool_call_id": self.tool_call_id}
        return turn | {key: value for key, value in others.items() if value}


class ChatRequest(GenerationRequest):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    """For the chat template; how the model calls them is the text of its answer."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def check_chat(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if self.messages[-1].role == "assistant":
            raise ValueError("messages ends with an assistant turn; there is nothing to answer")
        return self

    @property
    def reported(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationRequest):
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    reft_spans: list[list[int]] | None = None
    """What of the one prompt is marked: [start, end] of its characters, or of its tokens where it is tokens."""

    @property
    def reported(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One or several, each text or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]


class TokenizeRequest(Request):
    """As vLLM's."""

    model: str
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("either prompt or messages is needed")
        return self


class LoadRequest(Request):
    reft_name: str
    reft_path: str
    load_inplace: bool = False


class UnloadRequest(Request):
    reft_name: str


# --- replies ----------------------------------------------------------------------------------------------------------


def now() -> int:
    return int(time.time())


class Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class Reply(BaseModel):
    id: str
    created: int = Field(default_factory=now)
    model: str
    choices: list[Any]
    usage: Usage | None = None


class ChatReply(Reply):
    object: Literal["chat.completion"] = "chat.completion"


class ChatChunk(Reply):
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class CompletionReply(Reply):
    object: Literal["text_completion"] = "text_completion"


class TokenReply(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None
    spans: list[int] | None = None
    """Of each token 1 where the prompt marks it, else 0."""


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(default_factory=now)
    owned_by: str = "reftune"
    root: str
    parent: str | None = None
    max_model_len: int | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
