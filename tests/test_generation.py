"""`generate_texts`: one answer a prompt, in order, whatever the batches.

Must not know: the command line.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

from reftune import DataError, ReftConfig, ReftuneError
from reftune.generation import generate_texts
from tests.data.conftest import bpe_tokenizer
from tests.training.text_models import CHATS, PAIRS, text_model, word_tokenizer

PROMPTS: list[Any] = [pair["prompt"] for pair in PAIRS]


@pytest.fixture(scope="module")
def model() -> PeftModel:
    torch.manual_seed(3)
    config = ReftConfig(r=2, positions="f1+l1", init="random", task_type="CAUSAL_LM")
    adapted = get_peft_model(text_model(), config)
    assert isinstance(adapted, PeftModel)
    return adapted


def greedy(model: PeftModel, ids: list[int], count: int) -> list[int]:
    """Without generate and without a cache."""
    made: list[int] = []
    for _ in range(count):
        logits = model(torch.tensor([ids + made]), prompt_length=torch.tensor([len(ids)])).logits
        made.append(int(logits[0, -1].argmax()))
    return made


def test_each_answer_is_the_models_own(model: PeftModel) -> None:
    tokenizer = word_tokenizer()
    model.eval()
    with torch.no_grad():
        expected = [
            str(tokenizer.decode(greedy(model, tokenizer(prompt)["input_ids"], 5), skip_special_tokens=True)).strip()
            for prompt in PROMPTS
        ]
    assert len(set(expected)) > 2
    for size in (1, 3, 8):
        assert generate_texts(model, tokenizer, PROMPTS, batch_size=size, max_new_tokens=5) == expected


def test_greedy_whatever_the_models_own_configuration_says(model: PeftModel) -> None:
    expected = generate_texts(model, word_tokenizer(), PROMPTS, max_new_tokens=5)
    given: dict[str, Any] = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1}
    assert generate_texts(model, word_tokenizer(), PROMPTS, max_new_tokens=5, **given) != expected
    given["do_sample"] = True
    config = model.generation_config
    before = {name: getattr(config, name) for name in given}
    try:
        config.update(**given)
        assert generate_texts(model, word_tokenizer(), PROMPTS, max_new_tokens=5) == expected
    finally:
        config.update(**before)


def test_records_and_texts_mix(model: PeftModel) -> None:
    prompts = [CHATS[0], PROMPTS[1], {"instruction": "w1 w2"}]
    together = generate_texts(model, word_tokenizer(), prompts, max_new_tokens=4)
    alone = [generate_texts(model, word_tokenizer(), [prompt], max_new_tokens=4)[0] for prompt in prompts]
    assert together == alone


def test_progress_counts_prompts(model: PeftModel) -> None:
    seen: list[int] = []
    generate_texts(model, word_tokenizer(), PROMPTS, batch_size=3, max_new_tokens=1, progress=seen.append)
    assert seen == [3, 6, 8]


def test_dropout_is_off_even_after_training(model: PeftModel) -> None:
    model.train()
    generate_texts(model, word_tokenizer(), PROMPTS[:1], max_new_tokens=1)
    assert not model.training


def test_what_is_said_of_a_prompt_goes_with_it(model: PeftModel) -> None:
    """Prompts of different lengths are sorted, and what is said of each with them."""
    parts = {"r": 2, "subspaces": [[0], [1]], "positions": "l2", "init": "random", "task_type": "CAUSAL_LM"}
    torch.manual_seed(3)
    model.add_adapter("other", ReftConfig(**parts))
    model.set_adapter("other")
    prompts = [CHATS[0]["messages"][0]["content"], "cats", "How do trains move ? " * 3, "like cats"]
    more = {"max_new_tokens": 6, "batch_size": 2}
    for name, each in (
        ("adapter_names", ["other", "__base__", "default", "other"]),
        ("strength", [0.0, 3.0, -2.0, 1.0]),
        ("subspaces", [[0], [1], [0, 1], [1]]),
    ):
        alone = [
            generate_texts(model, word_tokenizer(), [p], max_new_tokens=6, **{name: [one]})[0]
            for p, one in zip(prompts, each, strict=True)
        ]
        assert len(set(alone)) > 1
        assert generate_texts(model, word_tokenizer(), prompts, **more, **{name: each}) == alone
        with pytest.raises(ReftuneError, match=f"{name}=.* needs an entry for each of the 4 prompts"):
            generate_texts(model, word_tokenizer(), prompts, **more, **{name: each[:3]})
    for name, one, each in (("strength", 0.5, [0.5] * 4), ("subspaces", [[1]], [[1]] * 4)):
        whole = generate_texts(model, word_tokenizer(), prompts, **more, **{name: one})
        assert whole == generate_texts(model, word_tokenizer(), prompts, **more, **{name: each})


def test_no_prompts_no_answers(model: PeftModel) -> None:
    assert generate_texts(model, word_tokenizer(), [], max_new_tokens=1) == []


def test_an_empty_prompt_is_refused(model: PeftModel) -> None:
    with pytest.raises(DataError):
        generate_texts(model, word_tokenizer(), [""], max_new_tokens=1)


def test_sampling_arguments_pass_through(model: PeftModel) -> None:
    torch.manual_seed(0)
    sampled = {
        generate_texts(
            model, word_tokenizer(), PROMPTS[:1], max_new_tokens=8, do_sample=True, temperature=5.0, top_k=0
        )[0]
        for _ in range(4)
    }
    assert len(sampled) > 1


def test_half_a_character_at_the_end_is_left_out(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = bpe_tokenizer()
    whole = tokenizer("w1 🌌", add_special_tokens=False)["input_ids"]
    said = {"whole": whole, "cut": [*whole, *whole[-4:-1]], "only half": whole[-4:-1]}
    for what, tokens in said.items():
        monkeypatch.setattr(
            model, "generate", lambda input_ids, tokens=tokens, **_: torch.cat([input_ids, torch.tensor([tokens])], 1)
        )
        expected = "" if what == "only half" else "w1 🌌"
        assert generate_texts(model, tokenizer, ["w1"], max_new_tokens=9) == [expected], what
