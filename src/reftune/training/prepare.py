"""Whether a training run can take the short ways, and what they need before the first step.

Must not know: the command line, tasks.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ..errors import ReftuneError
from ..tuner import BASE, call_state, find_root, find_stacks
from .frozen import GAIN, FrozenPlan, frozen_plan
from .loss import ResponseLoss
from .reuse import FrozenPrefix, Unsupported, describe
from .rows import Row, batch_of, packed_batch, rows_of
from .shared import SharedPrefix

__all__ = [
    "OnFill",
    "check_packing",
    "check_parts",
    "dataset_rows",
    "evaluating",
    "is_causal",
    "prepare_loss",
    "prepare_reuse",
]

logger = logging.getLogger("reftune")

OnFill = Callable[[int, int], None]
# Rows on which the short ways are compared with the plain one before they are taken.
CHECKED = 2
# Rows by which it is judged whether reuse pays, before all are looked at.
SAMPLED = 256


def is_causal(model: nn.Module) -> bool:
    """Whether this is a causal language model, of which a line about what it cannot do is worth reading."""
    root: Any = find_root(model)
    return [stack.role for stack in find_stacks(root)] == ["causal"] and root.get_output_embeddings() is not None


def prepare_loss(
    model: nn.Module,
    inner: nn.Module,
    inputs: Mapping[str, Any],
    *,
    rounding: float,
    shared: SharedPrefix | None = None,
) -> ResponseLoss | None:
    """The loss of labelled tokens only, if it equals the model's own on the first rows of this batch.

    `model` is what is called, which may wrap `inner`; `rounding` is the relative error of its arithmetic.  What an
    earlier adapter on the same base has found is `shared`.
    """
    root: Any = find_root(inner)
    if shared is not None and shared.loss is not None and shared.loss.root is root:
        return shared.loss
    # without a type of loss, or with none of its own, transformers takes that of causal language models
    own = getattr(root, "loss_type", None) not in (None, "ForCausalLM") or "_loss_function" in root.__dict__
    if own or not is_causal(inner) or getattr(root.config, "output_router_logits", False):
        return None
    rows = rows_of(inputs)
    packed = packed_batch(inputs) if rows is None else None
    if rows is None and packed is None:
        return None
    few = inputs
    if rows is not None:
        few, rows = _shortest(inputs, rows)
    batch = packed or batch_of(rows or [], device=inputs["input_ids"].device)
    loss = ResponseLoss(root)
    # in training mode adapters may have dropout, and two calls would differ
    with evaluating(inner), torch.no_grad():
        out = loss.prepare(model, few)
        plain = out.get("loss") if isinstance(out, dict) else None
        found = None if loss.post is None else loss(model, batch) / len(batch.targets)
    if found is None or plain is None or not _equal(found, plain, rounding):
        logger.warning(
            "logits of all tokens are computed: the loss of %s is not a cross-entropy of its output embeddings",
            type(root).__name__,
        )
        return None
    if shared is not None:
        shared.loss = loss
    return loss


def _shortest(inputs: Mapping[str, Any], rows: Sequence[Row]) -> tuple[dict[str, Any], list[Row]]:
    """The shortest rows of a batch, without the columns that are padding in all of them."""
    chosen = sorted(sorted(range(len(rows)), key=lambda i: len(rows[i].ids))[:CHECKED])
    few: dict[str, Any] = {
        key: value[chosen] if isinstance(value, torch.Tensor) else [value[i] for i in chosen]
        for key, value in inputs.items()
    }
    mask = few.get("attention_mask")
    if mask is not None:
        kept = mask.bool().any(0)
        wide = [key for key, value in few.items() if isinstance(value, torch.Tensor) and value.shape == mask.shape]
        few.update({key: few[key][:, kept] for key in wide})
    return few, [rows[i] for i in chosen]


def prepare_reuse(
    model: nn.Module,
    loss: ResponseLoss,
    rows_of_run: Callable[[int | None], list[Row] | None],
    *,
    passes_of_run: Callable[[], float],
    folder: Path,
    limit_gb: float | None,
    on_fill: OnFill | None,
    is_main: bool,
    no_bar: bool,
    rounding: float,
    shared: SharedPrefix | None = None,
) -> FrozenPrefix | str:
    """A filled store, or in words why there is none; `rows_of_run(n)` are some n of the run's rows, or all.

    It is the `shared` one, where that has what the adapter needs.
    """
    plan = frozen_plan(model)
    if isinstance(plan, str):
        return plan
    of_shared = None if shared is None else shared.plan_of(plan)
    shares = 1 if shared is None or of_shared is None else shared.adapters
    rows = _rows_that_pay(of_shared or plan, rows_of_run, lambda: shares * passes_of_run())
    if not isinstance(rows, str) and shared is not None and (of_shared is None or not shared.covers(of_shared, rows)):
        of_shared = shared = None
        rows = _rows_that_pay(plan, rows_of_run, passes_of_run)
    if isinstance(rows, str):
        return rows
    frozen = FrozenPrefix(model, of_shared or plan, folder=folder, limit_gb=limit_gb, shared=shared)
    # the same example twice is kept once
    rows = sorted(dict.fromkeys(rows), key=lambda row: len(row.ids))
    try:
        size = frozen.open(rows)
        if is_main and size:
            logger.warning("%s", describe(size, len(rows), frozen.where))
        if shared is None or (frozen.plan.replayed, frozen.plan.sites) not in shared.checked:
            frozen.fill(rows[:CHECKED], lambda done: None)
            _check_replay(model, loss, frozen, rows[:CHECKED], rounding)
        if shared is not None:
            shared.checked.add((frozen.plan.replayed, frozen.plan.sites))
        with tqdm(
            total=len(rows), desc="frozen prefix", disable=no_bar or not is_main or on_fill is not None, leave=False
        ) as bar:
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                bar.update(count)
                if on_fill is not None:
                    on_fill(done, len(rows))

            frozen.fill(rows, advance)
    except Unsupported as error:
        frozen.close()
        return str(error)
    except BaseException:
        # what is on disk is found again when the run is resumed
        frozen.close(keep=True)
        raise
    return frozen


def _rows_that_pay(
    plan: FrozenPlan, rows_of_run: Callable[[int | None], list[Row] | None], passes_of_run: Callable[[], float]
) -> list[Row] | str:
    """All rows of the run, or in words why nothing is gained by replaying them."""
    found: list[Row] = []
    # to make all rows takes as long as some steps
    for count in (SAMPLED, None):
        rows = rows_of_run(count)
        if rows is None:
            return "the data are not a list of rows with tokens, labels and prompt lengths only"
        if not rows:
            return "the rotary embeddings of all rows depend on the longest row of their batch"
        passes = passes_of_run()
        gain = plan.gain(rows, passes)
        if gain < GAIN:
            left = "more work than without" if gain < 1 else f"{100 / gain:.0f} % of the work"
            return f"it would not pay ({passes:.3g} passes of these rows would still take {left})"
        found = rows
    return found


def check_packing(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether a packed batch could tell if the model keeps packed examples apart; it must hold two of them.

    Raises:
        ReftuneError: the model lets one example look at another.
    """
    root: Any = find_root(model)
    name = type(root).__name__
    if "position_ids" not in inspect.signature(root.forward).parameters:
        raise ReftuneError(f"packing=True: {name} takes no position_ids, so that it cannot tell packed examples apart")
    begins = (inputs["position_ids"][0] == 0).nonzero()[:, 0].tolist()
    if len(begins) < 2:
        return False
    first, stop = begins[1], begins[2] if len(begins) > 2 else inputs["input_ids"].shape[1]
    ids, positions = inputs["input_ids"][:, :stop], inputs["position_ids"][:, :stop]
    state = call_state(root)
    base = nullcontext() if state is None else state.announcing(adapter_names=(BASE,))
    with evaluating(model), torch.no_grad(), base:
        together = root(input_ids=ids, position_ids=positions, use_cache=False).logits[:, first:].float()
        alone = root(input_ids=ids[:, first:], use_cache=False).logits.float()
    rounding = 1e-3 if root.dtype in (torch.float32, torch.float64) else 5e-2
    if not torch.allclose(together, alone, rtol=rounding, atol=rounding * float(alone.abs().max())):
        raise ReftuneError(
            f"packing=True: in {name} with the attention {root.config._attn_implementation!r} a packed example sees "
            "the one before it; train without packing"
        )
    return True


def dataset_rows(dataset: Any, collator: Any, count: int | None = None) -> list[Row] | None:
    """Rows of a data set as the collator makes them; None if it has no length or holds more than rows.

    With `count`, so many from all over it.
    """
    if not hasattr(dataset, "__len__"):
        return None
    found: list[Row] = []
    for i in range(0, len(dataset), max(1, len(dataset) // count) if count else 1):
        rows = rows_of(collator([dataset[i]]))
        if rows is None:
            return None
        found += rows
    return found


def check_parts(model: Any, dataset: Any) -> None:
    """Refuse rows that name parts of the rank (`subspaces`) which no active adapter has: they would train all of it.

    Raises:
        ReftuneError: the adapters have no subspaces, or fewer parts.
    """
    if "subspaces" not in (getattr(dataset, "column_names", None) or []):
        return
    groups = [group for name in model.active_adapters for group in model.peft_config[name].resolved_groups()]
    counts = [len(group.subspaces) for group in groups if group.subspaces is not None]
    largest = max(max(parts, default=0) for parts in dataset["subspaces"])
    if not counts:
        raise ReftuneError(
            "the rows name parts of the adapter in 'subspaces', and its configuration has none; give it some, such as "
            "subspaces=[[0, 1], [2, 3]] for r=4, or leave the column out"
        )
    if largest >= min(counts):
        raise ReftuneError(
            f"a row names the part {largest} in 'subspaces', and the adapter has 0..{min(counts) - 1}; use one of these"
        )


def _check_replay(
    model: nn.Module, loss: ResponseLoss, frozen: FrozenPrefix, rows: Sequence[Row], rounding: float
) -> None:
    with evaluating(model), torch.no_grad():
        plain = loss(model, batch_of(rows, device=frozen.device))
        with frozen.replaying(rows) as batch:
            replayed = loss(model, batch)
    if not _equal(replayed, plain, rounding):
        raise Unsupported(
            f"{type(loss.root).__name__} gives another loss when it is replayed ({float(replayed):.6g}, plain "
            f"{float(plain):.6g})"
        )


def _equal(one: torch.Tensor, other: torch.Tensor, rounding: float) -> bool:
    """Operations are the same; batches and so their sums may differ."""
    return torch.allclose(one.float(), other.float(), rtol=rounding, atol=rounding)


class evaluating:
    """Evaluation mode for a while; modes are put back module by module."""

    def __init__(self, model: nn.Module) -> None:
        self.modes = [(module, module.training) for module in model.modules()]
        self.model = model

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *error: object) -> None:
        for module, mode in self.modes:
            module.training = mode
