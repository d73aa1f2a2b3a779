"""The boundary between prompt and response on token ids, BOS, EOS and cutting."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from reftune.data import Example, build_dataset, encode_prompt, tokenize_record
from reftune.errors import DataError

USER = {"role": "user", "content": "hello"}
ANSWER = {"role": "assistant", "content": "yes"}

# Few characters, so that merges, spaces and line ends meet at the boundary often.
tight = st.text(alphabet="ab c\n:yes", min_size=1, max_size=12).filter(str.strip)
wide = st.text(min_size=1, max_size=8).filter(str.strip)
texts = st.one_of(tight, wide)


def _pair(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def _decode(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@given(prompt=texts, response=texts)
def test_training_sees_the_prompt_of_generation(
    bpe: PreTrainedTokenizerFast,
    words: PreTrainedTokenizerFast,
    bert: PreTrainedTokenizerFast,
    prompt: str,
    response: str,
) -> None:
    for tokenizer in (bpe, words, bert):
        if not tokenizer(response, add_special_tokens=False)["input_ids"]:
            continue
        if not tokenizer(prompt, add_special_tokens=False)["input_ids"]:
            continue
        example = tokenize_record(_pair(prompt, response), tokenizer)
        assert example.input_ids[: example.prompt_length] == encode_prompt(prompt, tokenizer)
        assert example.input_ids[: example.prompt_length] == encode_prompt(_pair(prompt, response), tokenizer)
        assert example.prompt_cut == 0
        assert len(example.input_ids) > example.prompt_length


@given(prompt=texts, response=texts)
def test_ids_spell_prompt_and_response(bpe: PreTrainedTokenizerFast, prompt: str, response: str) -> None:
    example = tokenize_record(_pair(prompt, response), bpe)
    assert _decode(bpe, example.input_ids[: example.prompt_length]) == prompt
    assert _decode(bpe, example.input_ids[example.prompt_length :]) == response
    assert example.input_ids[-1] == bpe.eos_token_id
    assert example.labels == [-100] * example.prompt_length + example.input_ids[example.prompt_length :]


@given(prompt=tight, response=tight)
def test_sentencepiece_kind_has_no_space_of_its_own(
    metaspace: PreTrainedTokenizerFast, prompt: str, response: str
) -> None:
    example = tokenize_record(_pair(prompt, response), metaspace)
    prompt_ids, all_ids = example.input_ids[: example.prompt_length], example.input_ids
    assert prompt_ids == encode_prompt(prompt, metaspace)
    # Its decoder drops a space at the very start, so the response is compared behind the prompt.
    behind = _decode(metaspace, all_ids).removeprefix(_decode(metaspace, prompt_ids))
    assert behind == response


@pytest.mark.parametrize(
    ("prompt", "response", "tokens"),
    [
        # "a" + "b" merge to "ab", "Ġ" + "yes" to "Ġyes": the prompt keeps the ids that generation has.
        ("a", "b abc", ["<s>", "a", "|", "b", "Ġabc", "</s>"]),
        ("Answer: ", "yes", ["<s>", "Answer", ":", "Ġ", "|", "yes", "</s>"]),
        # Nothing straddles here: the ids are those of the whole text.
        ("Answer:", " yes", ["<s>", "Answer", ":", "|", "Ġyes", "</s>"]),
    ],
)
def test_boundary(chat: PreTrainedTokenizerFast, prompt: str, response: str, tokens: list[str]) -> None:
    example = tokenize_record(_pair(prompt, response), chat)
    found = chat.convert_ids_to_tokens(example.input_ids)
    assert [*found[: example.prompt_length], "|", *found[example.prompt_length :]] == tokens


def test_boundary_of_the_sentencepiece_kind(metaspace: PreTrainedTokenizerFast) -> None:
    example = tokenize_record(_pair("Answer: ", "yes"), metaspace)
    # Encoded alone, the response would be "▁yes": two spaces in all.
    assert metaspace.convert_ids_to_tokens(example.input_ids) == ["<s>", "▁Answer:", "▁", "yes", "</s>"]


def test_unknown_word_astride_the_boundary(words: PreTrainedTokenizerFast) -> None:
    # "xy" is one unknown word; its half in the response must not get lost.
    example = tokenize_record(_pair("x", "y yes"), words)
    assert words.convert_ids_to_tokens(example.input_ids) == ["<unk>", "<unk>", "yes", "</s>"]
    assert example.prompt_length == 1


def test_start_once_and_nothing_behind(bert: PreTrainedTokenizerFast, chat: PreTrainedTokenizerFast) -> None:
    assert bert.convert_ids_to_tokens(encode_prompt("hello world", bert)) == ["[CLS]", "hello", "world"]
    assert encode_prompt("hello", chat) == chat("hello")["input_ids"]
    # A user who writes BOS as text has it once.
    assert encode_prompt("<s>hello", chat) == chat("hello")["input_ids"]


def test_end_once(chat: PreTrainedTokenizerFast, bert: PreTrainedTokenizerFast) -> None:
    for response in ("yes", "yes</s>"):
        assert tokenize_record(_pair("hello", response), chat).input_ids.count(chat.eos_token_id) == 1
    assert tokenize_record(_pair("hello", "world"), bert).input_ids == encode_prompt("hello world", bert)


def test_chat_is_what_apply_chat_template_gives(chat: PreTrainedTokenizerFast) -> None:
    expected = chat.apply_chat_template([USER, ANSWER], return_dict=False)
    prompt = chat.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    for record in ({"messages": [USER, ANSWER]}, {"prompt": [USER], "completion": [ANSWER]}):
        example = tokenize_record(record, chat)
        assert example == Example(expected, len(prompt))
        assert encode_prompt(record, chat) == prompt
    assert expected.count(chat.bos_token_id) == 1
    assert encode_prompt({"messages": [USER]}, chat) == prompt


@given(response=tight)
def test_chat_boundary(shared_chat: PreTrainedTokenizerFast, response: str) -> None:
    tokenizer = shared_chat
    record = {"messages": [USER, {"role": "assistant", "content": response}]}
    example = tokenize_record(record, tokenizer)
    assert example.input_ids[: example.prompt_length] == encode_prompt(record, tokenizer)
    behind = tokenizer.decode(example.input_ids[example.prompt_length :], clean_up_tokenization_spaces=False)
    assert behind == response + "<|im_end|>\n"


def test_chat_without_an_end_gets_eos(chat: PreTrainedTokenizerFast) -> None:
    chat.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    example = tokenize_record({"messages": [USER, ANSWER]}, chat)
    assert _decode(chat, example.input_ids[example.prompt_length :]) == "yes\n"
    assert example.input_ids[-1] == chat.eos_token_id


@pytest.mark.parametrize("end", ["</s>", "</s>\n", "<|im_end|>", "<|im_end|>\n"])
def test_chat_with_an_end_keeps_it(chat: PreTrainedTokenizerFast, end: str) -> None:
    chat.chat_template = "{% for m in messages %}{{ m.content }}END{% endfor %}".replace("END", end)
    example = tokenize_record({"messages": [USER, ANSWER]}, chat)
    assert chat.decode(example.input_ids[example.prompt_length :]) == "yes" + end


def test_special_token_within_a_chat_response_is_no_end(chat: PreTrainedTokenizerFast) -> None:
    chat.chat_template = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
    assert tokenize_record({"messages": [USER, ANSWER]}, chat).input_ids[-1] == chat.eos_token_id


def test_cut_from_the_left_behind_bos(chat: PreTrainedTokenizerFast) -> None:
    record = _pair("the cat sat on the mat", " and the dog")
    whole = tokenize_record(record, chat)
    response = whole.input_ids[whole.prompt_length :]
    for cut in range(whole.prompt_length - 1):
        example = tokenize_record(record, chat, max_length=len(whole.input_ids) - cut)
        assert example.prompt_cut == cut
        assert len(example.input_ids) == len(whole.input_ids) - cut
        assert example.input_ids[0] == chat.bos_token_id
        assert example.input_ids[1:] == whole.input_ids[1 + cut :]
        assert example.input_ids[example.prompt_length :] == response
    # BOS alone is no prompt.
    for room in (1, 0, -2):
        with pytest.raises(DataError, match=rf"response alone \({len(response)} tokens"):
            tokenize_record(record, chat, max_length=len(response) + room)


def test_cut_without_bos(bpe: PreTrainedTokenizerFast) -> None:
    whole = tokenize_record(_pair("the cat sat on the mat", "yes"), bpe)
    response = whole.input_ids[whole.prompt_length :]
    example = tokenize_record(_pair("the cat sat on the mat", "yes"), bpe, max_length=len(response) + 1)
    assert example.input_ids == whole.input_ids[whole.prompt_length - 1 :]
    assert example.prompt_length == 1


def test_cut_of_chat_keeps_the_bos_of_the_template(chat: PreTrainedTokenizerFast) -> None:
    whole = tokenize_record({"messages": [USER, ANSWER]}, chat)
    example = tokenize_record({"messages": [USER, ANSWER]}, chat, max_length=len(whole.input_ids) - 3)
    assert example.input_ids == [chat.bos_token_id, *whole.input_ids[4:]]


def test_texts_without_tokens() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    bare = Tokenizer(models.WordLevel({"hello": 0, "<unk>": 1}, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("#")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare)
    with pytest.raises(DataError, match="prompt '##' has no tokens"):
        encode_prompt("##", tokenizer)
    with pytest.raises(DataError, match="response '##' has no tokens"):
        tokenize_record(_pair("hello", "##"), tokenizer)
    for text in ("", " \n"):
        with pytest.raises(DataError, match="'prompt' is empty"):
            encode_prompt(text, tokenizer)


def test_dataset(chat: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture) -> None:
    rows: list[dict[str, Any]] = [
        _pair("the cat sat on the mat", "yes"),
        {"messages": [USER, ANSWER]},
        {"instruction": "say hello", "output": "hello"},
    ]
    with caplog.at_level(logging.INFO, logger="reftune"):
        dataset = build_dataset(rows, chat)
    assert sorted(dataset.column_names) == ["input_ids", "labels", "prompt_length"]
    for row, record in zip(dataset, rows, strict=True):
        example = tokenize_record(record, chat)
        assert row == {
            "input_ids": example.input_ids,
            "labels": example.labels,
            "prompt_length": example.prompt_length,
        }
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_dataset_reports_cuts_once(chat: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture) -> None:
    rows = [_pair("the cat sat on the mat", "yes"), _pair("hello world hello world", "no"), _pair("a", "b")]
    cuts = [tokenize_record(row, chat, max_length=5).prompt_cut for row in rows]
    assert [cut > 0 for cut in cuts] == [True, True, False]
    with caplog.at_level(logging.INFO, logger="reftune"):
        dataset = build_dataset(rows, chat, max_length=5)
    assert max(len(row) for row in dataset["input_ids"]) == 5
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "3 rows; 2 of them cut" in caplog.text
    assert f"({sum(cuts)} tokens in all)" in caplog.text


def test_dataset_names_the_row_that_does_not_fit(chat: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n\n{"prompt": "a", "completion": "x x x x x x x x"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 3: the response alone .* is longer than max_length=6"):
        build_dataset(path, chat, max_length=6)


def test_nested_values_reach_the_template_as_they_were(chat: PreTrainedTokenizerFast) -> None:
    # A table would give both calls both keys.
    chat.chat_template = "{% for m in messages %}{{ m.content }}{{ m.tool_calls | tojson }}</s>{% endfor %}"
    chat.chat_template = chat.chat_template.replace("m.tool_calls", "m.tool_calls | default([])")
    rows = [
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {key: "b"}}]},
            ]
        }
        for key in ("a", "c")
    ]
    for row, key in zip(build_dataset(rows, chat), "ac", strict=True):
        text = _decode(chat, row["input_ids"][row["prompt_length"] :])
        assert text == f'[{{"name": "f", "arguments": {{"{key}": "b"}}}}]'
