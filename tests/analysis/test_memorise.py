"""Memorisation: what is to be held, how it is trained, what counts as held, and how a run goes on."""

from __future__ import annotations

import string
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from reftune import ReftConfig
from reftune.analysis.memorise import (
    CELLS,
    Cell,
    Memory,
    _Leading,
    held_of,
    pairs_of,
    plan_cells,
    recalled,
    run_cells,
)
from reftune.data import PromptStyle, encode_prompt
from reftune.errors import ReftuneError
from reftune.files import read_lines
from tests.models import HIDDEN, tiny_model

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
LETTERS = (*string.ascii_letters, *string.digits, *" #->.,'\n")
BOOK = "Alice was beginning to get very tired, and of having nothing to do. Alice had peeped into the book.\n"
QUICK: dict[str, Any] = {"epochs": 80, "learning_rate": 5e-2}


def letters() -> PreTrainedTokenizerFast:
    """A token a letter, so that prompts such as `RAND#ID1->` differ."""
    ids = {letter: i for i, letter in enumerate((*SPECIAL, *LETTERS))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def tiny(*, layers: int = 3, **overrides: Any) -> Any:
    """Weights that are large enough for an edit to change what follows."""
    sizes = {"vocab_size": len(SPECIAL) + len(LETTERS), "initializer_range": 0.3}
    return tiny_model("llama", layers=layers, overrides={**sizes, **overrides})


def run(cells: list[Cell], output: Path, *, base: Any = None, **options: Any) -> list[dict[str, Any]]:
    base, tokenizer = tiny() if base is None else base, letters()
    plan = plan_cells(base, tokenizer, cells, book=options.pop("book", BOOK))
    return run_cells(base, tokenizer, plan, **{"model": "tiny", "output": output, **options})


def edited(layer: int = 1, *, base: Any = None, seed: int = 0) -> PeftModel:
    torch.manual_seed(seed)
    config = ReftConfig(r=1, layers=[layer], positions="l1", intervention="consreft", task_type="CAUSAL_LM")
    model = get_peft_model(tiny() if base is None else base, config)
    assert isinstance(model, PeftModel)
    return model.eval()


def logits_of(model: PeftModel, prompt: list[int], answer: list[int]) -> Tensor:
    """Logits that predict the answer, from one plain call."""
    with torch.no_grad():
        made = model(input_ids=torch.tensor([prompt + answer]), prompt_length=torch.tensor([len(prompt)]))
    return made.logits[0, len(prompt) - 1 : -1]


def by_hand(model: PeftModel, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding without a cache: the whole row is computed for each token."""
    found: list[int] = []
    for _ in range(count):
        found.append(int(logits_of(model, prompt, [*found, 0])[-1].argmax()))
    return found


# --- what is to be held -----------------------------------------------------------------------------------------------


def test_texts() -> None:
    tokenizer = letters()
    (prompt, ids), *others = pairs_of(Cell("alice", 0, 20), tokenizer, BOOK)
    assert not others
    assert tokenizer.decode(prompt).replace(" ", "") == "ALIC#ID1->"
    assert ids == [len(SPECIAL) + LETTERS.index(letter) for letter in BOOK[:20]]
    scrambled = pairs_of(Cell("scrambled", 0, len(BOOK) - 1), tokenizer, BOOK)[0][1]
    text = "".join(LETTERS[i - len(SPECIAL)] for i in scrambled)
    assert Counter(text.split()) == Counter(BOOK.split())
    assert text.split() != BOOK.split()
    drawn = pairs_of(Cell("random", 0, 500), tokenizer, None)[0][1]
    assert len(drawn) == 500 and min(drawn) >= len(SPECIAL), "a special token would end or hide an answer"
    assert len(set(drawn)) > 50


@pytest.mark.parametrize("kind", ["alice", "scrambled", "random"])
def test_a_shorter_text_is_the_beginning_of_a_longer_one(kind: str) -> None:
    tokenizer = letters()
    short, long = (pairs_of(Cell(kind, 0, size), tokenizer, BOOK)[0][1] for size in (7, 30))
    assert long[:7] == short
    other = pairs_of(Cell(kind, 0, 30, seed=1), tokenizer, BOOK)[0][1]
    assert (other == long) is (kind == "alice"), "the book is the same for all seeds, the controls are not"


def test_codebook() -> None:
    tokenizer = letters()
    pairs = pairs_of(Cell.codebook(0, 12), tokenizer, None)
    prompts = [tokenizer.decode(prompt).replace(" ", "") for prompt, _ in pairs]
    assert prompts == [f"RAND#ID{i}->" for i in range(12)]
    assert all(len(answer) == 1 and answer[0] >= len(SPECIAL) for _, answer in pairs)
    assert pairs[:5] == pairs_of(Cell.codebook(0, 5), tokenizer, None)
    assert len({answer[0] for _, answer in pairs}) > 6


def test_texts_that_are_too_short(tmp_path: Path) -> None:
    with pytest.raises(ReftuneError, match=r"'alice' has 100 tokens, fewer than the length 101"):
        run([Cell("alice", 0, 101)], tmp_path)
    with pytest.raises(ReftuneError, match=r"the length 60 and its prompt are 70 tokens; this model takes up to 64"):
        run([Cell("random", 0, 2), Cell("random", 0, 60)], tmp_path, base=tiny(max_position_embeddings=64))
    assert not (tmp_path / CELLS).exists(), "it is said before anything is trained"


# --- what counts as held ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "held"),
    [
        ([5, 6, 7, 8], 4),
        ([5, 6, 7, 9], 3),
        ([5, 9, 7, 8], 1),  # what is right behind the first wrong one does not count
        ([9, 6, 7, 8], 0),
        ([5, 6], 2),  # ended early
        ([], 0),
    ],
)
def test_prefix_that_is_held(made: list[int], held: int) -> None:
    assert held_of([made], [([1, 2], [5, 6, 7, 8])]) == held


def test_entries_that_are_held() -> None:
    pairs = [([1], [5]), ([2], [6]), ([3], [7])]
    assert held_of([[5], [9], [7]], pairs) == 2, "of a codebook order does not matter"
    assert held_of([[6], [5], []], pairs) == 0


def test_leading_means_alone_at_the_top() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 3.0, 1.0]])
    for targets, expected in (([1], True), ([2], False)):
        look = _Leading(torch.tensor(targets))
        assert look(lambda hidden: logits[:1], torch.zeros(1, 4)) is not None
        assert look.all() is expected
    tie = _Leading(torch.tensor([1, 0]))
    for row in range(2):  # in chunks, as the loss asks for them
        tie(lambda hidden, row=row: logits[row : row + 1], torch.zeros(1, 4))
    assert not tie.all()


def test_what_is_recalled_is_greedy_decoding() -> None:
    model, tokenizer = edited(), letters()
    pairs = pairs_of(Cell.codebook(0, 12), tokenizer, None) + pairs_of(Cell("alice", 0, 9), tokenizer, BOOK)
    found = recalled(model, tokenizer, pairs)
    assert found == [by_hand(model, prompt, len(answer)) for prompt, answer in pairs]
    assert len({tuple(row) for row in found}) > 1


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [True, False])
def test_loss_and_lead_are_those_of_a_plain_call(reuse: bool, tmp_path: Path) -> None:
    model, tokenizer = edited(), letters()
    # the longer prompts make that rows begin in different columns
    pairs = pairs_of(Cell.codebook(0, 12), tokenizer, None)
    pairs += [(prompt, by_hand(model, prompt, 3)) for prompt, _ in pairs[:2]]
    memory = Memory(model, tokenizer, pairs, epochs=50, folder=tmp_path)
    assert memory.frozen is not None
    if not reuse:
        memory.close()
        memory.frozen = None
    for chosen in ([0, 5, 11, 13], [12, 13], [1]):
        plain = [logits_of(model, *pairs[i]) for i in chosen]
        answers = [torch.tensor(pairs[i][1]) for i in chosen]
        loss, leads = memory.look([memory.rows[i] for i in chosen])
        expected = F.cross_entropy(torch.cat(plain), torch.cat(answers))
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0.0)
        assert leads is all(torch.equal(one.argmax(-1), other) for one, other in zip(plain, answers, strict=True))
        assert leads is (chosen == [12, 13]), "so that both outcomes are seen"
    memory.close()


def test_training_is_the_published_one(tmp_path: Path) -> None:
    """AdamW without decay, the rate falling linearly to 0, gradients clipped at 1: written out, on plain calls."""
    cell = Cell("random", 0, 6, epochs=5, learning_rate=5e-2, seed=3)
    base, tokenizer = tiny(), letters()
    result = run([cell], tmp_path, base=base)[0]
    model = edited(0, base=tiny(), seed=3)
    ((prompt, answer),) = pairs_of(cell, tokenizer, None)
    batch = {"input_ids": torch.tensor([prompt + answer]), "prompt_length": torch.tensor([len(prompt)])}
    labels = torch.tensor([[-100] * len(prompt) + answer])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
    losses = []
    for step in range(5):
        optimizer.param_groups[0]["lr"] = 5e-2 * (1 - step / 5)
        loss = model(**batch, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    # five steps of float32 arithmetic in another order
    assert result["loss"] == pytest.approx(losses[-1], rel=1e-4)
    kept = PeftModel.from_pretrained(tiny(), str(tmp_path / result["adapter"])).state_dict()
    assert PromptStyle.read(tmp_path / result["adapter"]) == PromptStyle("prompt")
    for name, value in model.state_dict().items():
        if "hidden_edit" in name:
            torch.testing.assert_close(kept[name], value, rtol=1e-3, atol=1e-4)


def test_a_prefix_is_held(tmp_path: Path) -> None:
    """A text that a strong edit makes this model write, so that there is one that holds it."""
    tokenizer, strong = letters(), edited(0, seed=16)
    with torch.no_grad():
        next(p for name, p in strong.named_parameters() if name.endswith(".b")).fill_(9.0)
    book = "".join(LETTERS[i - len(SPECIAL)] for i in by_hand(strong, encode_prompt("ALIC#ID1->", tokenizer), 4))
    base = tiny()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    cell = Cell("alice", 0, 4, epochs=400, learning_rate=2e-2)
    result = run([cell], tmp_path, base=base, book=book)[0]
    assert result["held"] == 4 and result["recall"] == 1.0
    assert result["stopped"] and 1 < result["epochs_run"] < 400
    assert result["parameters"] == HIDDEN + 1
    assert result["reuse"] is True
    assert base.state_dict().keys() == before.keys(), "the edit was taken off again"
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    # the adapter that was saved does it, on a base that was never trained on
    ((prompt, answer),) = pairs_of(cell, tokenizer, book)
    assert by_hand(edited(0), prompt, 4) != answer
    adapted = PeftModel.from_pretrained(tiny(), str(tmp_path / result["adapter"])).eval()
    assert by_hand(adapted, prompt, 4) == answer
    shapes = sorted(p.numel() for name, p in adapted.named_parameters() if "hidden_edit" in name)
    assert shapes == [1, HIDDEN]


def test_a_codebook_is_held(tmp_path: Path) -> None:
    cell = Cell("codebook", 0, 4, epochs=200, learning_rate=5e-2, batch_size=3)
    result = run([cell], tmp_path)[0]
    assert result["held"] == 4 and result["stopped"]
    adapted = PeftModel.from_pretrained(tiny(), str(tmp_path / result["adapter"])).eval()
    for prompt, answer in pairs_of(cell, letters(), None):
        assert by_hand(adapted, prompt, 1) == answer


def test_what_is_lost_is_trained_to_the_end(tmp_path: Path) -> None:
    """Behind the last block nothing reads the edit but the logits of that very token: one token is all it can move."""
    cell = Cell("random", 2, 6, **QUICK)
    result = run([cell], tmp_path)[0]
    ((prompt, answer),) = pairs_of(cell, letters(), None)
    assert result["held"] == 1 and result["recall"] == pytest.approx(1 / 6)
    assert result["epochs_run"] == 80 and not result["stopped"]
    assert by_hand(edited(2), prompt + answer[:1], 1) != answer[1:2], "else the base would have gone on by itself"


def test_greedy_generation_has_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def forgetful(model: Any, tokenizer: Any, pairs: Any) -> list[list[int]]:
        calls.append(1)
        return recalled(model, tokenizer, pairs) if len(calls) > 3 else [[0] * len(pairs[0][1])]

    monkeypatch.setattr("reftune.analysis.memorise.recalled", forgetful)
    result = run([Cell("random", 0, 1, epochs=100, learning_rate=2e-2)], tmp_path)[0]
    assert len(calls) == 4 and result["held"] == 1, "training went on while generation said something else"


def test_determinism(tmp_path: Path) -> None:
    cells = [Cell("alice", 1, 3, epochs=6), Cell("codebook", 1, 5, epochs=3, batch_size=2)]
    names = ("held", "loss", "epochs_run")
    first, again = (run(cells, tmp_path / name) for name in ("one", "two"))
    assert [[line[name] for name in names] for line in first] == [[line[name] for name in names] for line in again]
    other = run([Cell("alice", 1, 3, epochs=6, seed=7)], tmp_path / "three")
    assert other[0]["loss"] != first[0]["loss"]


def test_models_of_other_kinds(tmp_path: Path) -> None:
    """Without reuse too: this one has dropout, which makes it random in training as its configuration has it."""
    base = tiny_model("gpt2", layers=2, overrides={"vocab_size": len(SPECIAL) + len(LETTERS), "resid_pdrop": 0.1})
    result = run([Cell("random", 0, 1, epochs=60, learning_rate=2e-2)], tmp_path, base=base)[0]
    assert result["reuse"] is False and result["held"] == 1


# --- a folder of cells ------------------------------------------------------------------------------------------------


def test_resuming(tmp_path: Path) -> None:
    cells = [Cell("random", 0, 2, epochs=3), Cell("random", 1, 2, epochs=3)]
    first = run(cells, tmp_path, command="one")
    seen: list[Cell] = []
    file = tmp_path / CELLS

    def watch(cell: Cell, epoch: int) -> None:
        seen.append(cell)

    assert run(cells, tmp_path, on_epoch=watch, command="two") == first and not seen
    assert len(read_lines(file)) == 2
    # broken off in the middle of the second line
    file.write_text(file.read_text()[:-40])
    again = run(cells, tmp_path, on_epoch=watch)
    assert set(seen) == {cells[1]}
    assert [(line["key"], line["loss"]) for line in again] == [(line["key"], line["loss"]) for line in first]
    # other settings are another cell
    seen.clear()
    run([Cell("random", 0, 2, epochs=4)], tmp_path, on_epoch=watch)
    run([Cell("random", 0, 2, epochs=3)], tmp_path, on_epoch=watch, model="another")
    assert len(seen) == 4 + 3


def test_until_lost(tmp_path: Path) -> None:
    sizes = (1, 3, 5)
    cells = [Cell("random", layer, size, **QUICK) for size in sizes for layer in (0, 2)]
    found = run(cells, tmp_path, until_lost=True)
    at_last_layer = [(line["size"], line["held"]) for line in found if line["layer"] == 2]
    assert at_last_layer == [(1, 1), (3, 1)], "5 is not tried where 3 was lost"
    assert [line["size"] for line in found if line["layer"] == 0][:2] == [1, 3]
