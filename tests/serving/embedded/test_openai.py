"""The official client, used as it is, against a server of this process: what it asks for it gets, in OpenAI's form."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from openai import OpenAI

from reftune import encode_prompt
from tests.serving.embedded.conftest import Running, Serve
from tests.serving.folders import BASE, KINDS, plain_answer, plain_models
from tests.training.text_models import word_tokenizer

TOKENIZER = word_tokenizer()
ASK = [{"role": "user", "content": "w1 w2 w3"}]
NAMES = [BASE, *KINDS]


@pytest.fixture(scope="module")
def plain(adapters: dict[str, Path]) -> dict[str | None, Any]:
    models = plain_models(adapters)
    return {**models, BASE: models[None]}


def chat(client: OpenAI, model: str = BASE, messages: Any = ASK, **options: Any) -> Any:
    defaults: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
    return client.chat.completions.create(model=model, messages=messages, **{**defaults, **options})


def complete(client: OpenAI, model: str = BASE, prompt: Any = "w1 w2 w3", **options: Any) -> Any:
    defaults: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
    return client.completions.create(model=model, prompt=prompt, **{**defaults, **options})


def text_of(tokens: list[int]) -> str:
    """Up to the end token, as the server is to decode it."""
    end = TOKENIZER.eos_token_id
    return str(TOKENIZER.decode(tokens[: tokens.index(end)] if end in tokens else tokens, skip_special_tokens=True))


# --- the same as transformers alone -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_chat(client: OpenAI, plain: dict[str | None, Any], name: str) -> None:
    reply = chat(client, name)
    prompt = encode_prompt({"messages": ASK}, TOKENIZER)
    assert reply.choices[0].message.content == text_of(plain_answer(plain[name], prompt, 8))
    assert reply.choices[0].message.role == "assistant"
    assert reply.model == name and reply.object == "chat.completion" and reply.id.startswith("chatcmpl-")
    assert reply.usage.prompt_tokens == len(prompt)
    assert reply.usage.total_tokens == len(prompt) + reply.usage.completion_tokens


def test_many_at_once(client: OpenAI, plain: dict[str | None, Any]) -> None:
    """From threads, as they come: completions of all adapters and the base, in whatever batches they fall."""
    asked = [(NAMES[i % len(NAMES)], [8 + (i * 7 + j) % 50 for j in range(1 + i % 9)], 3 + i % 6) for i in range(44)]
    found: dict[int, str] = {}

    def ask(i: int) -> None:
        name, prompt, count = asked[i]
        found[i] = complete(client, name, prompt, max_tokens=count, extra_body={"ignore_eos": True}).choices[0].text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, (name, prompt, count) in enumerate(asked):
        whole = TOKENIZER.decode([*prompt, *plain_answer(plain[name], prompt, count)], skip_special_tokens=True)
        assert TOKENIZER.decode(prompt) + found[i] == whole, (name, prompt)


def test_forms_of_prompts(client: OpenAI) -> None:
    tokens = TOKENIZER("w1 w2 w3")["input_ids"]
    alone = complete(client, "loreft").choices[0].text
    assert alone.startswith(" w")
    assert complete(client, "loreft", tokens).choices[0].text == alone
    several = complete(client, "loreft", ["w1 w2 w3", "w9", "w1 w2 w3"])
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert several.choices[0].text == several.choices[2].text == alone != several.choices[1].text
    assert several.usage.prompt_tokens == 7
    nested = complete(client, "loreft", [tokens, tokens[:1]])
    assert nested.choices[0].text == alone and len(nested.choices) == 2


def test_parts_and_developer_turns_are_text(client: OpenAI) -> None:
    system = [{"role": "system", "content": "w7"}, *ASK]
    developer = [{"role": "developer", "content": [{"type": "text", "text": "w7"}]}, *ASK]
    assert chat(client, messages=developer).choices[0] == chat(client, messages=system).choices[0]
    assert chat(client, messages=system).usage.prompt_tokens == chat(client).usage.prompt_tokens + 2


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [BASE, "loreft", "direft-all"])
def test_a_chat_stream_says_the_same(client: OpenAI, name: str) -> None:
    options = {"n": 2, "seed": 5, "temperature": 1.2, "max_tokens": 12, "logprobs": True, "top_logprobs": 2}
    whole = chat(client, name, **options)
    chunks = list(chat(client, name, stream=True, stream_options={"include_usage": True}, **options))
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    for index in range(2):
        parts = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == index]
        assert parts[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in parts) == whole.choices[index].message.content
        logprobs = [entry for part in parts if part.logprobs for entry in part.logprobs.content]
        assert logprobs == whole.choices[index].logprobs.content
        assert [part.finish_reason for part in parts if part.finish_reason] == [whole.choices[index].finish_reason]


def test_a_completion_stream_says_the_same(client: OpenAI) -> None:
    options: dict[str, Any] = {"prompt": ["w1 w2", "w5"], "logprobs": 1, "stop": ["w4", "5 w"], "max_tokens": 20}
    whole = complete(client, "loreft", **options)
    chunks = list(complete(client, "loreft", stream=True, **options))
    for index in range(2):
        parts = [c.choices[0] for c in chunks if c.choices[0].index == index]
        assert "".join(part.text for part in parts) == whole.choices[index].text
        for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [item for part in parts for item in getattr(part.logprobs, key)]
            assert joined == getattr(whole.choices[index].logprobs, key), key


def test_a_stream_comes_token_by_token(running: Running, client: OpenAI) -> None:
    running.brake.hold()
    seen: list[str] = []
    streams: list[Any] = []

    def read() -> None:
        stream = iter(chat(client, "loreft", stream=True, max_tokens=20))
        streams.append(stream)
        seen.append(next(stream).choices[0].delta.content)
        seen.append(next(stream).choices[0].delta.content)

    reader = threading.Thread(target=read)
    reader.start()
    running.brake.wait_until_held()
    for _ in range(3):
        running.brake.step()
    reader.join(30)
    # text is here while the model is held: the rest is not made yet
    assert seen[0] == "" and seen[1].startswith("w")
    running.brake.release()
    assert "".join([*seen, *(chunk.choices[0].delta.content or "" for chunk in streams[0])]) == (
        chat(client, "loreft", max_tokens=20).choices[0].message.content
    )


# --- options ----------------------------------------------------------------------------------------------------------


def test_stop_strings(client: OpenAI) -> None:
    text = chat(client, "loreft", max_tokens=20).choices[0].message.content
    words = text.split(" ")
    for stop in (words[3], f"{words[2]} {words[3]}", f"{words[2][-1]} {words[3][:2]}", [" never ", words[3]]):
        reply = chat(client, "loreft", max_tokens=20, stop=stop)
        wanted = min(text.index(one) for one in ([stop] if isinstance(stop, str) else stop) if one in text)
        assert reply.choices[0].message.content == text[:wanted]
        assert reply.choices[0].finish_reason == "stop"
        streamed = chat(client, "loreft", max_tokens=20, stop=stop, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == text[:wanted]


def test_the_end_token_ends_and_is_not_shown(client: OpenAI, plain: dict[str | None, Any]) -> None:
    prompt = TOKENIZER("w1 w2 w3")["input_ids"]
    tokens = plain_answer(plain["loreft"], prompt, 12)
    options = {"max_tokens": 12, "extra_body": {"stop_token_ids": [tokens[4]], "ignore_eos": True}}
    reply = complete(client, "loreft", prompt, **options)
    cut = tokens.index(tokens[4])
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens == cut + 1
    whole = TOKENIZER.decode([*prompt, *tokens[:cut]], skip_special_tokens=True)
    assert TOKENIZER.decode(prompt) + reply.choices[0].text == whole


def test_n_and_seeds(client: OpenAI) -> None:
    options = {"temperature": 1.5, "n": 3, "max_tokens": 12}

    def texts(**more: Any) -> list[str]:
        return [choice.message.content for choice in chat(client, "loreft", **{**options, **more}).choices]

    first = texts(seed=3)
    assert len(set(first)) == 3
    assert texts(seed=3) == first
    assert texts(seed=4) != first
    assert texts(seed=3, n=1) == first[:1]
    assert texts() != texts()
    assert len(set(texts(temperature=0))) == 1
    assert chat(client, "loreft", n=3).usage.prompt_tokens == chat(client, "loreft").usage.prompt_tokens


def test_logprobs_of_a_chat(client: OpenAI, plain: dict[str | None, Any]) -> None:
    content = chat(client, "loreft", logprobs=True, top_logprobs=3, max_tokens=5).choices[0].logprobs.content
    prompt = encode_prompt({"messages": ASK}, TOKENIZER)
    tokens = plain_answer(plain["loreft"], prompt, 5)
    with torch.no_grad():
        logits = plain["loreft"](
            input_ids=torch.tensor([[*prompt, *tokens]]), prompt_length=torch.tensor([len(prompt)])
        ).logits[0]
    wanted = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
    for entry, token, values in zip(content, tokens, wanted, strict=True):
        assert entry.token == TOKENIZER.decode([token])
        assert bytes(entry.bytes).decode() == entry.token
        # one forward call in float32, another with a cache
        assert math.isclose(entry.logprob, float(values[token]), abs_tol=1e-4)
        assert [top.token for top in entry.top_logprobs] == [TOKENIZER.decode([i]) for i in values.topk(3).indices]
    assert chat(client, "loreft", logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert chat(client, "loreft").choices[0].logprobs is None


def test_logprobs_of_a_completion(client: OpenAI) -> None:
    choice = complete(client, "loreft", logprobs=2, max_tokens=4, logit_bias={"40": 100}).choices[0]
    found = choice.logprobs
    assert found.tokens == ["w33"] * 4
    # before the bias: the chosen token is not among the most probable
    assert all(len(top) == 3 and "w33" in top for top in found.top_logprobs)
    assert all(value < max(top.values()) for value, top in zip(found.token_logprobs, found.top_logprobs, strict=True))
    assert found.text_offset == [0, 3, 6, 9]


def test_sampling_options_have_an_effect(client: OpenAI) -> None:
    def text(**options: Any) -> str:
        return chat(client, "loreft", max_tokens=16, **options).choices[0].message.content

    greedy = text()
    hot: dict[str, Any] = {"temperature": 2.0, "seed": 1}
    assert text(**hot) != greedy
    assert text(**hot, top_p=1e-6) == text(**hot, extra_body={"top_k": 1}) == greedy
    assert text(**hot, extra_body={"min_p": 1.0}) == greedy
    assert text(**hot, extra_body={"top_k": -1}) == text(**hot)
    assert text(frequency_penalty=2.0) != greedy
    words = text(presence_penalty=2.0, extra_body={"repetition_penalty": 100.0}).split(" ")
    assert len(set(words)) == len(words)
    assert text(logit_bias={"40": 100}) == " ".join(["w33"] * 16)


def test_parameters_that_ask_for_nothing_may_be_there(client: OpenAI) -> None:
    reply = chat(client, tools=[], response_format={"type": "text"}, store=False, user="me", metadata={"a": "b"})
    assert reply.choices[0].message.content == chat(client).choices[0].message.content


# --- models and errors ------------------------------------------------------------------------------------------------


def test_models(client: OpenAI, base: Path, adapters: dict[str, Path]) -> None:
    found = {model.id: model.model_dump() for model in client.models.list()}
    assert list(found) == [BASE, *adapters]
    assert found[BASE]["root"] == str(base) and found[BASE]["parent"] is None
    assert all(found[name]["root"] == str(path) and found[name]["parent"] == BASE for name, path in adapters.items())
    assert client.models.retrieve("loreft").model_dump() == found["loreft"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such")


def test_an_unknown_model(client: OpenAI) -> None:
    for ask in (chat, complete):
        for stream in (False, True):
            with pytest.raises(openai.NotFoundError) as error:
                ask(client, "gpt-5", stream=stream)
            assert error.value.code == "model_not_found" and error.value.param == "model"
            assert "'gpt-5' does not exist" in str(error.value)


BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"extra_body": {"guided_json": {}, "mirostat": 2}}, "guided_json, mirostat"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 100_000}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**9}, "maximum context length"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 17}, "16"),
    ({"top_logprobs": 2}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logit_bias": {"10000": 1}}, "logit_bias"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"stream_options": {"include_usage": True}}, "stream"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "name"),
    ({"messages": [{"role": "user", "content": None}]}, "content"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}]}, "tool_calls"),
    ({"messages": [*ASK, {"role": "assistant", "tool_calls": [{"id": "1"}]}, *ASK]}, "a call is an object"),
    ({"messages": [*ASK, {"role": "assistant", "content": "w1"}]}, "assistant"),
    ({"messages": [{"role": "user", "content": "w1 " * 3000}]}, "maximum context length"),
]


@pytest.mark.parametrize(("options", "part"), BAD_CHATS, ids=[part for _, part in BAD_CHATS])
def test_bad_chats(client: OpenAI, options: dict[str, Any], part: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        chat(client, **options)
    assert part in str(error.value)
    assert error.value.type == "invalid_request_error"


@pytest.mark.parametrize("prompt", ["", " ", [], [[]], [1000], [-1], ["w1", 3], "w1 " * 3000])
def test_bad_prompts(client: OpenAI, prompt: Any) -> None:
    with pytest.raises(openai.BadRequestError):
        complete(client, prompt=prompt)
    # one bad prompt among good ones: none is answered
    with pytest.raises(openai.BadRequestError):
        complete(client, prompt=["w1"], extra_body={"echo": True})


def test_the_context_may_be_filled_to_the_last_token(serve: Serve) -> None:
    with serve(max_model_len=20) as small:
        client = small.client()
        prompt = [8] * 12
        reply = complete(client, prompt=prompt, max_tokens=8, extra_body={"ignore_eos": True})
        assert reply.usage.total_tokens == 20
        with pytest.raises(openai.BadRequestError, match="12 in the prompt and 9 in the answer") as error:
            complete(client, prompt=prompt, max_tokens=9)
        assert error.value.code == "context_length_exceeded"
        # a chat without a limit has the rest
        reply = small.client().chat.completions.create(
            model=BASE, messages=ASK, temperature=0, extra_body={"ignore_eos": True}
        )
        assert reply.usage.total_tokens == 20 and reply.choices[0].finish_reason == "length"
        with pytest.raises(openai.BadRequestError):
            complete(client, prompt=[8] * 20, max_tokens=1)


def test_a_server_of_the_base_alone(serve: Serve, plain: dict[str | None, Any]) -> None:
    with serve() as alone:
        prompt = encode_prompt({"messages": ASK}, TOKENIZER)
        assert chat(alone.client()).choices[0].message.content == text_of(plain_answer(plain[None], prompt, 8))
        assert [model.id for model in alone.client().models.list()] == [BASE]


def test_the_strength_of_an_adapter(client: OpenAI) -> None:
    """0 is the base model's answer, 1 the adapter's, whatever is in the same batch."""
    name = NAMES[1]

    def ask(model: str = name, **body: Any) -> list[float]:
        options = {"max_tokens": 1, "logprobs": 5, "extra_body": body}
        return list(complete(client, model, list(range(5, 25)), **options).choices[0].logprobs.top_logprobs[0].values())

    base, own = pytest.approx(ask(BASE), abs=1e-4), pytest.approx(ask(), abs=1e-4)
    assert ask(BASE) != own
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda strength: ask(reft_strength=strength), [0, 1, 2.5, 0, -1, 2.5]))
    assert found[0] == found[3] == base and found[1] == own
    assert found[2] == pytest.approx(found[5], abs=1e-4)
    for other in (found[2], found[4]):
        assert other != own and other != base
    for wrong in (11, -10.5, "much"):
        with pytest.raises(openai.BadRequestError, match="reft_strength"):
            ask(reft_strength=wrong)
    with pytest.raises(openai.BadRequestError, match="is the base model"):
        ask(BASE, reft_strength=0.5)
