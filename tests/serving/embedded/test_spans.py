"""Requests whose prompts mark tokens: the server on transformers edits just these, beside requests that mark none."""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from reftune.data import encode_marked
from reftune.serving import AdapterError, read_adapter
from reftune.serving.folded import fold_adapter
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
    return save_adapters(tmp_path_factory.mktemp("spans"), {"spans": spans})["spans"]


def test_marked_prompts(serve: Serve, folder: Path) -> None:
    tokenizer, models = word_tokenizer(), plain_models({"spans": folder})
    wanted = {}
    for prompt in PROMPTS:
        ids, spans = encode_marked(prompt, tokenizer)
        given = {"input_ids": torch.tensor([ids]), "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None}
        marks = torch.tensor([spans or [0] * len(ids)])
        wanted[prompt, "spans"] = models["spans"].generate(**given, spans=marks)[0, len(ids) :].tolist()
        wanted[prompt, BASE] = models[None].generate(**given)[0, len(ids) :].tolist()
    assert wanted[PROMPTS[1], "spans"] == wanted[PROMPTS[1], BASE]
    assert sum(wanted[prompt, "spans"] != wanted[prompt, BASE] for prompt in PROMPTS) >= 2
    # batches are broken off and gone on with, as others come
    with serve({"spans": folder}, slice_steps=2, max_batch_size=3) as running:
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


def test_vllm_has_no_marks(folder: Path) -> None:
    with pytest.raises(AdapterError, match=r"positions='span', but requests to vLLM cannot mark tokens"):
        fold_adapter(read_adapter(folder), layers=2, width=32, prefix="model.layers")
