"""vLLM with the plug-in gives the tokens of transformers with reftune, in float32, whatever the engine does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.vllm.engines import ask, cached_tokens, close, engine, named, prepare, wrong
from tests.serving.vllm.worlds import NEW, Ranges, World, add_loras, make_world, mixed_requests

pytestmark = pytest.mark.vllm
prepare()

REQUESTS = 210
LORAS = ("lora-one", "lora-two", "lora-three")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    found = make_world(tmp_path_factory.mktemp("world"))
    assert len(found.names) >= 32
    add_loras(found, LORAS)
    return found


def next_turns(
    world: World, requests: list[tuple[tuple[int, ...], str | None]]
) -> list[tuple[tuple[int, ...], str | None]]:
    """The same conversations, one turn on: prompt, answer and a few new tokens."""
    answers = world.answers(requests)
    return [((*prompt, *answer, 7, 8, 9), name) for (prompt, name), answer in zip(requests, answers, strict=True)]


def test_adapters_change_the_answers(world: World) -> None:
    prompt = tuple(range(10, 60))
    base, *others = world.answers([(prompt, None), *((prompt, name) for name in world.names)])
    # an edit of the last layer alone, of tokens before the last, changes nothing
    assert sum(other != base for other in others) >= 0.7 * len(others)
    assert len({tuple(answer) for answer in [base, *world.answers([(prompt, name) for name in LORAS])]}) == 4


@pytest.fixture(scope="module")
def eager(world: World) -> Iterator[Any]:
    # fewer at once than there are: requests for LoRAs wait for each other, those for ReFT go by
    llm = engine(world, enable_lora=True, max_loras=2, max_cpu_loras=len(LORAS), max_lora_rank=8)
    yield llm
    close(llm)


def test_mixed_requests(world: World, eager: Any) -> None:
    requests = mixed_requests(world.names, count=REQUESTS)
    assert wrong(eager, world, requests) == []
    # again, with the cache of prefixes full of what others left
    assert wrong(eager, world, mixed_requests(world.names, count=REQUESTS // 3, seed=1)) == []


def test_strengths(world: World, eager: Any) -> None:
    """The same prompt with the same adapter, more and less of it: the cache of prefixes takes none for another."""
    import torch
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.inputs import TokensPrompt

    prompt, asked = list(range(30, 78)), []
    for name in world.names[:12]:
        asked += [(name, strength) for strength in (1.0, 0.5, 0.0, -1.0, 3.0)]
    outputs = eager.generate(
        [TokensPrompt(prompt_token_ids=prompt)] * len(asked),
        [
            SamplingParams(
                temperature=0, max_tokens=4, ignore_eos=True, detokenize=False, extra_args={"reft_strength": strength}
            )
            for _, strength in asked
        ],
        lora_request=[named(world, name) for name, _ in asked],
        use_tqdm=False,
    )
    different = set()
    for (name, strength), output in zip(asked, outputs, strict=True):
        with torch.inference_mode():
            wanted = world.model.generate(
                input_ids=torch.tensor([prompt]),
                adapter_names=[name],
                strength=strength,
                max_new_tokens=4,
                min_new_tokens=4,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )[0, len(prompt) :].tolist()
        assert list(output.outputs[0].token_ids) == wanted, (name, strength)
        different.add((name, tuple(wanted)))
    assert len(different) > 24, "strengths change nothing"
    for value in (11, "much", True):
        params = SamplingParams(max_tokens=1, extra_args={"reft_strength": value})
        with pytest.raises(VLLMValidationError, match="reft_strength"):
            eager.generate(
                TokensPrompt(prompt_token_ids=prompt), params, lora_request=named(world, world.names[0]), use_tqdm=False
            )


def test_conversations_go_on(world: World, eager: Any) -> None:
    first = mixed_requests(world.names, count=60, seed=2)
    assert wrong(eager, world, first) == []
    assert wrong(eager, world, next_turns(world, first)) == []


def marked_sampling(spans: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False, extra_args={"reft_spans": spans}
    )


def wrong_where_marked(llm: Any, world: World, *, count: int, seed: int) -> list[Any]:
    """The same prompts, each marked in other places, beside others: those that are not answered as marked."""
    import random

    from vllm.inputs import TokensPrompt

    rng = random.Random(3)
    asked: list[tuple[tuple[int, ...], str | None, Ranges]] = []
    for prompt, name in mixed_requests([*world.marked, *world.marked, *world.names[:2]], count=count, seed=seed):
        cuts = sorted(rng.sample(range(len(prompt) + 1), min(4, (len(prompt) + 1) // 2 * 2)))
        spans = tuple(zip(cuts[::2], cuts[1::2], strict=True)) if name in world.marked and rng.random() < 0.9 else ()
        asked.append((prompt, name, spans))
    wanted = [world.answer(*one) for one in asked]
    unmarked = [world.answer(prompt, name) for prompt, name, _ in asked]
    assert sum(a != b for a, b in zip(wanted, unmarked, strict=True)) >= count // 5, "marks change nothing"
    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=list(prompt)) for prompt, _, _ in asked],
        [marked_sampling([list(span) for span in spans] if name else None) for _, name, spans in asked],
        lora_request=[None if name is None else named(world, name) for _, name, _ in asked],
        use_tqdm=False,
    )
    return [a for a, o, w in zip(asked, outputs, wanted, strict=True) if list(o.outputs[0].token_ids) != w]


def test_marked_spans(world: World, eager: Any) -> None:
    """A block that is cached is taken only as marked."""
    from vllm.exceptions import VLLMValidationError
    from vllm.inputs import TokensPrompt

    assert wrong_where_marked(eager, world, count=100, seed=11) == []
    request = named(world, world.marked[0])
    for wrong_spans in ([[2, 9]], [[3, 3]], [[4, 5], [0, 1]], 7, [[0, True]]):
        with pytest.raises(VLLMValidationError, match="reft_spans"):
            eager.generate(
                TokensPrompt(prompt_token_ids=[5] * 8),
                marked_sampling(wrong_spans),
                lora_request=request,
                use_tqdm=False,
            )
    with pytest.raises(VLLMValidationError, match="no ReFT adapter"):
        eager.generate(TokensPrompt(prompt_token_ids=[5] * 8), marked_sampling([[0, 1]]), use_tqdm=False)
    with pytest.raises(VLLMValidationError, match="has markers of spans"):
        eager.generate(
            TokensPrompt(prompt_token_ids=[5, 6], prompt="a <<reft>>b<</reft>>"),
            marked_sampling(None),
            lora_request=request,
            use_tqdm=False,
        )


def test_cached_prefixes_are_used(world: World, eager: Any) -> None:
    prompt = tuple(range(20, 120))
    name = next(name for name in world.names if name.endswith("-l1"))
    assert cached_tokens(eager, world, prompt, None) < 96
    # the last token lies in the fourth block: three are those of the base model
    assert cached_tokens(eager, world, prompt, name) == 96


def test_loras_and_reft_in_one_batch(world: World, eager: Any) -> None:
    names = [name for i, reft in enumerate(world.names) for name in (reft, LORAS[i % len(LORAS)])]
    requests = mixed_requests(names, count=120, seed=6)
    kinds = ["base" if name is None else "lora" if name in LORAS else "reft" for _, name in requests]
    assert min(map(kinds.count, ("base", "lora", "reft"))) >= 20
    assert wrong(eager, world, requests) == []
    # again, with the cache of prefixes full of what others left
    assert wrong(eager, world, mixed_requests(names, count=60, seed=7)) == []


def test_a_lora_shares_no_prefix(world: World, eager: Any) -> None:
    prompt = tuple(range(120, 220))
    last = next(name for name in world.names if name.endswith("-l1"))
    found = {name: cached_tokens(eager, world, prompt, name) for name in (None, LORAS[0], last, LORAS[1])}
    assert found == {None: 0, LORAS[0]: 0, last: 96, LORAS[1]: 0}
    assert cached_tokens(eager, world, prompt, LORAS[0]) == 96


def test_preempted_requests(world: World) -> None:
    llm = engine(world, num_gpu_blocks_override=14, max_num_seqs=8, max_num_batched_tokens=64)
    try:
        requests = [
            (prompt, name) for prompt, name in mixed_requests(world.names, count=80, seed=3) if len(prompt) > 30
        ]
        found, wanted = ask(llm, world, requests, 40), world.answers(requests, 40)
        assert [r for r, a, b in zip(requests, found, wanted, strict=True) if a != b] == []
        preempted = [m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"]
        assert sum(preempted) > 0
    finally:
        close(llm)


def test_compiled(world: World) -> None:
    llm = engine(world, enforce_eager=False)
    try:
        assert wrong(llm, world, mixed_requests(world.names, count=REQUESTS, seed=4)) == []
    finally:
        close(llm)


def test_without_our_keys_answers_are_wrong(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: prefixes of one adapter are taken for another's."""
    from reftune.serving.vllm import keys

    # the engine's core in this process, where it can be reached
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setattr(keys, "block_key", lambda *args, **more: None)
    llm = engine(world)
    try:
        assert wrong(llm, world, mixed_requests(world.names, count=REQUESTS)) != []
    finally:
        close(llm)


@pytest.mark.parametrize(
    "parallel", [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2, "enforce_eager": False}], ids=["TP", "PP"]
)
def test_several_workers(world: World, parallel: dict[str, Any]) -> None:
    llm = engine(world, **parallel)
    try:
        assert wrong(llm, world, mixed_requests(world.names, count=REQUESTS, seed=5)) == []
        assert wrong_where_marked(llm, world, count=40, seed=12) == []
    finally:
        close(llm)
