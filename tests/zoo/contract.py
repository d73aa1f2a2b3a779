"""One contract for all architectures: what is edited is exactly what the positions name, however rows are laid out.

A class is right, or refused when its adapter is made, by a message that names it.  What is edited is observed: the
outputs of the blocks are recorded with the adapter and without, and must differ exactly where `Spec` says.

Must not know: how reftune finds blocks, prompts and columns.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from reftune import PositionError

from .recipe import tiny_model
from .subject import EVERYWHERE, SPECS, Place, Subject, changed, distance, logits, size

NEW_TOKENS = 3
# Of logits, relative to their largest: rounding of float32 through a few layers.
TOLERANCE = 2e-4
# A base whose own logits differ by more than this is not compared with itself.
OTHER = 1e-2
# Of states: an edit is about as large, what is not edited is the same, or nearly so where experts order their sums.
EDIT = 2e-5

Columns = set[tuple[int, int]]
Alone = dict[tuple[str | None, int], Tensor]


@dataclass
class Verdict:
    """What became of one class: right, refused, wrong or not tried."""

    task: str
    model_type: str
    name: str
    status: str = "right"
    why: str = ""
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def wrong(self, why: str) -> None:
        """The first fault is the reason."""
        self.status, self.why = "wrong", self.why or why
        self.faults.append(why)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def judge(task: str, model_type: str, name: str) -> Verdict:
    """Build a tiny model of the class and hold it to the contract."""
    verdict = Verdict(task, model_type, name)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        subject = _subject(verdict)
        if subject is None:
            return verdict
        try:
            subject.adapt()
        except Exception as error:  # noqa: BLE001 — told in the verdict
            named = isinstance(error, ValueError) and any(n in str(error) for n in (name, f"'{model_type}'"))
            verdict.status, verdict.why = ("refused", str(error)) if named else ("wrong", short(error))
            return verdict
        try:
            subject.logits(EVERYWHERE, subject.batch("left"))
        except PositionError as error:
            if not subject.two_stacks:
                verdict.wrong(short(error))
            verdict.note("rows padded left are refused when it is called")
            subject.sides = ("right",)
        for check in (_columns, _tokens_are_columns, _alone, _generate, _mixed, _saved):
            try:
                with torch.no_grad():
                    check(subject, verdict)
            except Exception as error:  # noqa: BLE001 — told in the verdict
                verdict.wrong(f"{check.__name__[1:]}: {short(error)}")
    return verdict


def short(error: BaseException) -> str:
    """The beginning, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _subject(verdict: Verdict) -> Subject | None:
    """The base, if it can be built and called, and computes the same twice."""
    try:
        base = tiny_model(verdict.model_type, verdict.name)
        subject = Subject(verdict.task, base)
        if subject.of_text and "attention_mask" not in subject.batch("left"):
            verdict.note("it takes no attention mask: give it rows without padding")
            subject.rows = subject.rows.of_one_length()
        one, two = (logits(base, subject.batch("left")) for _ in range(2))
        if torch.equal(one, two) and bool(torch.isfinite(one).any()):
            if subject.find_out_about_loss():
                verdict.note("the tiny base computes no loss of text alone: tried without labels")
            return subject
        verdict.why = "the tiny base computes other numbers in each call, or none"
    except Exception as error:  # noqa: BLE001 — whatever the recipe lacks
        verdict.why = short(error)
    verdict.status = "not tried"
    return None


def _compare(verdict: Verdict, what: str, change: Tensor, wanted: Columns, *, only: Columns | None = None) -> None:
    """Columns beside `only` may be edited or not."""
    if change.ndim != 2:
        verdict.wrong(f"{what}: the block returns {change.ndim + 1} dimensions")
        return
    got = {(row, column) for row, column in (change > EDIT).nonzero().tolist()}
    got = got if only is None else got & only
    if got != wanted:
        verdict.wrong(f"{what}: edited {sorted(got)} instead of {sorted(wanted)}")


# --- forward calls ----------------------------------------------------------------------------------------------------


def _modes(subject: Subject, place: Place, side: str) -> Iterator[tuple[str, dict[str, Any], list[int]]]:
    """How the prompt is told, the arguments that tell it, and the prompt of each row."""
    rows = subject.rows
    whole = [len(tokens) for tokens in rows.tokens]
    yield "neither", {}, whole
    if subject.has_responses:
        yield "prompt_length", {"prompt_length": rows.prompts}, rows.prompts
        if place.positions in ("f1+l1", "response") and not subject.loss_fails:
            yield "labels", {"labels": rows.labels(side)}, rows.prompts
    elif subject.task == "SEQ_CLS" and place.positions == "f1+l1":
        yield "labels", {"labels": torch.zeros(len(whole), dtype=torch.long)}, whole


def _columns(subject: Subject, verdict: Verdict) -> None:
    """The edited columns of forward calls, padded left and right."""
    for side in subject.sides:
        given = subject.batch(side)
        _, without = subject.base_record(side, lambda given=given: subject.model(**given))
        for place in subject.places:
            for mode, more, prompts in _modes(subject, place, side):
                call = lambda given=given, more=more: subject.model(**given, **more)  # noqa: E731
                _, with_it = subject.record(place.adapter, call)
                (change,) = changed(with_it[place.layer], without[place.layer])
                wanted = _expected(subject, place, prompts, side, change)
                # all tokens are edited together with the padding beside them, which no token looks at
                only = wanted if place.positions == "all" else None
                where = f"{place.positions} at {subject.blocks[place.layer]}, padded {side}, {mode}"
                _compare(verdict, where, change, wanted, only=only)


def _expected(subject: Subject, place: Place, prompts: list[int], side: str, change: Tensor) -> Columns:
    """Row and column of each token that the positions name."""
    spec, rows = SPECS[place.positions], subject.rows
    if subject.is_decoder_block(place.layer):
        return {(i, t) for i in range(len(prompts)) for t in spec.units(1, change.shape[1])}
    if not subject.of_text:
        return {(i, t) for i in range(len(prompts)) for t in spec.units(change.shape[1], change.shape[1])}
    return {
        (i, rows.start(i, side) + token)
        for i, tokens in enumerate(rows.tokens)
        for token in spec.units(prompts[i], len(tokens))
    }


def _tokens_are_columns(subject: Subject, verdict: Verdict) -> None:
    """Another token changes what the first block gets in that token's column only, so that columns are tokens."""
    if not subject.of_text:
        return
    seen: list[Tensor] = []

    def look(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.extend(x.detach().clone() for x in [*args[:1], kwargs.get("hidden_states")] if isinstance(x, Tensor))

    row, column = 1, 2
    one = subject.rows.of_one_length()
    two = copy.deepcopy(one)
    two.tokens[row][column] += 1
    block = subject.model.base_model.model.get_submodule(subject.blocks[0])
    handle = block.register_forward_pre_hook(look, with_kwargs=True)
    try:
        for rows in (one, two):
            subject.logits(None, subject.batch("left", rows))
    finally:
        handle.remove()
    if len(seen) != 2 or seen[0].shape != seen[1].shape:
        verdict.note("what its first block gets was not seen")
        return
    at = size(seen[1] - seen[0]).nonzero().tolist()
    # an embedding may look at its neighbours, but not at other rows
    if [row, column] not in at or any(other != row for other, _ in at):
        verdict.wrong(f"the token of row {row} and column {column} is at {at} for the first block")


def _alone(subject: Subject, verdict: Verdict) -> None:
    """Logits of padded rows against those of the row alone, as far as the base's own agree."""
    if not subject.of_text:
        return
    alone: Alone = {}
    adapters = [EVERYWHERE, *(p.adapter for p in subject.places if p.positions == "all")]
    for side in subject.sides:
        own = 0.0
        for adapter in (None, *adapters):
            more = subject.lengths() if adapter else {}
            together = subject.logits(adapter, subject.batch(side), **more)
            worst = max(
                _row_distance(subject, adapter, side, row, together[row], alone) for row in range(len(together))
            )
            if adapter is None:
                own = worst
                if own > TOLERANCE:
                    verdict.note(f"the base's own logits of a row padded {side} differ from those of the row alone")
            elif own < OTHER and worst > max(TOLERANCE, 5 * own):
                verdict.wrong(
                    f"{adapter}, padded {side}: logits differ from those of the row alone by {worst:.2g}, "
                    f"the base's by {own:.2g}"
                )


def _row_distance(
    subject: Subject,
    adapter: str | None,
    side: str,
    row: int,
    mine: Tensor,
    alone: dict[tuple[str | None, int], Tensor],
) -> float:
    rows = subject.rows
    one = rows.alone(row)
    if (adapter, row) not in alone:
        more = subject.lengths(one) if adapter else {}
        alone[adapter, row] = subject.logits(adapter, subject.batch(side, one), **more)[0]
    if mine.ndim == 2 and not subject.two_stacks:
        start = rows.start(row, side)
        mine = mine[start : start + len(rows.tokens[row])]
    return distance(mine, alone[adapter, row])


# --- generation -------------------------------------------------------------------------------------------------------


class _Forced(LogitsProcessor):
    """Makes every row go on with the same known tokens."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores = torch.full_like(scores, -1e4)
        scores[:, 3 + input_ids.shape[1] % 30] = 0
        return scores


def _generate(subject: Subject, verdict: Verdict) -> None:
    """Logits of each step with cache against without, and the edited columns of each call within `generate`."""
    if subject.task == "SEQ_CLS" or not subject.base.can_generate():
        return
    try:
        runs = {cache: _generated(subject, None, cache) for cache in (True, False)}
    except Exception as error:  # noqa: BLE001 — a base that does not generate
        verdict.note(f"the tiny base does not generate: {short(error)}")
        return
    own = [distance(a, b) for a, b in zip(runs[True][0], runs[False][0], strict=True)]
    if max(own) > TOLERANCE:
        verdict.note("the base's own logits with cache differ from those without")
    if max(own) > OTHER and _refuses_steps(subject, verdict):
        return
    observed = [p for p in subject.places if p.layer in subject.starts and p.positions in ("f1+l1", "response")]
    for adapter in [EVERYWHERE, *(place.adapter for place in observed)]:
        steps = {}
        for cache in (True, False):
            steps[cache], outputs = _generated(subject, adapter, cache)
            for place in (place for place in observed if place.adapter == adapter):
                calls = changed(outputs[place.layer], runs[cache][1][place.layer])
                _compare_calls(subject, verdict, place, calls, f"generate, {adapter}, cache {cache}")
        mine = [distance(a, b) for a, b in zip(steps[True], steps[False], strict=True)]
        differs = [b < OTHER and a > max(TOLERANCE, 5 * b) for a, b in zip(mine, own, strict=True)]
        step = next((i for i, found in enumerate(differs) if found), None)
        if step is not None:
            by = f"{mine[step]:.2g}, the base's by {own[step]:.2g}"
            verdict.wrong(f"{adapter}: step {step} with cache differs from without by {by}")


def _refuses_steps(subject: Subject, verdict: Verdict) -> bool:
    """Whether steps with a cache, which the base itself does wrong, are refused when they are called."""
    try:
        _generated(subject, EVERYWHERE, True)
    except PositionError:
        verdict.note("generating several rows at once is refused when it is called: use one row, or use_cache=False")
        return True
    return False


def _generated(subject: Subject, adapter: str | None, use_cache: bool) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Logits of each step, and what the blocks returned."""
    given = subject.batch("left", subject.rows.only_prompts())
    for name in ("decoder_input_ids", "position_ids"):
        given.pop(name, None)
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "num_beams": 1}
    options |= {"output_logits": True, "return_dict_in_generate": True, "logits_processor": [_Forced()]}
    output, blocks = subject.record(adapter, lambda: subject.model.generate(**given, **options, use_cache=use_cache))
    return list(output.logits), blocks


def _compare_calls(subject: Subject, verdict: Verdict, place: Place, calls: list[Tensor], what: str) -> None:
    spec, rows = SPECS[place.positions], subject.rows.only_prompts()
    decoder = subject.is_decoder_block(place.layer)
    for number, change in enumerate(calls):
        width = change.shape[-1]
        lengths = [len(tokens) for tokens in rows.tokens] if subject.of_text else [width] * len(rows.tokens)
        columns = max(lengths)
        if decoder:
            lengths, columns = [1] * len(lengths), 1
        # a call of as many columns as there are so far begins at the first
        growing = decoder or not subject.two_stacks
        past = columns + number - width if growing and width < columns + number else 0
        wanted = {
            (i, columns - n + t - past)
            for i, n in enumerate(lengths)
            for t in spec.units(n, past + width - (columns - n) if growing else n)
            if columns - n + t >= past
        }
        _compare(verdict, f"{what}, call {number}", change, wanted)


# --- adapters ---------------------------------------------------------------------------------------------------------


def _mixed(subject: Subject, verdict: Verdict) -> None:
    """A batch of two adapters and the base, row by row."""
    names = (subject.places[0].adapter, None, subject.places[-1].adapter)
    given, more = subject.batch(subject.sides[0]), subject.lengths()
    try:
        mixed = logits(subject.model, given, **more, adapter_names=[name or "__base__" for name in names])
    except (TypeError, ValueError) as error:
        if "Mixed batching is only supported" in str(error):
            verdict.note("mixed batches are refused by PEFT: its head is more than one linear layer")
        elif "adapter_names came to the model past PEFT" in str(error):
            verdict.note("mixed batches are refused, but for generate(): PEFT does not know them for this model")
        else:
            raise
        return
    for row, name in enumerate(names):
        if distance(mixed[row], subject.logits(name, given, **more)[row]) > TOLERANCE:
            verdict.wrong(f"row {row} of a mixed batch is not that of its adapter alone")


def _saved(subject: Subject, verdict: Verdict) -> None:
    """What is loaded again computes the same bits."""
    given = subject.batch(subject.sides[0])
    before = subject.logits(EVERYWHERE, given).nan_to_num()
    with tempfile.TemporaryDirectory() as folder:
        subject.model.save_pretrained(folder, selected_adapters=[EVERYWHERE])
        again = peft.PeftModel.from_pretrained(copy.deepcopy(subject.base), f"{folder}/{EVERYWHERE}").eval()
    if not torch.equal(before, logits(again, given).nan_to_num()):
        verdict.wrong("a saved adapter, loaded again, computes other logits")
    if torch.equal(before, subject.logits(None, given).nan_to_num()):
        verdict.wrong("the adapter changes nothing")
