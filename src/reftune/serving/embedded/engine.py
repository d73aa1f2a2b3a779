"""The queue, and the one thread that generates: mixed batches of rows, each with its adapter.

A batch is one `generate` of transformers.  Requests that arrive while it runs do not wait for its longest row: when
one waits and there is room for it, the batch is broken off once it has run for `slice_steps` tokens, and its unfinished
rows go on in the next batch together with those that waited, in the order of their arrival.  To go on is a prefill of
prompt and answer so far, with the prompt's length, so that edits stay where they were.  Where there is no room, a
request waits until a row ends.  Rows that have ended are padding until their batch is broken off or over.  Adapters
come and go between batches, which are broken off for it in the same way.

Must not know: HTTP, JSON.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ...data.style import PromptStyle
from ...errors import ReftuneError
from ..adapters import AdapterFiles
from .bank import AdapterBank, Entry
from .rows import Row
from .sampling import sample

__all__ = ["Engine", "EngineOptions", "EngineStopped", "QueueFull", "UnknownAdapter", "Watcher"]

logger = logging.getLogger("reftune.serving")


class QueueFull(ReftuneError):
    """As many rows wait as may."""


class EngineStopped(ReftuneError):
    """The engine takes no rows any more."""


class UnknownAdapter(ReftuneError):
    """No adapter of this name is loaded."""


class Watcher:
    """Is told what happens; by default nothing comes of it.  Called in the worker thread."""

    def batch(self, rows: int) -> None: ...

    def row_done(self, row: Row) -> None: ...


@dataclass(frozen=True)
class EngineOptions:
    """Limits; see `ServeSettings`."""

    max_batch_size: int = 16
    max_batch_tokens: int = 16384
    batch_wait: float = 0.0
    slice_steps: int = 32
    max_queue: int = 256
    max_adapters: int = 512


class Engine:
    """Use: `start`, `submit` rows from any thread, `stop`."""

    def __init__(
        self, model: Any, *, options: EngineOptions, pad_token: int = 0, watcher: Watcher | None = None
    ) -> None:
        self.bank = AdapterBank(model, limit=options.max_adapters)
        self.options = options
        self.pad_token = pad_token
        self.watcher = watcher or Watcher()
        # what the model's own file says of sampling and of ends must not come in by the back door
        model.generation_config = GenerationConfig()
        self._queue: deque[Row] = deque()
        self._batch: list[Row] = []
        self._commands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._leaving: list[tuple[Entry, Future[Any]]] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="reftune-engine", daemon=True)

    # --- from any thread ------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def stop(self, *, abort: bool = False) -> None:
        """Take no more rows, finish those that there are, or with `abort` break them off, and end the thread."""
        with self._changed:
            self._stopping = True
            for row in (*self._queue, *self._batch) if abort else ():
                row.cancel()
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """Rows of the batch that runs."""
        return len(self._batch)

    @property
    def waiting(self) -> int:
        """Rows that have not begun."""
        with self._changed:
            return self._waiting()

    def submit(self, rows: Sequence[Row], adapter: str | None = None) -> None:
        """Queue rows that belong together, for the adapter of this name or for the base model.

        Raises:
            QueueFull, EngineStopped, UnknownAdapter: none of the rows is queued.
            ReftuneError: there are more rows than could ever wait.
        """
        if len(rows) > self.options.max_queue:
            raise ReftuneError(f"{len(rows)} answers are asked for at once; at most {self.options.max_queue}")
        with self._changed:
            if self._stopping:
                raise EngineStopped("the server is stopping")
            if self._waiting() + len(rows) > self.options.max_queue:
                raise QueueFull(f"{self._waiting()} answers are waiting, which is as many as may; try again later")
            entry = None
            if adapter is not None:
                entry = self.bank.find(adapter, use=len(rows))
                if entry is None:
                    raise UnknownAdapter(f"no adapter is called {adapter!r}")
            for row in rows:
                row.adapter = entry
            self._queue.extend(rows)
            self._changed.notify_all()

    def load(
        self, name: str, files: AdapterFiles, *, style: PromptStyle | None = None, replace: bool = False
    ) -> Future[Entry]:
        """Make an adapter ready in this thread, and put it on the model between batches.

        Raises:
            AdapterError: it does not fit the model.
        """
        prepared = self.bank.prepare(files, style)
        return self._command(lambda: self.bank.put(name, prepared, replace=replace))

    def unload(self, name: str) -> Future[None]:
        """Take an adapter away: at once for new rows; done when the rows that need it have ended."""
        done: Future[None] = Future()
        taken = self._command(lambda: self._leaving.append((self.bank.take(name), done)))

        def pass_on(future: Future[Any]) -> None:
            error = future.exception()
            if error is not None:
                done.set_exception(error)

        taken.add_done_callback(pass_on)
        return done

    def _command(self, run: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        with self._changed:
            if self._stopping:
                raise EngineStopped("the server is stopping")
            self._commands.append((run, future))
            self._changed.notify_all()
        return future

    def _waiting(self) -> int:
        return sum(not row.started for row in self._queue)

    # --- in the worker thread -------------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._wait():
            self._run_commands()
            # what nobody needs is gone now, not when the next batch is over
            self._sweep()
            rows = self._next_batch()
            if rows:
                self._run(rows)
                self._settle(rows)
            self._sweep()

    def _wait(self) -> bool:
        """Until there is something to do; False when the end has come."""
        with self._changed:
            idle = not self._queue
            while not (self._queue or self._commands or self._stopping):
                self._changed.wait()
            if idle and self._queue:
                until = time.monotonic() + self.options.batch_wait
                while len(self._queue) < self.options.max_batch_size and (left := until - time.monotonic()) > 0:
                    self._changed.wait(left)
            return bool(self._queue or self._commands) or not self._stopping

    def _run_commands(self) -> None:
        while self._commands:
            run, future = self._commands.popleft()
            try:
                future.set_result(run())
            except Exception as error:  # noqa: BLE001 — it belongs to whoever asked
                future.set_exception(error)

    def _next_batch(self) -> list[Row]:
        """From the front of the queue, as many rows as there is room for, and one in any case."""
        self.drop_cancelled()
        with self._changed:
            rows: list[Row] = []
            while self._queue and (not rows or self._fits(rows, self._queue[0])):
                rows.append(self._queue.popleft())
            self._batch = rows
            for row in rows:
                row.started = True
        return rows

    def drop_cancelled(self) -> None:
        """Rows in the queue that nobody waits for any more; at every step, as they take the places of others."""
        with self._changed:
            dropped = [row for row in self._queue if row.cancelled.is_set()]
            if dropped:
                self._queue = deque(row for row in self._queue if row not in dropped)
        for row in dropped:
            row.end("cancelled")
            self._done(row)

    def _fits(self, rows: Sequence[Row], other: Row) -> bool:
        count = len(rows) + 1
        width = max(row.length for row in (*rows, other))
        return count <= self.options.max_batch_size and count * width <= self.options.max_batch_tokens

    def lets_others_in(self, rows: Sequence[Row]) -> bool:
        """Whether a batch with these rows left is to be broken off."""
        with self._changed:
            return bool(self._commands) or (bool(self._queue) and self._fits(rows, self._queue[0]))

    def _run(self, rows: list[Row]) -> None:
        self.watcher.batch(len(rows))
        try:
            self._generate(rows)
        except Exception as error:  # the thread must live on
            logger.exception("a batch of %d rows failed", len(rows))
            left = [row for row in rows if row.finish is None]
            for row in left:
                if len(rows) == 1:
                    row.end("error", error=f"{type(error).__name__}: {error}")
                else:
                    # one row must not be the end of others
                    self._run([row])

    @torch.inference_mode()
    def _generate(self, rows: list[Row]) -> None:
        width = max(row.length for row in rows)
        device = self.bank.base.device
        pads = [width - row.length for row in rows]
        ids = [[self.pad_token] * pad + row.all_tokens for pad, row in zip(pads, rows, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in pads]
        marks = [[0] * pad + list(row.request.spans or ()) for pad, row in zip(pads, rows, strict=True)]
        spans = [row + [0] * (width - len(row)) for row in marks]
        step = _Step(self, rows)
        self.bank.generate(
            [row.adapter for row in rows],
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            strength=[row.request.strength for row in rows],
            spans=torch.tensor(spans, device=device),
            prompt_length=torch.tensor([len(row.request.prompt) for row in rows], device=device),
            generation_config=GenerationConfig(
                max_new_tokens=max(row.left for row in rows), do_sample=False, pad_token_id=self.pad_token
            ),
            logits_processor=LogitsProcessorList([step]),
            stopping_criteria=StoppingCriteriaList([_Stop(step)]),
        )

    def _settle(self, rows: Sequence[Row]) -> None:
        """Rows that have not ended are the first of the next batch."""
        with self._changed:
            self._queue.extendleft(row for row in reversed(rows) if row.finish is None)
            self._batch = []
        for row in rows:
            if row.finish is not None:
                self._done(row)

    def _done(self, row: Row) -> None:
        self.watcher.row_done(row)
        if row.adapter is not None:
            self.bank.release(row.adapter)

    def _sweep(self) -> None:
        self.bank.sweep()
        staying = [(entry, done) for entry, done in self._leaving if not self.bank.is_gone(entry)]
        for entry, done in self._leaving:
            if self.bank.is_gone(entry):
                done.set_result(None)
        self._leaving = staying


class _Step(LogitsProcessor):
    """One token for each row: chosen here, so that greedy decoding can only take it."""

    def __init__(self, engine: Engine, rows: Sequence[Row]) -> None:
        self.engine = engine
        self.rows = rows
        self.steps = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.engine.drop_cancelled()
        for row in self.rows:
            if row.cancelled.is_set():
                row.end("cancelled")
        choices = sample(scores, [row.sampler if row.finish is None else None for row in self.rows])
        tokens = [self.engine.pad_token if choice is None else choice.token for choice in choices]
        for row, choice in zip(self.rows, choices, strict=True):
            if choice is not None:
                row.accept(choice)
        self.steps += 1
        forced = torch.full_like(scores, -torch.inf)
        return forced.scatter_(1, torch.tensor(tokens, device=scores.device)[:, None], 0.0)

    @property
    def is_over(self) -> bool:
        """Whether all rows have ended, or others are to be let in."""
        live = [row for row in self.rows if row.finish is None]
        if not live:
            return True
        return self.steps >= self.engine.options.slice_steps and self.engine.lets_others_in(live)


class _Stop(StoppingCriteria):
    """Ends the batch as a whole: rows that have ended are filled up by the step, not by transformers."""

    def __init__(self, step: _Step) -> None:
        self.step = step

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return torch.full((input_ids.shape[0],), self.step.is_over, device=input_ids.device)
