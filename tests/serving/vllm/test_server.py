"""`reftune serve` on vLLM, asked by the official client: names, streams, errors, adapters that come and go."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoModelForCausalLM

from reftune.data import encode_marked
from reftune.serving import read_adapter
from reftune.serving.embedded.sites import ModelSites
from reftune.serving.plans import ranges_of
from tests.serving.embedded.conftest import serving
from tests.serving.vllm.engines import prepare
from tests.serving.vllm.servers import BASE, loading_from, served, text_world
from tests.serving.vllm.worlds import NEW, World, add_loras, mixed_requests
from tests.training.text_models import word_tokenizer

pytestmark = pytest.mark.vllm

NAMES = 12
LORA = "lora"
QUESTION = [{"role": "user", "content": "w5 w9 w12 w3"}]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    prepare()
    found = text_world(tmp_path_factory.mktemp("served"))
    add_loras(found, [LORA])
    return found


@pytest.fixture(scope="module")
def names(world: World) -> list[str]:
    return [*world.names[:NAMES], "groups"]


@pytest.fixture(scope="module")
def url(world: World, names: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    lora = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"{LORA}={world.path(LORA)}")
    more = (*loading_from(world.folder), "--max-num-batched-tokens", "32", *lora)
    with served(world, names, log, *more) as found:
        yield found


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def post(url: str, route: str, **body: Any) -> Any:
    import httpx

    return httpx.post(f"{url}/v1/{route}", json=body, timeout=60)


def told(url: str) -> list[Any]:
    import httpx

    return httpx.get(f"{url}/v1/reft_adapters").json()["data"]


def greedy(client: Any, model: str, prompt: tuple[int, ...], **more: Any) -> Any:
    return client.completions.create(
        model=model,
        prompt=list(prompt),
        max_tokens=NEW,
        temperature=0,
        extra_body={"ignore_eos": True, "return_token_ids": True, **more},
    )


def test_mixed_requests_at_once(world: World, names: list[str], client: Any) -> None:
    requests = [
        (tuple(t % 40 + 4 for t in prompt), name) for prompt, name in mixed_requests([*names, LORA], count=60, seed=6)
    ]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda r: greedy(client, r[1] or BASE, r[0]).choices[0].token_ids, requests))
    assert [r for r, a, b in zip(requests, found, world.answers(requests), strict=True) if a != b] == []


def test_models_are_listed_with_their_parent(names: list[str], client: Any) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert {BASE, LORA, *names} <= set(listed)
    assert listed[names[0]].parent == listed[LORA].parent == BASE and listed[BASE].parent is None


def test_adapters_are_told_as_the_server_on_transformers_tells_them(world: World, names: list[str], url: str) -> None:
    sites = ModelSites(AutoModelForCausalLM.from_pretrained(world.base))
    cards = {name: sites.prepare(read_adapter(world.path(name)), None).card.as_dict() for name in names}
    wanted = [{"id": name, **json.loads(json.dumps(card))} for name, card in cards.items()]
    assert [one for one in told(url) if one["id"] in names] == wanted
    assert wanted[-1]["layers"] == [[1], [2, 3]] and LORA not in [one["id"] for one in told(url)]


def test_a_lora_keeps_its_name(world: World, names: list[str], url: str) -> None:
    taken = post(url, "load_reft_adapter", reft_name=LORA, reft_path=world.path(names[0]), load_inplace=True)
    assert taken.status_code == 400 and "LoRA" in taken.text
    assert post(url, "unload_reft_adapter", reft_name=LORA).status_code == 404
    mistaken = post(url, "load_reft_adapter", reft_name="other", reft_path=world.path(LORA))
    assert mistaken.status_code == 400 and "'LORA'" in mistaken.text


def test_chat_and_its_stream(names: list[str], client: Any) -> None:
    asked = {"model": names[0], "messages": QUESTION, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    assert whole.model == names[0] and whole.usage.completion_tokens <= 12
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    base = client.chat.completions.create(**{**asked, "model": BASE})
    assert base.choices[0].message.content != text


def test_stops_seeds_several_answers_and_probabilities(names: list[str], client: Any) -> None:
    asked: dict[str, Any] = {"model": names[0], "messages": QUESTION, "max_tokens": 12}
    words = client.chat.completions.create(**asked, temperature=0).choices[0].message.content.split()
    stop = next(word for word in words[2:] if word not in words[:2])
    stopped = client.chat.completions.create(**asked, temperature=0, stop=[stop]).choices[0]
    assert stopped.finish_reason == "stop" and stop not in stopped.message.content.split()
    seeded = [client.chat.completions.create(**asked, n=3, seed=5, temperature=1.0) for _ in range(2)]
    texts = [[choice.message.content for choice in answer.choices] for answer in seeded]
    assert texts[0] == texts[1] and len(texts[0]) == 3
    likely = client.chat.completions.create(**asked, temperature=0, logprobs=True, top_logprobs=2).choices[0].logprobs
    assert all(entry.top_logprobs[0].logprob == entry.logprob for entry in likely.content)


def test_errors_and_the_server_lives_on(world: World, names: list[str], url: str, client: Any) -> None:
    import openai

    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=QUESTION)
    with pytest.raises(openai.BadRequestError):
        greedy(client, names[0], (5,) * 400)
    # what only the server may say of a request
    with pytest.raises(openai.BadRequestError, match="_reftune"):
        greedy(client, names[0], (5, 6), vllm_xargs={"_reftune": json.dumps({"digest": "x", "sites": []})})
    with pytest.raises(openai.BadRequestError, match="beam"):
        greedy(client, names[0], (5, 6), use_beam_search=True, n=2)
    prompt = tuple(range(5, 30))
    assert greedy(client, names[1], prompt).choices[0].token_ids == world.answers([(prompt, names[1])])[0]


def test_adapters_come_and_go(world: World, url: str, client: Any) -> None:
    import openai

    one, other = world.names[NAMES], world.names[NAMES + 1]
    prompt = tuple(range(4, 44))
    folder = world.folder / "moving"
    shutil.copytree(world.path(one), folder)
    assert post(url, "load_reft_adapter", reft_name="moving", reft_path=str(folder)).status_code == 200
    assert greedy(client, "moving", prompt).choices[0].token_ids == world.answers([(prompt, one)])[0]
    again = post(url, "load_reft_adapter", reft_name="moving", reft_path=str(folder))
    assert again.status_code == 400 and "load_inplace" in again.text
    for file in Path(world.path(other)).iterdir():
        shutil.copy(file, folder)
    # until it is loaded anew, it is what it was
    assert greedy(client, "moving", prompt).choices[0].token_ids == world.answers([(prompt, one)])[0]
    assert post(url, "load_reft_adapter", reft_name="moving", reft_path=str(folder), load_inplace=True).is_success
    assert greedy(client, "moving", prompt).choices[0].token_ids == world.answers([(prompt, other)])[0]
    assert post(url, "unload_reft_adapter", reft_name="moving").status_code == 200
    with pytest.raises(openai.NotFoundError):
        greedy(client, "moving", prompt)
    assert post(url, "unload_reft_adapter", reft_name="moving").status_code == 404


def test_bad_adapters_are_refused(world: World, url: str, client: Any, tmp_path: Path) -> None:
    def refused(path: Path, name: str = "bad") -> str:
        answer = post(url, "load_reft_adapter", reft_name=name, reft_path=str(path))
        assert answer.status_code == 400
        return answer.json()["error"]["message"]

    good = Path(world.path(world.names[0]))
    assert "not in a folder" in refused(tmp_path)
    link = world.folder / "link"
    link.symlink_to(tmp_path)
    assert "not in a folder" in refused(link)
    broken = world.folder / "broken"
    shutil.copytree(good, broken)
    (broken / "adapter_model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
    assert "tensors" in refused(broken)
    pickled = world.folder / "pickled"
    shutil.copytree(good, pickled)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    assert "pickle" in refused(pickled)
    for name in (BASE, "text", ""):
        refused(good, name)
    assert client.models.list().data


def test_adapters_are_known_to_every_server_process(world: World, tmp_path: Path) -> None:
    from openai import OpenAI

    one, other = world.names[:2]
    more = ("--api-server-count", "2", *loading_from(world.folder))
    with served(world, [one], tmp_path / "log", *more) as url:
        prompt = tuple(range(4, 34))
        wanted = world.answers([(prompt, one), (prompt, other)])

        def asked(name: str) -> list[int]:
            # a new connection each time, which either process may take
            client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            return greedy(client, name, prompt).choices[0].token_ids

        assert post(url, "load_reft_adapter", reft_name="late", reft_path=world.path(other)).status_code == 200
        assert [asked(one) for _ in range(8)] == [wanted[0]] * 8
        assert [asked("late") for _ in range(8)] == [wanted[1]] * 8
        layers = [{one["id"]: one["layers"] for one in told(url)} for _ in range(8)]
        assert layers == [{one: [[0, 1, 2, 3]], "late": [[1]]}] * 8
        assert post(url, "unload_reft_adapter", reft_name="late").status_code == 200
        import openai

        for _ in range(8):
            with pytest.raises(openai.NotFoundError):
                asked("late")


MARKED_TEXT = "w5 <<reft>>w9 w12<</reft>> w3 w7"


def test_marked_prompts(world: World, url: str, client: Any) -> None:
    """By markers in chats and texts, and by the field of the request: the tokens that training would have edited."""
    import openai

    name, tokenizer = world.marked[0], word_tokenizer()
    assert post(url, "load_reft_adapter", reft_name=name, reft_path=world.path(name)).is_success
    asked: dict[str, Any] = {"model": name, "max_tokens": NEW, "temperature": 0}
    more = {"ignore_eos": True, "return_token_ids": True}
    ids, marks = encode_marked(MARKED_TEXT, tokenizer)
    plain = MARKED_TEXT.replace("<<reft>>", "").replace("<</reft>>", "")
    ranges = ranges_of(marks)
    wanted = world.answer(tuple(ids), name, ranges)
    assert len({tuple(wanted), tuple(world.answer(tuple(ids), name))}) == 2, "marks change nothing"
    for prompt, spans in (
        (MARKED_TEXT, None),
        (plain, [[3, 9]]),
        (ids, [list(span) for span in ranges]),
        ([ids], [list(span) for span in ranges]),
    ):
        extra = {**more, **({} if spans is None else {"reft_spans": spans})}
        found = client.completions.create(**asked, prompt=prompt, extra_body=extra).choices[0].token_ids
        assert found == wanted, (prompt, spans)
    both = client.completions.create(**asked, prompt=[MARKED_TEXT, plain], extra_body=more).choices
    assert [one.token_ids for one in both] == [wanted, world.answer(tuple(ids), name)]
    chat = [{"role": "system", "content": "w1"}, {"role": "user", "content": MARKED_TEXT}]
    put, put_marks = encode_marked({"messages": chat}, tokenizer)
    found = client.chat.completions.create(**asked, messages=chat, extra_body=more).choices[0].token_ids
    assert found == world.answer(tuple(put), name, ranges_of(put_marks))
    bodies: list[dict[str, Any]] = [{"prompt": MARKED_TEXT}, {"messages": chat}]
    for body in bodies:
        told_of = httpx.post(f"{url}/tokenize", json={"model": name, **body}).json()
        assert told_of["spans"] == encode_marked(body.get("prompt", body), tokenizer)[1]
    # the base model reads the same text, and nothing of it is edited
    base = client.completions.create(**{**asked, "model": BASE}, prompt=MARKED_TEXT, extra_body=more).choices[0]
    assert base.token_ids == world.answer(tuple(ids), None)
    for bad, says in (
        ({"prompt": MARKED_TEXT, "extra_body": {"reft_spans": [[0, 2]]}}, "leave one of the two out"),
        ({"prompt": plain, "extra_body": {"reft_spans": [[9, 3]]}}, "characters of the prompt"),
        ({"prompt": [plain, plain], "extra_body": {"reft_spans": [[0, 2]]}}, "are of one prompt"),
        ({"prompt": plain, "model": BASE, "extra_body": {"reft_spans": [[0, 2]]}}, "no ReFT adapter"),
        ({"prompt": MARKED_TEXT, "extra_body": {"truncate_prompt_tokens": 2}}, "is cut"),
        ({"prompt": MARKED_TEXT, "extra_body": {"add_special_tokens": False}}, "whole prompts only"),
    ):
        with pytest.raises(openai.BadRequestError, match=says):
            client.completions.create(**{**asked, **bad})
    for more_body in ({"reft_spans": [[0, 2]]}, {"add_generation_prompt": False}):
        with pytest.raises(openai.BadRequestError, match=r"in messages put|other than the one"):
            client.chat.completions.create(**asked, messages=chat, extra_body=more_body)
    assert post(url, "unload_reft_adapter", reft_name=name).is_success


STYLES: dict[str, Any] = {
    "style-none": None,
    "style-system": {"style": "messages", "system": "w7 w8"},
    "style-instruction": {"style": "instruction", "system": None},
    "style-prompt": {"style": "prompt"},
}


def test_both_servers_put_prompts_as_training_did(world: World, url: str, client: Any) -> None:
    """The same chat, the same adapter: the same tokens, in whichever form they are asked for."""
    import openai

    folders = {name: Path(shutil.copytree(world.path(world.names[0]), world.folder / name)) for name in STYLES}
    for name, style in STYLES.items():
        if style is not None:
            (folders[name] / "reftune.json").write_text(json.dumps(style))
        assert post(url, "load_reft_adapter", reft_name=name, reft_path=str(folders[name])).is_success
    with serving(Path(world.base), folders, served_model_name=BASE) as running:
        both = [(url, client), (running.url, running.client())]
        asked = {"messages": QUESTION, "max_tokens": 6, "temperature": 0, "extra_body": {"ignore_eos": True}}

        def chat(name: str) -> list[Any]:
            whole = [each.chat.completions.create(model=name, **asked) for _, each in both]
            # vLLM's text begins with a space where the first word does
            found = [(one.usage.prompt_tokens, one.choices[0].message.content.strip()) for one in whole]
            more: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
            chunks = list(client.chat.completions.create(model=name, **asked, **more))
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            return [*found, (chunks[-1].usage.prompt_tokens, text.strip())]

        names = [BASE, *STYLES]
        # all at once, so that they share batches
        with ThreadPoolExecutor(len(names)) as pool:
            found = dict(zip(names, pool.map(chat, names), strict=True))
        assert all(one == two == stream for one, two, stream in found.values()), found
        counts = {name: seen[0][0] for name, seen in found.items()}
        assert counts["style-none"] == counts[BASE] and len({counts[name] for name in STYLES}) == 4
        for route, body in (("tokenize", {"messages": QUESTION}), ("tokenize", {"prompt": "w5 w9"})):
            for name in names:
                tokens = [httpx.post(f"{at}/{route}", json={"model": name, **body}).json()["tokens"] for at, _ in both]
                assert tokens[0] == tokens[1], (name, body)
        two = [*QUESTION, {"role": "assistant", "content": "w1"}, *QUESTION]
        for _, each in both:
            with pytest.raises(openai.BadRequestError, match="has no turns"):
                each.chat.completions.create(model="style-prompt", messages=two)
        told_of = {one["id"]: one["style"] for one in told(url)}
        assert told_of == told_of | {one["id"]: one["style"] for one in told(running.url)}
        assert told_of["style-system"] == STYLES["style-system"]
    (folders["style-none"] / "reftune.json").write_text('{"style": "messages", "system": 5}')
    for name in STYLES:
        assert post(url, "unload_reft_adapter", reft_name=name).is_success
    refused = post(url, "load_reft_adapter", reft_name="style", reft_path=str(folders["style-none"]))
    assert refused.status_code == 400 and "system=5" in refused.text


def test_words_of_a_prompt(world: World) -> None:
    """The tokenizer of these tests knows the words that they ask with."""
    assert word_tokenizer().unk_token_id not in word_tokenizer()(QUESTION[0]["content"])["input_ids"]
