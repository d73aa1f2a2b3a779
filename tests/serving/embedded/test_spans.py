"""Requests whose prompts mark tokens: the server on transformers edits just these, beside requests that mark none."""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import torch

from reftune.data import encode_marked
from reftune.serving.page.marks import marked_tokens, summary
from tests.serving.embedded.conftest import Serve
from tests.serving.folders import BASE, plain_models, save_adapters
from tests.training.text_models import word_tokenizer

PROMPTS = [
    "w1 <<reft>>w2 w3<</reft>> <<reft>>w4<</reft>>",
    "w1 w2 w3 w4",
    "<<reft>>w7<</reft>> w8 w9 w1 <<reft>>w2<</reft>>",
    "w1 <<reft>>w5<</reft>>",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spans = {"r": 2, "positions": "span", "intervention": "loreft"}
    # a turn begins at w2 and at w8
    turns = {"r": 2, "positions": "turn(9,15):f1+l1", "intervention": "loreft"}
    return save_adapters(tmp_path_factory.mktemp("spans"), {"spans": spans, "turns": turns})["spans"].parent


def test_marked_prompts(serve: Serve, folder: Path) -> None:
    folders = {"spans": folder / "spans", "turns": folder / "turns"}
    tokenizer, models = word_tokenizer(), plain_models(folders)
    wanted = {}
    for prompt in PROMPTS:
        ids, spans = encode_marked(prompt, tokenizer)
        given = {"input_ids": torch.tensor([ids]), "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None}
        marks = torch.tensor([spans or [0] * len(ids)])
        wanted[prompt, "spans"] = models["spans"].generate(**given, spans=marks)[0, len(ids) :].tolist()
        wanted[prompt, "turns"] = models["turns"].generate(**given)[0, len(ids) :].tolist()
        wanted[prompt, BASE] = models[None].generate(**given)[0, len(ids) :].tolist()
    assert wanted[PROMPTS[1], "spans"] == wanted[PROMPTS[1], BASE]
    for name in ("spans", "turns"):
        assert sum(wanted[prompt, name] != wanted[prompt, BASE] for prompt in PROMPTS) >= 2
    # batches are broken off and gone on with, as others come
    with serve(folders, slice_steps=2, max_batch_size=3) as running:
        client = running.client()

        def ask(pair: tuple[str, str]) -> str:
            more = {"max_tokens": 8, "temperature": 0, "extra_body": {"ignore_eos": True}}
            return client.completions.create(model=pair[1], prompt=pair[0], **more).choices[0].text  # type: ignore[call-overload]

        with ThreadPoolExecutor(4) as pool:
            found = dict(zip(wanted, pool.map(ask, wanted), strict=True))
        body = json.dumps({"model": "spans", "prompt": PROMPTS[0]}).encode()
        request = urllib.request.Request(f"{running.url}/tokenize", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            assert json.loads(reply.read())["spans"] == [0, 1, 1, 1]
        # by a field of the request: characters of a text, tokens of a prompt of tokens
        plain = PROMPTS[3].replace("<<reft>>", "").replace("<</reft>>", "")
        ids, marks = encode_marked(PROMPTS[3], tokenizer)
        spans: list[tuple[object, list[list[int]]]] = [(plain, [[3, 5]]), (ids, [[marks.index(1), len(ids)]])]  # type: ignore[union-attr]
        by_field = [
            client.completions.create(
                model="spans",
                prompt=prompt,  # type: ignore[arg-type]
                max_tokens=8,
                temperature=0,
                extra_body={"ignore_eos": True, "reft_spans": value},
            )
            for prompt, value in spans
        ]
        assert {answer.choices[0].text for answer in by_field} == {found[PROMPTS[3], "spans"]}
        for bad, says in (
            ({"prompt": [plain, plain], "model": "spans"}, "are of one prompt, and there are 2"),
            ({"prompt": PROMPTS[3], "model": "spans"}, "leave one of the two out"),
            ({"prompt": ids, "model": "spans"}, r"reft_spans has \[3, 5\]; valid are"),
            ({"prompt": plain, "model": BASE}, "the base model, none of whose tokens"),
        ):
            with pytest.raises(openai.BadRequestError, match=says):
                client.completions.create(**bad, extra_body={"reft_spans": [[3, 5]]})  # type: ignore[call-overload]
    for (prompt, name), tokens in wanted.items():
        ids, _ = encode_marked(prompt, tokenizer)
        whole = tokenizer.decode([*ids, *tokens], skip_special_tokens=True)
        assert tokenizer.decode(ids) + found[prompt, name] == whole, (prompt, name)


def test_the_page_marks_them() -> None:
    adapter = {"sites": [[[0, "span", "all"]]], "layers": [[0]]}
    marks = [mark for _, mark in marked_tokens(["a", "b", "c"], [5, 6, 7], adapter, [0, 1, 0])]
    assert marks == [None, "span, layers 0", None]
    assert summary([5, 6, 7], adapter, [0, 1, 0]) == "1 of 3 prompt tokens are edited, and none of the answer"
    assert summary([5, 6, 7], adapter) == "0 of 3 prompt tokens are edited, and none of the answer"
