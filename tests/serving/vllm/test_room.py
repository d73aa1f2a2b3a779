"""Offline: adapters that requests bring along come and go by themselves, and prompts are put as in training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reftune import encode_prompt
from tests.serving.vllm.engines import ask, close, engine, prepare
from tests.serving.vllm.servers import text_world
from tests.serving.vllm.worlds import NEW, World
from tests.training.text_models import word_tokenizer

pytestmark = pytest.mark.vllm

ROOM = 3
PROMPT = tuple(range(5, 30))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    prepare()
    return text_world(tmp_path_factory.mktemp("room"))


@pytest.fixture(scope="module")
def llm(world: World) -> Iterator[Any]:
    found = engine(world, skip_tokenizer_init=False, additional_config={"reftune": {"max_adapters": ROOM}})
    yield found
    close(found)


def kept(llm: Any) -> int:
    (info,) = llm.llm_engine.engine_core.call_utility("reft_info")
    assert info["missing"] == 0
    return info["adapters"]


def test_the_longest_unused_goes_when_there_is_no_room(world: World, llm: Any) -> None:
    # round and round, so that each is gone when it is asked for again
    for _ in range(2):
        for name in world.names[: 3 * ROOM]:
            assert ask(llm, world, [(PROMPT, name)]) == world.answers([(PROMPT, name)])
            assert kept(llm) <= ROOM
    at_once = [(PROMPT, name) for name in [*world.names[:ROOM], *world.names[:ROOM]]]
    assert ask(llm, world, at_once) == world.answers(at_once)


def test_more_at_once_than_there_is_room_for_is_refused(world: World, llm: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match=f"{ROOM} adapters are in use"):
        ask(llm, world, [(PROMPT, name) for name in world.names[: ROOM + 1]])
    # none of them was left behind
    assert ask(llm, world, [(PROMPT, world.names[ROOM])]) == world.answers([(PROMPT, world.names[ROOM])])


def test_a_rewritten_folder_retires_what_it_held(world: World, llm: Any) -> None:
    """As a loop of reinforcement learning does."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    from reftune.serving.vllm import ReftRequest

    ask(llm, world, [(PROMPT, world.names[0])])
    before, folder = kept(llm), world.folder / "step"
    for name in world.names[1:13]:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(world.path(name), folder)
        (output,) = llm.generate(
            [TokensPrompt(prompt_token_ids=list(PROMPT))],
            SamplingParams(temperature=0, max_tokens=8, ignore_eos=True),
            lora_request=ReftRequest("policy", 1, str(folder)),
            use_tqdm=False,
        )
        assert list(output.outputs[0].token_ids) == world.answers([(PROMPT, name)])[0]
        assert kept(llm) <= min(before + 1, ROOM)


def test_chats_are_put_as_in_training(world: World, llm: Any, tmp_path: Path) -> None:
    from vllm import SamplingParams

    from reftune.serving.vllm import ReftRequest

    styles: dict[str, Any] = {
        "none": None,
        "system": {"style": "messages", "system": "w7 w8"},
        "instruction": {"style": "instruction"},
        "prompt": {"style": "prompt"},
    }
    requests, wanted = [], []
    turn = {"role": "user", "content": "w1 w2"}
    records = [[turn], [{"role": "system", "content": "w7 w8"}, turn]]
    for number, (name, style) in enumerate(styles.items()):
        folder = Path(shutil.copytree(world.path(world.names[0]), tmp_path / name))
        if style is not None:
            (folder / "reftune.json").write_text(json.dumps(style))
        requests.append(ReftRequest(name, number + 1, str(folder)))
        record = {"messages": records[number]} if number < 2 else {name: "w1 w2"}
        wanted.append(encode_prompt(record, word_tokenizer()))
    outputs = llm.chat([[turn]] * 5, SamplingParams(max_tokens=1), lora_request=[*requests, None], use_tqdm=False)
    assert [output.prompt_token_ids for output in outputs] == [*wanted, wanted[0]]
    # markers are taken out, and what they mark is edited
    marked = {"role": "user", "content": "<<reft>>w1<</reft>> w2"}
    ids = [tuple(one) for one in wanted[:1] + wanted[3:]]
    requests = []
    for number, name in enumerate(("none", "prompt")):
        shutil.rmtree(tmp_path / name)
        folder = Path(shutil.copytree(world.path(world.marked[0]), tmp_path / name))
        if styles[name] is not None:
            (folder / "reftune.json").write_text(json.dumps(styles[name]))
        requests.append(ReftRequest(f"marked {name}", 10 + number, str(folder)))
    params = SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True)
    outputs = llm.chat([[marked]] * 2, params, lora_request=requests, use_tqdm=False)
    at = [one.index(word_tokenizer().convert_tokens_to_ids("w1")) for one in ids]
    expected = [world.answer(one, world.marked[0], ((i, i + 1),)) for one, i in zip(ids, at, strict=True)]
    assert [list(output.outputs[0].token_ids) for output in outputs] == expected
    assert expected != [world.answer(one, world.marked[0]) for one in ids]
