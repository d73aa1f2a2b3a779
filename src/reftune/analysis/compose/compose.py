"""One LoReFT in two parts, each trained on its own data in one run; answers with none, either and both of them.

Must not know: the command line, files but the adapter's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError, ReftuneError
from ...evaluation.data import sample
from ...evaluation.own.rows import OwnRow, own_row
from ...evaluation.paired import Paired, paired
from ...evaluation.scores import MEAN, bootstrap
from ...generation import generate_texts
from ...training import RunConfig, RunResult, train_run
from .rules import Rule, guess_rule, rule
from .sets import records_of

__all__ = [
    "CASES",
    "Ability",
    "Case",
    "Composed",
    "ability",
    "answer_cases",
    "check_two",
    "hold_back",
    "prompt_text",
    "train_parts",
]

# what is switched on
CASES: dict[str, list[int]] = {"none": [], "first": [0], "second": [1], "both": [0, 1]}


@dataclass
class Ability:
    """What one part of the rank learns."""

    name: str
    rows: list[OwnRow]
    rule: Rule
    guessed: bool = False
    """Whether the rule was guessed from the answers of the data."""
    held: list[OwnRow] = field(default_factory=list)
    """Rows that are not trained on."""

    @property
    def of_data(self) -> float:
        """What the answers of the data themselves have of the rule."""
        return float(np.mean([self.rule.score(prompt_text(row.asked), row.answer) for row in self.rows]))


@dataclass(frozen=True)
class Case:
    """What is switched on, and of every prompt the answer and its scores by the two rules [prompts, 2]."""

    name: str
    answers: list[str]
    scores: np.ndarray

    @property
    def both(self) -> np.ndarray:
        """Of every answer the product of the two scores: 1 where it has all of both."""
        return self.scores.prod(1)

    def mean(self, values: np.ndarray) -> tuple[float, float, float]:
        """Mean and its 95 % interval by bootstrap over the prompts."""
        low, high = bootstrap(MEAN, np.stack([values, values], 1))
        return float(values.mean()), low, high


@dataclass
class Composed:
    """The run and its four cases."""

    first: Ability
    second: Ability
    prompts: list[str]
    cases: list[Case]
    run: RunResult

    @property
    def best_other(self) -> Case:
        """The case with the largest product of the two rules, of those that do not have both parts on."""
        return max(self.cases[:-1], key=lambda case: float(case.both.mean()))

    @property
    def test(self) -> Paired:
        """Both parts beside that one, on the same prompts."""
        sides = [{i: (float(v), 0.0) for i, v in enumerate(case.both)} for case in (self.cases[-1], self.best_other)]
        found = paired(MEAN, [sides[0]], [sides[1]])
        assert found is not None
        return found


def ability(
    source: str,
    *,
    name: str | None = None,
    rule_name: str | None = None,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    longest: int | None = None,
    seed: int = 42,
) -> Ability:
    """Data by the name of a set, a file or a Hub name, and the rule for its answers.

    Rows whose answers have more than `longest` words are left out; of the others `limit` are drawn.

    Raises:
        DataError: the data cannot be had, or a row has no single answer.
        ReftuneError: there is no such rule, or its package is not installed.
    """
    if limit is not None and limit < 1:
        raise ReftuneError(f"{limit} rows are none to train on")
    scored = None if rule_name is None else rule(rule_name)
    rows = []
    for number, record in enumerate(records_of(source, data_dir=data_dir), start=1):
        try:
            rows.append(own_row(record))
        except DataError as error:
            raise DataError(f"{source}, row {number}: {error}") from error
    if longest is not None:
        rows = [row for row in rows if len(row.answer.split()) <= longest]
    if not rows:
        raise ReftuneError(f"{source}: no row has an answer of at most {longest} words")
    rows = rows if limit is None else sample(rows, limit, seed=seed)
    if scored is None:
        some = sample(rows, 100, seed=seed)
        scored = guess_rule([prompt_text(row.asked) for row in some], [row.answer for row in some])
    return Ability(name or Path(source).name.partition(".")[0], rows, scored, guessed=rule_name is None)


def hold_back(taken: Ability, count: int, *, seed: int = 42) -> None:
    """Move so many rows from those that are trained on to those that are not, with all that ask the same.

    Raises:
        ReftuneError: none would be left.
    """
    chosen = sample(taken.rows, count, seed=seed)
    keys = {row.key for row in chosen}
    left = [row for row in taken.rows if row.key not in keys]
    if not left:
        raise ReftuneError(
            f"{taken.name} has {len(taken.rows)} rows, of which {count} cannot be held back to ask; give prompts "
            "(--prompts), or hold back fewer (--test)"
        )
    taken.rows, taken.held = left, chosen


def check_two(first: Ability, second: Ability, r: Any) -> None:
    """Refuse what cannot be composed before anything takes time.

    Raises:
        ReftuneError: the rank is not even, or the two rules are one.
    """
    if not isinstance(r, int) or r < 2 or r % 2:
        raise ReftuneError(f"rank {r!r} is not valid; it is cut in two halves, so use an even number, such as 8")
    if first.rule.name == second.rule.name:
        raise ReftuneError(
            f"{first.name} and {second.name} are scored by one rule, {first.rule.name!r}, which cannot tell them "
            "apart; name another for one of them"
        )


def train_parts(
    first: Ability,
    second: Ability,
    *,
    model: str,
    output: str | Path,
    reft: Mapping[str, Any],
    training: Mapping[str, Any],
    max_length: int | None = 512,
    seed: int = 42,
    **how: Any,
) -> RunResult:
    """Train both in one run: `reft` has the rank r, which is cut in two halves, and further fields of `ReftConfig`.

    `how` goes to `train_run`.

    Raises:
        ReftuneError: the rank is not even, the two rules are one, or what `train_run` refuses.
    """
    check_two(first, second, reft.get("r"))
    r = reft["r"]
    run = RunConfig(
        model=model,
        data=[{**row.record, "subspaces": [part]} for part, own in enumerate((first, second)) for row in own.rows],
        output=str(output),
        max_length=max_length,
        seed=seed,
        reft={**reft, "subspaces": [list(range(r // 2)), list(range(r // 2, r))]},
        training=dict(training),
    )
    return train_run(run, **how)


def answer_cases(
    run: RunResult,
    first: Ability,
    second: Ability,
    prompts: Sequence[Mapping[str, Any]],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> Composed:
    """Greedy answers to the prompts with none, either and both parts on, which are rows of the same batches.

    `progress` is told how many are answered, four of each prompt.

    Raises:
        ReftuneError: there are no prompts.
    """
    if not prompts:
        raise ReftuneError("there are no prompts to ask")
    asked = [dict(prompt) for prompt in prompts for _ in CASES]
    texts = generate_texts(
        run.model,
        run.tokenizer,
        asked,
        subspaces=[parts for _ in prompts for parts in CASES.values()],
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        progress=progress,
    )
    shown = [prompt_text(prompt) for prompt in prompts]
    cases = [_case(name, shown, texts[i :: len(CASES)], (first.rule, second.rule)) for i, name in enumerate(CASES)]
    return Composed(first, second, shown, cases, run)


def _case(name: str, prompts: Sequence[str], answers: list[str], rules: tuple[Rule, Rule]) -> Case:
    scores = [[each.score(prompt, answer) for each in rules] for prompt, answer in zip(prompts, answers, strict=True)]
    return Case(name, answers, np.array(scores))


def prompt_text(record: Mapping[str, Any]) -> str:
    """What a record asks, as a person would read it."""
    turns = record.get("messages") or record.get("prompt") or record.get("instruction")
    if isinstance(turns, str):
        return "\n".join(part for part in (turns, record.get("input")) if part)
    return str(turns[-1].get("content") or "") if turns else ""
