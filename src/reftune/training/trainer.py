"""`ReftTrainer`: transformers' Trainer, told of `prompt_length`, without the work that a ReFT does not need.

Must not know: tasks, the command line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainingArguments

from ..card import tell
from ..data import PromptStyle, ReftCollator
from ..data.style import write_styles
from ..errors import DataError, ReftuneError
from ..tuner import call_state, find_root
from .checkpoints import Room, damage, last_whole
from .frozen import frozen_plan
from .gates import Gates
from .groups import check_factors, with_factors
from .loss import ResponseLoss
from .measure import EditLog, counted, counted_of
from .prepare import OnFill, check_packing, check_parts, dataset_rows, is_causal, prepare_loss, prepare_reuse
from .processes import ProcessTrainer
from .reuse import FrozenPrefix
from .rows import Batch, Row, batch_of, call_tokens, packed_batch, rows_of, split
from .shared import SharedPrefix
from .store import remove_folder
from .whole import WholeCheckpoints

__all__ = ["REUSE", "ReftTrainer"]

logger = logging.getLogger("reftune")

COLUMNS = ("prompt_length", "subspaces", "spans")
REUSE = ("auto", "off")


class ReftTrainer(WholeCheckpoints, ProcessTrainer):
    """`transformers.Trainer` for a PEFT model with a ReFT adapter: the same losses and gradients, with less work.

    - The column `prompt_length` of the data reaches the collator, and the default collator is `ReftCollator`, so that
      the prompt is known even where labels are not passed to the model.
    - The loss of a causal model is the cross-entropy of labelled tokens only, computed in chunks of them.
    - Rows of very different lengths in one batch are computed in several calls, as far as that saves padding.
    - `reuse="auto"`: what no trained parameter can change of an example is computed once and replayed in every epoch,
      where that is exact and pays; otherwise one line says why not.  It is kept in memory up to `reuse_limit_gb` (by
      default half of what is free), else on disk below `output_dir`.  `on_fill(done, total)` takes the place of the
      progress bar while it is computed.  `reuse="off"` never does so.
    - `shared`: a store of such prefixes that several adapters on the same base have in common.
    - Checkpoints end with a mark that lists their files; what is not whole is not resumed from.
    - `packing=True`: the rows of a batch are laid end to end in one row, without padding.
    - Every logged loss has beside it `edit_ratio`, the mean of ‖edit‖ / ‖state‖ over the tokens edited in that step,
      `edit_top_layer`, the layer that has the largest part of their sum, and `edit_top_share`, this part.
    - `lr_groups={"b": 10}`: the tensors of that name, or a module trained beside the interventions, have ten times the
      learning rate (`parameter_groups` makes the same groups for other trainers).
    - `gates=Gates(model)`: which layers and groups of positions are needed is learnt along the way.

    All of this is left aside where the model or the arguments ask for more: label smoothing, a loss function or a head
    of one's own, `torch_compile`, metrics that need logits.

    Raises:
        DataError: no collator is given and no tokenizer to make one from.
        ReftuneError: an unknown value of `reuse`; `packing` with a collator of one's own; factors in `lr_groups` that
            are no numbers above 0, and in `train` names that nothing trained has; `gates` in several processes.
    """

    def __init__(
        self,
        model: PeftModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        reuse: str = "auto",
        reuse_limit_gb: float | None = None,
        shared: SharedPrefix | None = None,
        packing: bool = False,
        lr_groups: Mapping[str, float] | None = None,
        gates: Gates | None = None,
        on_fill: OnFill | None = None,
        **kwargs: Any,
    ) -> None:
        if reuse not in REUSE:
            raise ReftuneError(f"reuse={reuse!r} is not valid; use one of {', '.join(map(repr, REUSE))}")
        if packing and data_collator is not None:
            raise ReftuneError("packing=True needs the collator of ReftTrainer; give no data_collator")
        if data_collator is None:
            tokenizer = getattr(processing_class, "tokenizer", processing_class)
            if not isinstance(tokenizer, PreTrainedTokenizerBase):
                raise DataError(
                    "ReftTrainer needs processing_class=tokenizer, from which it makes a ReftCollator, or a "
                    "data_collator of your own that adds prompt_length"
                )
            data_collator = ReftCollator(tokenizer, packing=packing)
        check_factors(lr_groups or {})
        self.lr_groups = dict(lr_groups or {})
        self.gates = gates
        self.reuse = reuse
        self.reuse_limit_gb = reuse_limit_gb
        self.shared = shared
        self.packing = packing
        self._packing_unchecked = packing
        self._on_fill = on_fill
        # None: not looked into yet; False: the model's own loss is taken
        self._loss: ResponseLoss | bool | None = None
        self._frozen: FrozenPrefix | None = None
        self._reuse_is_due = False
        self._edits = EditLog()
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if gates is not None and (self.args.world_size > 1 or self._is_special()):
            raise ReftuneError(
                "gates are learnt in one process and with the plain loss; take one, and prune before others"
            )
        if isinstance(model, PeftModel):
            check_parts(model, train_dataset)
        style = PromptStyle.of_dataset(train_dataset)
        if style is not None and isinstance(model, PeftModel):
            for name in model.active_adapters:
                config: Any = model.peft_config[name]
                config.prompt_style = style

        self.add_callback(Room)

    # --- Trainer's own calls ------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        if resume_from_checkpoint is True:
            quiet = not self.is_world_process_zero()
            resume_from_checkpoint = str(last_whole(Path(self.args.output_dir or "."), quiet=quiet))
        elif resume_from_checkpoint and (why := damage(Path(resume_from_checkpoint))):
            raise ReftuneError(f"{resume_from_checkpoint!r} is no whole checkpoint: {why}")
        self._loss, self._reuse_is_due = None, self.reuse == "auto"
        try:
            result = super().train(resume_from_checkpoint, *args, **kwargs)
        except BaseException:
            self._drop_frozen(keep=True)
            raise
        self.tell_card()
        if self._frozen is not None and not self._frozen.stays:
            self._drop_frozen()
        if self._frozen is None:
            # of a run that was killed
            remove_folder(self._frozen_folder())
        return result

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.lr_groups and is_new:
            optimizer.param_groups[:] = with_factors(optimizer.param_groups, self._inner(), self.lr_groups)
        if self.gates is not None and is_new:
            rate = self.gates.learning_rate
            optimizer.add_param_group({"params": [self.gates.a], "lr": rate, "weight_decay": 0.0})
        return optimizer

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        if self.gates is None:
            return super().training_step(model, *args, **kwargs)
        self.gates.begin(self.state.global_step, self.state.max_steps, self.args.seed)
        loss = super().training_step(model, *args, **kwargs)
        self.accelerator.backward(self.gates.cost() / self.args.gradient_accumulation_steps)
        return loss

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.gates is not None:
            self.gates.load(Path(resume_from_checkpoint))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self._drop_frozen_if_stale()
        return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        self._drop_frozen_if_stale()
        return super().predict(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.tell_card()
        super()._save(output_dir, state_dict)
        model = self._inner()
        if isinstance(model, PeftModel):
            write_styles(model.peft_config, output_dir or self.args.output_dir or ".")

    def tell_card(self, data: str | None = None) -> None:
        """Have the model cards of the active adapters say how they were trained, and on which file or data set."""
        model = self._inner()
        if isinstance(model, PeftModel):
            tell(model, self.args, self.state, rows=self.train_dataset, data=data)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not return_outputs:
            loss = self._short_loss(model, inputs, num_items_in_batch)
            if loss is not None:
                return loss
        with self._measuring(lambda: counted_of(inputs)):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, Any, Any]:
        if prediction_loss_only and inputs.get("labels") is not None:
            inputs = self._prepare_inputs(inputs)
            count = self._get_num_items_in_batch([inputs], self.args.device)
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self._short_loss(model, inputs, count)
            if loss is not None:
                return loss.detach(), None, None
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            over_processes: Any = self.accelerator.reduce
            logs |= self._edits.values(self.state, lambda totals: over_processes(totals, "sum"))
        super().log(logs, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._edits.epoch_steps = kwargs.get("num_update_steps_per_epoch")
        if self.state.global_step >= self.state.max_steps:
            # resumed from the end of a run: Trainer would look for that after one step more, unless an epoch ends here
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _save_more(self, checkpoint: Path) -> None:
        if self.gates is not None:
            self.gates.save(checkpoint)

    def _set_signature_columns_if_needed(self) -> None:
        # Trainer drops what forward() does not name; these two are taken off by the model's hooks
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns or []
        self._signature_columns = [*columns, *(name for name in COLUMNS if name not in columns)]

    # --- the short ways -----------------------------------------------------------------------------------------------

    def _short_loss(self, model: nn.Module, inputs: dict[str, Any], items: Any) -> Tensor | None:
        """The loss as Trainer would have it of the model; None if it must be asked of the model."""
        if self._packing_unchecked and "position_ids" in inputs:
            self._packing_unchecked = not check_packing(self._inner(), inputs)
        special = self._is_special()
        if self._loss is None and not special:
            known = {"rounding": self._rounding(), "shared": self.shared}
            self._loss = prepare_loss(model, self._inner(), inputs, **known) or False
        if self._reuse_is_due and model.training:
            self._reuse_is_due = False
            self._prepare_reuse()
        if special or not isinstance(self._loss, ResponseLoss) or self._is_too_long(inputs):
            return None
        rows = rows_of(inputs)
        packed = packed_batch(inputs) if rows is None else None
        if rows is None and packed is None:
            return None
        total = self._sum_of(model, rows or []) if packed is None else self._loss_of(self._loss, model, packed)
        if not self.model_accepts_loss_kwargs or items is None:
            count = len(packed.targets) if packed is not None else sum(row.labelled for row in rows or [])
            return total / count
        loss = total / (items.to(total.device) if isinstance(items, Tensor) else items)
        if self.args.average_tokens_across_devices:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return loss

    def _sum_of(self, model: nn.Module, rows: Sequence[Row]) -> Tensor:
        """The loss summed over the labels of the rows."""
        loss = self._loss
        assert isinstance(loss, ResponseLoss)
        with self._shared_bases():
            return torch.stack([self._loss_of(loss, model, batch) for _, batch in self.batches(rows)]).sum()

    def _loss_of(self, loss: ResponseLoss, model: nn.Module, batch: Batch) -> Tensor:
        with self._measuring(lambda: counted(batch)):
            return loss(model, batch)

    def _measuring(self, kept: Callable[[], Tensor | None]) -> AbstractContextManager[None]:
        return self._edits.measuring(self._inner(), self.args, self.state, kept)

    def batches(self, rows: Sequence[Row]) -> Iterator[tuple[list[Row], Batch]]:
        """The rows in parts of similar length, each as a batch to call the model with before the next one is taken."""
        frozen = self._frozen
        if frozen is not None and not frozen.is_current():
            self._say_off("the base model or its active adapters were changed in the meantime")
            self._drop_frozen()
            frozen = None
        held = [] if frozen is None else [row for row in rows if frozen.holds(row)]
        other = [row for row in rows if frozen is None or not frozen.holds(row)]
        if other and self.accelerator.num_processes > 1:
            # one call in every process
            held, other = [], list(rows)
        for part in self._parts(other, [len(row.ids) for row in other]):
            yield part, batch_of(part, device=self.args.device)
        for part in self._parts(held, frozen.widths(held) if frozen is not None and held else []):
            assert frozen is not None
            with frozen.replaying(part) as batch:
                yield part, batch

    def _parts(self, rows: Sequence[Row], widths: Sequence[int]) -> list[list[Row]]:
        if not rows:
            return []
        if self.accelerator.num_processes > 1:
            # wrappers of several processes count calls
            return [list(rows)]
        return [[rows[i] for i in part] for part in split(widths, overhead=call_tokens(self.args.device))]

    def _shared_bases(self) -> Any:
        state = call_state(self._loss.root) if isinstance(self._loss, ResponseLoss) else None
        if self.accelerator.num_processes > 1 or state is None:
            return nullcontext()
        return state.announcing(bases={})

    def _is_special(self) -> bool:
        """Whether Trainer is asked for more than a mean cross-entropy of one plain call."""
        parallel = getattr(self.accelerator, "parallelism_config", None)
        return bool(
            self.label_smoother is not None
            or self.compute_loss_func is not None
            or self.args.n_gpu > 1
            # it wants gradients to flow through what each module returned
            or self.is_deepspeed_enabled
            or self.args.torch_compile
            or self.args.use_liger_kernel
            or (parallel is not None and (parallel.cp_enabled or parallel.sp_enabled))
        )

    def _is_too_long(self, inputs: dict[str, Any]) -> bool:
        """Whether a row's result depends on the longest row of its call, so that no other calls may be made."""
        assert isinstance(self._loss, ResponseLoss)
        limit = self._loss.longest
        return limit is not None and inputs["input_ids"].shape[1] > limit

    def _rounding(self) -> float:
        root: Any = find_root(self._inner())
        exact = root.dtype in (torch.float32, torch.float64) and not getattr(root, "is_quantized", False)
        return 1e-4 if exact and self.accelerator.mixed_precision == "no" else 3e-2

    def _prepare_reuse(self) -> None:
        self._drop_frozen()
        if not is_causal(self._inner()):
            return
        reason = self._why_no_reuse()
        if reason is None and isinstance(self._loss, ResponseLoss):
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                found = prepare_reuse(
                    self._inner(),
                    self._loss,
                    self._rows_of_run,
                    passes_of_run=self._passes,
                    folder=self._frozen_folder(),
                    limit_gb=self.reuse_limit_gb,
                    on_fill=self._on_fill,
                    is_main=self.is_world_process_zero(),
                    no_bar=bool(self.args.disable_tqdm),
                    rounding=self._rounding(),
                    shared=self.shared,
                )
            if isinstance(found, FrozenPrefix):
                self._frozen = found
            else:
                reason = found
        if reason is not None:
            self._say_off(reason)

    def _why_no_reuse(self) -> str | None:
        if not isinstance(self._loss, ResponseLoss):
            return "the loss is not the plain one of a causal language model"
        if self.args.neftune_noise_alpha is not None:
            return "neftune_noise_alpha makes the embeddings random"
        if self.packing:
            return "packing=True lays rows end to end"
        if self.is_sharded:
            return "the base model lies in pieces over several processes"
        return None

    def _rows_of_run(self, count: int | None = None) -> list[Row] | None:
        """Rows of the training data, and of those for evaluation if they are looked at along the way."""
        chosen: list[Any] = [self.train_dataset]
        if self.args.eval_strategy != "no" and self.eval_dataset is not None:
            chosen += list(self.eval_dataset.values()) if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        found: list[Row] = []
        for dataset in chosen:
            if getattr(dataset, "column_names", None) is not None:
                dataset = self._remove_unused_columns(dataset)
            rows = dataset_rows(dataset, self.data_collator, count)
            if rows is None:
                return None
            found += rows
        assert isinstance(self._loss, ResponseLoss)
        limit = self._loss.longest
        return [row for row in found if limit is None or len(row.ids) < limit]

    def _passes(self) -> float:
        """Epochs, as the run counts them."""
        if self.args.max_steps <= 0:
            return self.args.num_train_epochs
        dataset: Any = self.train_dataset
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return self.args.max_steps * rows / len(dataset)

    def _inner(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    def _say_off(self, reason: str) -> None:
        if self.is_world_process_zero():
            logger.warning("frozen-prefix reuse is off: %s", reason)

    def _frozen_folder(self) -> Path:
        return Path(self.args.output_dir or ".") / "frozen-prefix" / str(self.args.process_index)

    def _drop_frozen_if_stale(self) -> None:
        if self._frozen is not None:
            plan = frozen_plan(self._inner())
            if isinstance(plan, str) or not self._frozen.is_valid(plan):
                self._drop_frozen()

    def _drop_frozen(self, *, keep: bool = False) -> None:
        if self._frozen is not None:
            self._frozen.close(keep=keep)
            self._frozen = None
