"""Adapters loaded, exchanged and unloaded by requests: from allowed folders only, and a bad one harms nobody."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from reftune import encode_prompt
from tests.serving.embedded.conftest import Running, Serve
from tests.serving.folders import BASE, KINDS, adapted, plain_answer, plain_models, save_adapters, text_model
from tests.training.text_models import word_tokenizer

TOKENIZER = word_tokenizer()
PROMPT = [8, 9, 10, 11]


@pytest.fixture
def allowed(adapters: dict[str, Path], tmp_path: Path) -> Path:
    """Copies of adapters in a folder that is allowed."""
    for name, folder in adapters.items():
        shutil.copytree(folder, tmp_path / "allowed" / name)
    return tmp_path / "allowed"


@pytest.fixture
def loading(serve: Serve, allowed: Path) -> Iterator[Running]:
    with serve(allow_runtime_loading=True, allowed_folders=(allowed,), max_adapters=4) as running:
        yield running


@pytest.fixture(scope="module")
def plain(adapters: dict[str, Path]) -> dict[str | None, Any]:
    return plain_models(adapters)


def post(running: Running, verb: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{running.url}/v1/{verb}_reft_adapter", json=body, timeout=30)


def load(running: Running, name: str, path: Path | str, **more: Any) -> httpx.Response:
    return post(running, "load", reft_name=name, reft_path=str(path), **more)


def ask(running: Running, model: str) -> list[str]:
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "logprobs": 0, "extra_body": {"ignore_eos": True}}
    return running.client().completions.create(model=model, prompt=PROMPT, **options).choices[0].logprobs.tokens


def wanted(model: Any) -> list[str]:
    return [TOKENIZER.decode([token]) for token in plain_answer(model, PROMPT, 6)]


def names(running: Running) -> list[str]:
    return [model.id for model in running.client().models.list()]


def test_load_exchange_unload(loading: Running, allowed: Path, plain: dict[str | None, Any]) -> None:
    assert names(loading) == [BASE]
    done = load(loading, "my/a.b", allowed / "loreft")
    assert done.status_code == 200 and done.json() == {"status": "ok", "name": "my/a.b"}
    assert names(loading) == [BASE, "my/a.b"]
    assert ask(loading, "my/a.b") == wanted(plain["loreft"]) != wanted(plain[None])
    again = load(loading, "my/a.b", allowed / "steer")
    assert again.status_code == 400 and "load_inplace" in again.json()["error"]["message"]
    assert ask(loading, "my/a.b") == wanted(plain["loreft"])
    assert load(loading, "my/a.b", allowed / "steer", load_inplace=True).status_code == 200
    assert ask(loading, "my/a.b") == wanted(plain["steer"])
    assert loading.client().models.retrieve("my/a.b").root == str(allowed / "steer")  # type: ignore[attr-defined]
    gone = post(loading, "unload", reft_name="my/a.b")
    assert gone.status_code == 200 and gone.json()["status"] == "ok"
    assert names(loading) == [BASE]
    missing = post(loading, "unload", reft_name="my/a.b")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


def test_without_the_flag_nothing_is_loaded(serve: Serve, allowed: Path) -> None:
    with serve(allowed_folders=(allowed,)) as running:
        for response in (load(running, "a", allowed / "loreft"), post(running, "unload", reft_name="a")):
            assert response.status_code == 404
        assert names(running) == [BASE]


def test_only_from_allowed_folders(loading: Running, allowed: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    outside = Path(shutil.copytree(adapters["loreft"], tmp_path / "outside"))
    (allowed / "link").symlink_to(outside)
    (allowed / "mixed").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (allowed / "mixed" / name).symlink_to(outside / name)
    for path in (outside, allowed / "link", allowed / "mixed", allowed / ".." / "outside", "/", "\0", "nobody/name"):
        response = load(loading, "a", path)
        assert response.status_code == 400, path
        assert "not in a folder" in response.json()["error"]["message"]
    assert names(loading) == [BASE]


def spoilt(allowed: Path) -> dict[str, str]:
    """Folder → what its refusal says."""
    for name in ("corrupt", "pickle", "unknown"):
        shutil.copytree(allowed / "loreft", allowed / name)
    (allowed / "corrupt" / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    (allowed / "pickle" / "adapter_model.safetensors").rename(allowed / "pickle" / "adapter_model.bin")
    config = allowed / "unknown" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "shift": 1}))
    adapted(KINDS["loreft"], seed=1, model=text_model(hidden=64)).save_pretrained(allowed / "wide")
    return {"corrupt": "corrupt", "pickle": "execute code", "unknown": "'shift'", "wide": "width 64", "none": "folder"}


def test_bad_adapters_are_refused_with_the_reason(
    loading: Running, allowed: Path, plain: dict[str | None, Any]
) -> None:
    load(loading, "good", allowed / "loreft")
    for folder, part in spoilt(allowed).items():
        for more in ({}, {"load_inplace": True}):
            response = load(loading, "good" if more else "bad", allowed / folder, **more)
            assert response.status_code == 400 and part in response.json()["error"]["message"], response.text
    for name in (BASE, "", " x", "a\nb", "x" * 300):
        assert load(loading, name, allowed / "steer").status_code == 400
    assert post(loading, "load", reft_name="a").status_code == 400
    assert post(loading, "load", reft_name="a", reft_path="b", lora_int_id=1).status_code == 400
    assert names(loading) == [BASE, "good"]
    assert ask(loading, "good") == wanted(plain["loreft"])
    assert ask(loading, BASE) == wanted(plain[None])


def test_only_so_many(loading: Running, allowed: Path) -> None:
    for number in range(4):
        assert load(loading, f"a{number}", allowed / "loreft").status_code == 200
    full = load(loading, "a4", allowed / "loreft")
    assert full.status_code == 400 and "4 adapters" in full.json()["error"]["message"]
    assert load(loading, "a3", allowed / "steer", load_inplace=True).status_code == 200
    post(loading, "unload", reft_name="a0")
    assert load(loading, "a4", allowed / "loreft").status_code == 200


def test_changed_files_are_other_answers(loading: Running, allowed: Path, tmp_path: Path) -> None:
    """What is loaded stays as it was until it is loaded again."""
    load(loading, "a", allowed / "loreft")
    before = ask(loading, "a")
    new = save_adapters(tmp_path / "new", {"loreft": KINDS["loreft"]}, seed=77)["loreft"]
    shutil.copy(new / "adapter_model.safetensors", allowed / "loreft")
    assert ask(loading, "a") == before
    load(loading, "a", allowed / "loreft", load_inplace=True)
    assert ask(loading, "a") == wanted(adapted(KINDS["loreft"], seed=77)) != before


def test_unloading_in_the_midst_of_a_request(loading: Running, allowed: Path, plain: dict[str | None, Any]) -> None:
    load(loading, "a", allowed / "loreft")
    loading.brake.hold()
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.append(ask(loading, "a")))
    asking.start()
    loading.brake.wait_until_held()
    unloading = threading.Thread(target=lambda: found.append(post(loading, "unload", reft_name="a")))
    unloading.start()
    loading.brake.release()
    asking.join(30)
    unloading.join(30)
    assert wanted(plain["loreft"]) in found
    assert names(loading) == [BASE]


# --- prompts as in training -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("style", "record"),
    [
        ({"style": "messages", "system": "w7 w8"}, {"messages": [{"role": "system", "content": "w7 w8"}]}),
        ({"style": "instruction"}, {"instruction": "w1 w2"}),
        ({"style": "prompt"}, {"prompt": "w1 w2"}),
    ],
)
def test_chats_are_put_as_the_adapter_was_trained(
    loading: Running, allowed: Path, style: dict[str, str], record: dict[str, Any]
) -> None:
    (allowed / "loreft" / "reftune.json").write_text(json.dumps(style))
    assert load(loading, "a", allowed / "loreft").status_code == 200
    turn = {"role": "user", "content": "w1 w2"}
    if "messages" in record:
        record = {"messages": [*record["messages"], turn]}
    prompt = encode_prompt(record, TOKENIZER)
    client = loading.client()
    options: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "logprobs": True, "extra_body": {"ignore_eos": True}}
    reply = client.chat.completions.create(model="a", messages=[turn], **options)  # type: ignore[list-item]
    assert reply.usage is not None and reply.usage.prompt_tokens == len(prompt)
    tokens = plain_answer(adapted(KINDS["loreft"], seed=0), prompt, 5)
    assert [entry.token for entry in reply.choices[0].logprobs.content] == [TOKENIZER.decode([t]) for t in tokens]  # type: ignore[union-attr]
    own = [{"role": "system", "content": "w9"}, turn]
    if style["style"] == "messages":
        answered = client.chat.completions.create(model="a", messages=own, **options)  # type: ignore[arg-type]
        assert answered.usage is not None and answered.usage.prompt_tokens == len(prompt) - 1
    else:
        body = {"model": "a", "messages": own}
        response = httpx.post(f"{loading.url}/v1/chat/completions", json=body)
        assert response.status_code == 400 and "has no turns" in response.text


def test_a_style_that_cannot_be_read(loading: Running, allowed: Path) -> None:
    for content in ("{", '{"style": "rhyme"}', "[" * 100_000, " " * 100_000):
        (allowed / "loreft" / "reftune.json").write_text(content)
        response = load(loading, "a", allowed / "loreft")
        assert response.status_code == 400 and "reftune.json" in response.json()["error"]["message"]
