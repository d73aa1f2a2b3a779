"""One frozen base in one process, on which trials are trained and scored one after the other.

What no trial changes of the rows is computed once for all of them (`training.shared`), for the rows that choose too.

Must not know: Optuna, how a trial's choices are made, files of a search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..comparison.fit import training_arguments
from ..config import ReftConfig
from ..data import build_dataset
from ..data.tokenize import IGNORE
from ..errors import ReftuneError
from ..evaluation.runner import TaskResult, evaluate_rows
from ..evaluation.scores import ACCURACY
from ..evaluation.tasks.base import Task
from ..models import load_base, save_adapter
from ..training import ReftTrainer, SharedPrefix
from ..training.forced import Forced, forced, rows_to_force
from ..training.gates import Gates
from ..training.shared import adapted
from ..tuner import find_stacks
from .rows import SearchRows, records_of
from .settings import SearchConfig
from .space import Space, reft_of, training_of

__all__ = ["Bench", "Diverged", "Outcome"]

# Parts of a training after which it is looked at whether it is worth going on.
RUNGS = (1 / 9, 1 / 3)
FEWEST_STEPS = 3
# Tokens of the longest answer up to which answers are forced.
SHORT = 16

Ask = Callable[[int, float], bool]
"""(rung, loss of the rows that choose) → whether to stop"""


class Diverged(ReftuneError):
    """The loss of a trial is not a number."""


@dataclass(frozen=True)
class Outcome:
    """What a trial found on the rows that choose; without a score if it was stopped."""

    score: float | None
    loss: float
    steps: int
    rungs: dict[int, float] = field(default_factory=dict)
    result: TaskResult | None = None
    """Where answers were generated."""


class Bench:
    """The base model, the rows as tokens, and what trials share.  Use it in `with`."""

    def __init__(
        self, config: SearchConfig, task: Task, rows: SearchRows, *, folder: Path, space: Space | None = None
    ) -> None:
        self.config, self.task, self.rows = config, task, rows
        self.base, self.tokenizer = load_base(config.model, dtype=config.dtype)
        stacks = find_stacks(self.base)
        if [stack.role for stack in stacks] != ["causal"]:
            raise ReftuneError(f"{config.model!r} is not a causal language model, and a search trains those only")
        self.count, self.folder = len(stacks[0].blocks), folder
        space = space or config.parsed_space()
        space.check_layers(self.count)
        limit = config.max_length
        self._train = build_dataset(records_of(task, rows.train), self.tokenizer, max_length=limit)
        self._chooses = build_dataset(records_of(task, rows.chooses), self.tokenizer, max_length=limit)
        places = [ReftConfig(positions=p, layers=reft_of({"layers": n}, self.count)["layers"]) for p, n in space.places]
        self.shared = SharedPrefix(places, self.count, folder=folder / "shared", limit_gb=config.reuse_limit_gb)
        self.is_forced = config.scoring == "forced" or (config.scoring == "auto" and self._answers_are_short())

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self.shared.close()

    def _answers_are_short(self) -> bool:
        rows: Any = self._chooses
        longest = max(sum(label != IGNORE for label in row["labels"]) for row in rows)
        return self.task.metric is ACCURACY and longest <= SHORT

    def reft(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of `ReftConfig` for a trial's choices."""
        return reft_of(chosen, self.count)

    def run(
        self,
        chosen: Mapping[str, Any],
        *,
        seed: int,
        ask: Ask | None = None,
        on_size: Callable[[int], None] | None = None,
        save: Path | None = None,
        tells: bool = False,
    ) -> Outcome:
        """Train an adapter and score it on the rows that choose; with `tells` on the others, by generated answers.

        `on_size` is told how many parameters are trained, before any is.  With `save` the adapter is written there.

        Raises:
            Diverged: the loss is not a number.
            ReftuneError, ValueError: there is no such adapter, or the model cannot be scored.
        """
        set_seed(seed)
        config = ReftConfig(**{"task_type": "CAUSAL_LM", **self.reft(chosen)})
        with adapted(self.base, config) as model:
            if on_size is not None:
                on_size(model.get_nb_trainable_parameters()[0])
            trainer = self.trainer(model, chosen, seed)
            watch = _Rungs(trainer, rows_to_force(trainer, self._chooses), ask)
            trainer.add_callback(watch)
            trainer.train()
            steps = trainer.state.global_step
            found = None if watch.stopped else watch.look()
            loss = watch.losses[max(watch.losses)] if found is None else found.loss
            if not math.isfinite(loss):
                raise Diverged(f"the loss is {loss}: training diverged at learning rate {chosen['learning_rate']:g}")
            if found is None:
                return Outcome(None, loss, steps, watch.losses)
            if save is not None:
                save_adapter(model, save)
            if self.is_forced and not tells:
                return Outcome(found.share, loss, steps, watch.losses)
            result = self._generate(model, self.rows.tells if tells else self.rows.chooses)
            return Outcome(result.score, loss, steps, watch.losses, result)

    def _generate(self, model: PeftModel, rows: list[Any]) -> TaskResult:
        model.eval()
        result = evaluate_rows(model, self.tokenizer, self.task, rows, batch_size=self.config.eval_batch_size)
        if result.score is None:
            raise ReftuneError(
                f"{self.task.title} has no score of its own (a judge has to compare answers), so nothing can be chosen "
                "by it; with scoring: forced the share of answers counts that are given word for word"
            )
        return result

    def trainer(
        self, model: PeftModel, chosen: Mapping[str, Any], seed: int, *, gates: Gates | None = None
    ) -> ReftTrainer:
        """A trainer of the rows, as trials have it."""
        config = self.config
        settings = {
            "training": training_of(chosen),
            "epochs": config.epochs,
            "batch_size": config.batch_size,
            "seconds": None,
            "seed": seed,
        }
        trainer = ReftTrainer(
            model=model,
            args=training_arguments(settings, self.folder / "checkpoints", logging_strategy="no"),
            train_dataset=self._train,
            processing_class=self.tokenizer,
            # gates are trained once: nothing would be shared
            shared=None if gates is not None else self.shared,
            gates=gates,
            on_fill=lambda done, total: None,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        return trainer


class _Rungs(TrainerCallback):
    """Looks at the rows that choose on the way, and ends what is not worth going on with."""

    def __init__(self, trainer: ReftTrainer, rows: list[Any], ask: Ask | None) -> None:
        self.trainer, self.rows, self.ask = trainer, rows, ask
        self.losses: dict[int, float] = {}
        self.stopped = False

    def look(self) -> Forced:
        return forced(self.trainer, self.rows)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.ask is None:
            return
        for rung, part in enumerate(RUNGS):
            due = math.ceil(part * state.max_steps)
            if due == state.global_step and FEWEST_STEPS <= due < state.max_steps:
                self.losses[rung] = loss = self.look().loss
                self.stopped = not math.isfinite(loss) or self.ask(rung, loss)
                control.should_training_stop = self.stopped
