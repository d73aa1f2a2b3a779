"""`ProcessTrainer`: training in several processes, with the frozen base sharded by FSDP2 and all that is trained whole.

An adapter is small and its parameters stay float32, so every process keeps a copy of it: FSDP2 is told to leave it out,
and its gradients are averaged here, once a step.  DDP needs none of this.

Must not know: interventions, batches, losses, the command line.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from accelerate import DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import Trainer

from ..errors import ReftuneError

__all__ = ["ProcessTrainer", "average_gradients", "end_processes", "prepare_plugin", "trained_modules"]


class ProcessTrainer(Trainer):
    """`transformers.Trainer` that keeps trained parameters whole where FSDP2 shards the base.

    Raises:
        ReftuneError: FSDP is asked for in a way that cannot keep them whole.
    """

    @property
    def is_sharded(self) -> bool:
        """Whether the base lies in pieces over the processes, by FSDP, DeepSpeed, or as transformers loaded it."""
        on_load = getattr(self, "is_distributed_loading_by_transformers", False)
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled or on_load)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state: Any = self.accelerator.state
        if state.distributed_type == DistributedType.MULTI_CPU and _fsdp_is_asked_for():
            # accelerate forgets without a word that FSDP was asked for where there are only CPUs
            given: dict[str, Any] = self.args.fsdp_plugin_args or {}
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**given)
            if self.accelerator.mixed_precision != "no":
                state.fsdp_plugin.set_mixed_precision(self.accelerator.mixed_precision)
            # accelerate copies the one to the other, both ways
            state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True
        if self.is_fsdp_enabled:
            prepare_plugin(state.fsdp_plugin)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        # Trainer calls this just before the model is sharded, and what is to be stepped is what must stay whole
        if self.is_fsdp_enabled and self.optimizer is None:
            model: Any = self.model
            state: Any = self.accelerator.state
            state.fsdp_plugin.ignored_modules = trained_modules(model)
            for module in state.fsdp_plugin.ignored_modules:
                module.to(self.args.device)
            for parameter in _trained(model):
                dist.broadcast(parameter.data, src=0)
        return super().create_optimizer(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        if self.is_fsdp_enabled and self.accelerator.sync_gradients:
            model: Any = self.model
            average_gradients(_trained(model))
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter, from the main process; of a sharded base nothing is gathered."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        model: Any = self.model
        whole = {name: value for name, value in model.state_dict().items() if not isinstance(value, DTensor)}
        self._save(output_dir, state_dict=whole)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)


def trained_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that hold a trained parameter themselves."""
    return [module for module in model.modules() if any(p.requires_grad for p in module.parameters(recurse=False))]


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Mean over all processes, in one message a dtype.

    A parameter that took part in some processes only has the gradient 0 in the others; one that took part nowhere keeps
    none, as in a single process.
    """
    for dtype in dict.fromkeys(p.dtype for p in parameters):
        chosen = [p for p in parameters if p.dtype == dtype]
        used = torch.tensor([p.grad is not None for p in chosen]).to(chosen[0])
        flat = torch.cat([used, *((p if p.grad is None else p.grad).detach().flatten() for p in chosen)])
        start = len(chosen)
        for p in chosen:
            if p.grad is None:
                flat[start : start + p.numel()] = 0
            start += p.numel()
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        anywhere = flat[: len(chosen)].tolist()
        for p, taken, mean in zip(
            chosen, anywhere, flat[len(chosen) :].split([p.numel() for p in chosen]), strict=True
        ):
            p.grad = mean.view_as(p) if taken else None


def end_processes() -> None:
    """Close the group of processes, if there is one; at the end of a program.

    An interpreter that ends with the group's threads still running sometimes aborts (seen with gloo: "terminate called
    without an active exception"), which the launcher takes for a failed run.
    """
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _trained(model: nn.Module) -> list[nn.Parameter]:
    found = [p for p in model.parameters() if p.requires_grad]
    if any(isinstance(p, DTensor) for p in found):
        raise ReftuneError("FSDP2 has sharded trained parameters; keeping them whole needs torch 2.7 or newer")
    return found


def _fsdp_is_asked_for() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def prepare_plugin(plugin: FullyShardedDataParallelPlugin) -> None:
    """Refuse what cannot keep trained parameters whole, and mend what is worse than need be.

    Raises:
        ReftuneError: a field has a value that is not supported.
    """
    refused = {
        "fsdp_version": (plugin.fsdp_version, 2, "version 1 mixes trained and frozen parameters in one tensor"),
        "fsdp_cpu_ram_efficient_loading": (plugin.cpu_ram_efficient_loading, False, "it shards adapters too"),
        "fsdp_activation_checkpointing": (
            plugin.activation_checkpointing,
            False,
            "it calls blocks outside of their model; gradient_checkpointing=True of TrainingArguments works",
        ),
    }
    for name, (given, wanted, why) in refused.items():
        if given != wanted:
            raise ReftuneError(f"{name}={given!r} is not supported ({why}); use {wanted!r}")
    policy = plugin.mixed_precision_policy
    if isinstance(policy, MixedPrecisionPolicy):
        # accelerate would also round what the model returns, and so the loss, to three digits
        plugin.mixed_precision_policy = replace(policy, output_dtype=None)
