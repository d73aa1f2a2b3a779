"""How much one rank-1 edit of one layer can hold: the opening of a book, or a codebook (ReFT paper, appendix F).

A cell is one training of `consreft`, h + Rᵀ(b − Rh) with d + 1 parameters, on the last prompt token of one layer.  Its
score is what greedy generation gives back.  All below that layer, and the keys and values of the prompt, never change:
`training.reuse` keeps them, so that a step runs the later layers on the tokens of the answers only.

Must not know: the command line, tables and pictures.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..config import ReftConfig
from ..data import PromptStyle, ReftCollator, encode_prompt
from ..errors import ReftuneError
from ..evaluation.tasks.codebook import key
from ..evaluation.tasks.memorisation import PROMPT, same_start
from ..files import append_line, key_of, whole_lines
from ..generation import GREEDY
from ..models import save_adapter
from ..training.loss import head_as
from ..training.prepare import prepare_loss, prepare_reuse
from ..training.reuse import FrozenPrefix
from ..training.rows import Row, batch_of, rows_of

__all__ = ["CELLS", "CODEBOOK", "TEXTS", "Cell", "Memory", "Pair", "pairs_of", "plan_cells", "recalled", "run_cells"]

# What is kept, and after which prompt.  The controls have prompts of their own, as published.
TEXTS = {"alice": PROMPT, "scrambled": "ALIS#ID1->", "random": "RAND#ID1->"}
CODEBOOK = "codebook"
CELLS = "cells.jsonl"
# transformers' Trainer clips so by default, and the published runs did not change it
CLIP = 1.0
# Prompts that are generated from at once.
GENERATED = 64

Pair = tuple[list[int], list[int]]
"""Tokens of a prompt, and those that are to follow it."""


@dataclass(frozen=True)
class Cell:
    """One training and its score; the defaults are the published ones for texts."""

    kind: str
    """`alice`, `scrambled`, `random` or `codebook`."""
    layer: int
    size: int
    """Tokens of the text, or entries of the codebook."""
    epochs: int = 1000
    learning_rate: float = 4e-3
    """At the start; it falls linearly to 0, without warm-up."""
    batch_size: int = 1
    seed: int = 42

    @classmethod
    def codebook(cls, layer: int, size: int, *, epochs: int = 200, seed: int = 42) -> Cell:
        """With the defaults of the published notebook for codebooks."""
        return cls(CODEBOOK, layer, size, epochs=epochs, learning_rate=2e-3, batch_size=16, seed=seed)

    @property
    def is_text(self) -> bool:
        return self.kind in TEXTS


# --- what is to be held -----------------------------------------------------------------------------------------------


def pairs_of(cell: Cell, tokenizer: PreTrainedTokenizerBase, book: str | None) -> list[Pair]:
    """The one long pair of a text, or the many short ones of a codebook.

    `book` may be None where nothing of it is needed.  A smaller cell of the same kind and seed holds the beginning of
    what a larger one does.

    Raises:
        ReftuneError: the book has fewer tokens than the cell asks for.
    """
    draw = random.Random(cell.seed)
    if not cell.is_text:
        answers = draw.choices(_words(tokenizer), k=cell.size)
        return [(encode_prompt(key(i), tokenizer), [answer]) for i, answer in enumerate(answers)]
    if cell.kind == "random":
        ids = draw.choices(_words(tokenizer), k=cell.size)
    else:
        assert book is not None
        if cell.kind == "scrambled":
            words = book.split()
            draw.shuffle(words)
            book = " ".join(words)
        ids = list(tokenizer(book, add_special_tokens=False, verbose=False)["input_ids"])
    if len(ids) < cell.size:
        raise ReftuneError(f"the text {cell.kind!r} has {len(ids)} tokens, fewer than the length {cell.size}")
    return [(encode_prompt(TEXTS[cell.kind], tokenizer), ids[: cell.size])]


def _words(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All tokens but those that are no text, such as the end token, which would end a generation."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return sorted(set(tokenizer.get_vocab().values()) - special)


# --- training ---------------------------------------------------------------------------------------------------------


class Memory:
    """A model with an edit that is trained to answer each prompt by its answer.

    Raises:
        ReftuneError: the loss of the model is not the plain one of a causal language model.
    """

    def __init__(
        self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], *, epochs: int, folder: Path
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.pairs = pairs
        features = [{"input_ids": prompt + answer, "prompt_length": len(prompt)} for prompt, answer in pairs]
        inputs = {name: value.to(model.device) for name, value in ReftCollator(tokenizer)(features).items()}
        rows = rows_of(inputs)
        assert rows is not None, "the collator makes them so"
        self.rows: list[Row] = rows
        rounding = 1e-4 if model.dtype in (torch.float32, torch.float64) else 3e-2
        loss = prepare_loss(model, model, inputs, rounding=rounding)
        if loss is None:
            name = type(model.get_base_model()).__name__
            raise ReftuneError(f"{name} has a loss of its own; memorisation needs a causal language model without one")
        self.loss = loss
        found = prepare_reuse(
            model,
            loss,
            lambda count: self.rows,
            passes_of_run=lambda: epochs,
            folder=folder / "frozen-prefix" / "0",
            limit_gb=None,
            on_fill=None,
            is_main=False,
            no_bar=True,
            rounding=rounding,
        )
        self.frozen = found if isinstance(found, FrozenPrefix) else None

    def close(self) -> None:
        if self.frozen is not None:
            self.frozen.close()

    def train(self, cell: Cell, *, on_epoch: Callable[[int], None] = lambda epoch: None) -> dict[str, Any]:
        """Train until greedy generation gives everything back, else for all epochs.

        In an epoch where each token of the answers had the largest logit, given the ones before it, greedy generation
        is looked at: it would choose these very tokens one after the other, as each choice makes the next one's
        context.  What it does give decides, as rounding differs and the last step came after the look.
        """
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=cell.learning_rate, weight_decay=0.0)
        steps = cell.epochs * math.ceil(len(self.rows) / cell.batch_size)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))
        draw = random.Random(cell.seed)
        epoch, mean, made = 0, math.nan, None
        for epoch in range(1, cell.epochs + 1):
            total, leads = 0.0, True
            for rows in _batches(self.rows, cell.batch_size, draw):
                loss, all_lead = self.look(rows)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, CLIP)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                total += loss.item() * len(rows)
                leads = leads and all_lead
            mean = total / len(self.rows)
            on_epoch(epoch)
            if leads and self.all_lead():
                made = recalled(self.model, self.tokenizer, self.pairs)
                if _holds_all(made, self.pairs):
                    break
                made = None
        made = made or recalled(self.model, self.tokenizer, self.pairs)
        held = held_of(made, self.pairs)
        return {
            "held": held,
            "recall": held / cell.size,
            "epochs_run": epoch,
            "stopped": _holds_all(made, self.pairs) and epoch < cell.epochs,
            "loss": mean,
        }

    def look(self, rows: Sequence[Row]) -> tuple[Tensor, bool]:
        """Mean cross-entropy of the answers, and whether each of their tokens has the largest logit."""
        if self.frozen is None:
            return self._look(batch_of(rows, device=self.model.device))
        with self.frozen.replaying(rows) as batch:
            return self._look(batch)

    def _look(self, batch: Any) -> tuple[Tensor, bool]:
        leading = _Leading(batch.targets)
        with head_as(self.loss.head, leading):
            total = self.loss(self.model, batch)
        return total / len(batch.targets), leading.all()

    @torch.no_grad()
    def all_lead(self) -> bool:
        """The same of all rows, by the parameters as they are now."""
        return all(self.look(self.rows[i : i + GENERATED])[1] for i in range(0, len(self.rows), GENERATED))


class _Leading:
    """Put before the head of a model, sees the logits in their chunks before the loss writes over them."""

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets
        self.seen = 0
        self.found = True

    def __call__(self, head: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        logits = head(hidden)
        targets = self.targets[self.seen : self.seen + len(hidden), None]
        self.seen += len(hidden)
        values = logits.detach()
        # of equal ones greedy decoding takes the first, so a tie is no lead
        self.found = self.found and bool(((values >= values.gather(-1, targets)).sum(-1) == 1).all())
        return logits

    def all(self) -> bool:
        assert self.seen == len(self.targets)
        return self.found


def _batches(rows: Sequence[Row], size: int, draw: random.Random) -> Iterator[list[Row]]:
    order = list(rows)
    draw.shuffle(order)
    for start in range(0, len(order), size):
        yield order[start : start + size]


# --- what greedy generation gives back --------------------------------------------------------------------------------


@torch.no_grad()
def recalled(model: PeftModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> list[list[int]]:
    """What the model writes after each prompt, as many tokens as the answer has.

    Prompts of one length go together, so that there is no padding.
    """
    by_length: dict[int, list[int]] = {}
    for index, (prompt, _) in enumerate(pairs):
        by_length.setdefault(len(prompt), []).append(index)
    found: list[list[int]] = [[] for _ in pairs]
    generator: Any = model
    for length, indices in by_length.items():
        for start in range(0, len(indices), GENERATED):
            chosen = indices[start : start + GENERATED]
            ids = torch.tensor([pairs[i][0] for i in chosen], device=model.device)
            made = generator.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max(len(pairs[i][1]) for i in chosen),
                pad_token_id=tokenizer.pad_token_id,
                **GREEDY,
            )
            for i, row in zip(chosen, made[:, length:].tolist(), strict=True):
                found[i] = row[: len(pairs[i][1])]
    return found


def held_of(made: Sequence[Sequence[int]], pairs: Sequence[Pair]) -> int:
    """Tokens of a text up to the first wrong one; of a codebook the number of entries that are right."""
    if len(pairs) > 1:
        return sum(list(row) == answer for row, (_, answer) in zip(made, pairs, strict=True))
    return same_start(made[0], pairs[0][1])


def _holds_all(made: Sequence[Sequence[int]], pairs: Sequence[Pair]) -> bool:
    return all(list(row) == answer for row, (_, answer) in zip(made, pairs, strict=True))


# --- cells ------------------------------------------------------------------------------------------------------------


def plan_cells(
    base: Any, tokenizer: PreTrainedTokenizerBase, cells: Sequence[Cell], *, book: str | None
) -> list[tuple[Cell, list[Pair]]]:
    """Each cell with what it is to hold, all of it before hours have passed.

    Raises:
        ReftuneError: a text is too short, or a cell longer than the model's context.
    """
    context = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    # all layers hold the same
    known: dict[tuple[str, int, int], list[Pair]] = {}
    plan: list[tuple[Cell, list[Pair]]] = []
    for cell in cells:
        what = (cell.kind, cell.size, cell.seed)
        if what not in known:
            known[what] = pairs_of(cell, tokenizer, book)
        tokens = max(len(prompt) + len(answer) for prompt, answer in known[what])
        if context is not None and tokens > context:
            raise ReftuneError(
                f"the length {cell.size} and its prompt are {tokens} tokens; this model takes up to {context}"
            )
        plan.append((cell, known[what]))
    return plan


def run_cells(
    base: Any,
    tokenizer: PreTrainedTokenizerBase,
    plan: Sequence[tuple[Cell, list[Pair]]],
    *,
    model: str,
    output: Path,
    command: str = "",
    until_lost: bool = False,
    on_cell: Callable[[dict[str, Any]], None] = lambda result: None,
    on_epoch: Callable[[Cell, int], None] = lambda cell, epoch: None,
) -> list[dict[str, Any]]:
    """Results of what `plan_cells` gave; each is a line of `cells.jsonl` and its adapter a folder of `adapters`.

    Cells that the file has already, with the same settings, are not done again.  With `until_lost`, of each kind and
    layer nothing longer is tried than the first that was not held whole; it is left out of the results.
    `model` is the name of the base, which is one of the settings; `command` is noted beside what it brought about.
    """
    known = {line["key"]: line for line in whole_lines(output / CELLS, "key")}
    results: list[dict[str, Any]] = []
    lost: set[tuple[str, int]] = set()
    for cell, pairs in plan:
        if until_lost and (cell.kind, cell.layer) in lost:
            continue
        settings = {"model": model, "dtype": str(base.dtype).removeprefix("torch."), **asdict(cell)}
        name = key_of(settings)
        result = known.get(name)
        if result is None:
            adapter = Path("adapters") / f"{cell.kind}-layer{cell.layer}-{cell.size}-{name}"
            found = run_cell(base, tokenizer, cell, pairs, output / adapter, on_epoch=on_epoch)
            result = {"key": name, **settings, **found, "adapter": adapter.as_posix(), "command": command}
            append_line(output / CELLS, result)
        if result["held"] < cell.size:
            lost.add((cell.kind, cell.layer))
        results.append(result)
        on_cell(result)
    return results


def run_cell(
    base: Any,
    tokenizer: PreTrainedTokenizerBase,
    cell: Cell,
    pairs: Sequence[Pair],
    folder: Path,
    *,
    on_epoch: Callable[[Cell, int], None] = lambda cell, epoch: None,
) -> dict[str, Any]:
    """Train one edit on the base, save it in `folder` and take it off again."""
    start = time.perf_counter()
    config = ReftConfig(
        r=1, layers=[cell.layer], positions="l1", intervention="consreft", init="paper", task_type="CAUSAL_LM"
    )
    config.prompt_style = PromptStyle("prompt")
    with torch.random.fork_rng():
        torch.manual_seed(cell.seed)
        model = get_peft_model(base, config)
    assert isinstance(model, PeftModel)
    memory = Memory(model, tokenizer, pairs, epochs=cell.epochs, folder=folder.parent)
    try:
        found = memory.train(cell, on_epoch=lambda epoch: on_epoch(cell, epoch))
        save_adapter(model, folder)
        found["parameters"] = model.get_nb_trainable_parameters()[0]
        found["reuse"] = memory.frozen is not None
        found["seconds"] = round(time.perf_counter() - start, 2)
    finally:
        memory.close()
        model.unload()
    return found
