"""`ReftModel`: ReFT as a PEFT tuner.  It puts `ReftLayer`s and hooks into a model; PEFT does the rest.

Must not know: training.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from ..config import ReftConfig, ReftGroup
from ..interventions import Steer
from ..peft_type import PREFIX
from .bases import share_bases, share_no_bases
from .calls import checkpoint_as_before, checkpoint_with_frame, install_generate, uninstall_generate
from .context import CallState, Role, strengths_of
from .fit import check_fit, pads_right
from .layer import BASE, MERGE_REFUSED, ReftLayer, edit_input, edit_output, groups_overlap
from .parts import config_of, fill, taken_apart
from .quantised import is_quantised, keep_float32
from .sites import Site, find_root, find_sites, find_stacks, layer_number, model_of_tokens, models_above, module_width
from .surplus import warn_of_surplus
from .targets import settle_targets
from .together import combined
from .watch import WATCHED, allow_whole_texts, unwatch, watch

__all__ = ["ReftModel"]

HOOK = "_reft_hook"
OTHERS = (BaseTunerLayer, AuxiliaryTrainingWrapper)


class ReftModel(BaseTuner):
    """Injects ReFT interventions into a model.  Made by `peft.get_peft_model`; see `ReftConfig`."""

    prefix = PREFIX
    tuner_layer_cls = ReftLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 — as PEFT declares it

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        below = model.peft_config if isinstance(model, PeftModel) else None
        if below is not None:
            # PEFT would write into the table of the adapters below, where a name such as "default" is taken.
            self.peft_config = {}
        super().__init__(model, peft_config, adapter_name, *args, **kwargs)
        if below is not None:
            model.peft_config = below  # type: ignore[assignment]

    # --- injection ------------------------------------------------------------------------------------------------

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        # The configuration says all of where the interventions are; PEFT's other way, reading it off the keys of a
        # state dict, would take the ReftLayer for the module that it edits.
        kwargs["state_dict"] = None
        existing = [layer for layer in self._layers() if adapter_name in layer.groups]
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except Exception:
            for layer in self._layers():
                if layer not in existing:
                    layer.forget(adapter_name)
            self._remove_layers(lambda layer: not layer.groups)
            raise
        for stack in find_stacks(self.model):
            share_bases(self.model.get_submodule(stack.path))

    def _prepare_adapter_config(self, peft_config: ReftConfig, model_config: dict) -> ReftConfig:  # type: ignore[override]
        sites = self._sites(peft_config)
        if sites is not None:
            self._check_sites(sites)
        settle_targets(self.model, peft_config, sites)
        return peft_config

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        # PEFT 0.20 would freeze what a method below, such as LoRA, trains
        others = [m for m in model.modules() if isinstance(m, OTHERS) and not isinstance(m, ReftLayer)]
        trained = [p for module in others for p in module.parameters() if p.requires_grad]
        super()._mark_only_adapters_as_trainable(model)
        for p in trained:
            p.requires_grad_(True)

    def _sites(self, config: ReftConfig) -> list[tuple[Site, ReftGroup]] | None:
        """All (site, group) pairs of the config, None if it names modules instead of layers."""
        if config.has_texts:
            raise ValueError(
                f"positions={config.positions!r}: which tokens read so, or begin a turn, is not known without the "
                "tokenizer; call config.resolve_texts(tokenizer) first, or name the ids: id(…), turn(…):"
            )
        groups = config.resolved_groups()
        if config.target_modules is not None and all(group.layers is None for group in groups):
            check_fit(self.model, None)
            return None
        check_fit(self.model, groups)
        stacks = find_stacks(self.model)
        sites = [(site, group) for group in groups for site in find_sites(self.model, stacks, group)]
        if config.layers is None:
            # target_modules is written next, and must not be taken for what the user chose
            config.layers = "all"
        return sites

    def _check_sites(self, sites: list[tuple[Site, ReftGroup]]) -> None:
        """Def. 3.2: two interventions of one adapter at one site must have disjoint positions."""
        for i, (site, group) in enumerate(sites):
            for other_site, other in sites[:i]:
                if site == other_site and groups_overlap(group, other):
                    raise ValueError(
                        f"groups: two interventions edit {group.component} of layer {site.layer} at overlapping "
                        f"positions ({other.positions!r} and {group.positions!r}); give them disjoint positions"
                    )

    @staticmethod
    def _check_target_module_exists(peft_config: ReftConfig, key: str) -> Any:  # type: ignore[override]
        return check_target_module_exists(peft_config, key)

    def _check_target_module_compatiblity(self, peft_config: Any, model: nn.Module, target_name: str) -> None:
        """PEFT refuses some targets of Mamba for methods that replace modules, which this one does not."""

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: ReftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        del target_name, parent, parameter_name
        state = self._watch_model()
        sites = self._sites(peft_config)
        here: dict[Site, list[ReftGroup]] = {}
        if sites is None:
            width = module_width(self.model, current_key, find_stacks(self.model))
            here[Site(current_key, layer_number(current_key), width)] = peft_config.resolved_groups()
        else:
            for site, group in sites:
                if site.path == current_key:
                    here.setdefault(site, []).append(group)
        for site, groups in here.items():
            layer = self._layer_at(site, target, state)
            layer.update_layer(adapter_name, groups, target)
        if peft_config.unknown_prompt == "whole":
            allow_whole_texts(find_root(self.model))

    def _layer_at(self, site: Site, host: nn.Module, state: CallState) -> ReftLayer:
        existing = host._modules.get(site.child)
        if isinstance(existing, ReftLayer):
            return existing
        has_tokens = isinstance(find_root(self.model), PreTrainedModel)
        layer = ReftLayer(site.width, state, layer=site.layer, host=host, has_tokens=has_tokens)
        layer.pads_right = pads_right(self.model)
        host.add_module(site.child, layer)
        if site.part is None:
            # before recorders of hidden states, which must see the edit
            handle = host.register_forward_hook(partial(edit_output, site.child), prepend=True)
        else:
            handle = host.register_forward_pre_hook(partial(edit_input, site.child, site.part))
        setattr(layer, HOOK, handle)
        return layer

    def _watch_model(self) -> CallState:
        """The call state of the model; the first time, hooks that keep it up to date are put in place."""
        root = find_root(self.model)
        if WATCHED in root.__dict__:
            return root.__dict__[WATCHED].state
        state = CallState()
        stacks = find_stacks(self.model)
        is_lm = isinstance(root, PreTrainedModel) and root.can_generate()
        roles: dict[nn.Module, Role] = dict.fromkeys([root, *models_above(self.model, stacks)], "above")
        roles |= {self.model.get_submodule(stack.path): stack.role for stack in stacks}
        if not stacks and (tokens := model_of_tokens(root)) is not None:
            roles[tokens] = "causal"
        for module, role in roles.items():
            watch(module, state, role=role, is_root=module is root, is_lm=is_lm)
        for stack in stacks:
            blocks = [self.model.get_submodule(path) for path in stack.blocks]
            checkpoint_with_frame(self.model.get_submodule(stack.path), blocks, state)
        install_generate(root, state)
        return state

    # --- what PEFT calls ------------------------------------------------------------------------------------------

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        found = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        warn_of_surplus(model, adapter_name, found)
        return found

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        # All that can be refused is checked first, so that a refused call changes nothing.
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        for module in self.model.modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                module.check_set_adapter(adapter_name)
        super().set_adapter(adapter_name, inference_mode)
        # An error only when the model is called: until then, PEFT's users may have all adapters active to freeze, save
        # or count them together.
        problem = next((p for layer in self._layers() if (p := layer.overlap(names)) is not None), None)
        if problem is not None:
            warnings.warn(f"calling the model will fail: {problem}", stacklevel=2)

    def set_vectors(
        self, vectors: Mapping[int, torch.Tensor], *, adapter_name: str = "default", strength: float | None = None
    ) -> None:
        """Set v of `steer` interventions, layer → [d], and with `strength` their a; see `ReftConfig.vector`.

        Raises:
            ValueError: a layer has no `steer` intervention of this adapter, or a vector has another width.
        """
        steered: dict[int, list[Steer]] = {}
        for layer in self._layers():
            phis = [layer.phi(adapter_name, unit) for unit in layer.units(adapter_name)]
            steered.setdefault(layer.layer, []).extend(phi for phi in phis if isinstance(phi, Steer))
        valid = sorted(number for number, phis in steered.items() if phis)
        unknown = sorted(set(vectors) - set(valid))
        if unknown:
            raise ValueError(
                f"vectors names layers {unknown} that the adapter {adapter_name!r} does not steer; it steers {valid}"
            )
        for number, vector in vectors.items():
            for phi in steered[number]:
                phi.set_vector(vector)
                if strength is not None:
                    phi.a.data.fill_(strength)

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "sum",
    ) -> None:
        """Add an adapter whose edits are those of `adapters` together, each times its weight; it is exact.

        combination_type: "sum" (or "linear", "cat"), "orthogonalize" or "disjoint"; see `tuner.together`.

        Raises:
            ValueError: names or weights are wrong, or the adapters collide in positions or ranks, or one is not an
                affine low-rank edit where another edits the same tokens; nothing is added then.
        """
        unknown = sorted(set(adapters) - set(self.peft_config))
        if unknown or not adapters or len(set(adapters)) < len(adapters):
            raise ValueError(f"adapters={list(adapters)!r} must be different ones of {', '.join(self.peft_config)}")
        if len(weights) != len(adapters):
            raise ValueError(f"{len(weights)} weights for {len(adapters)} adapters")
        if adapter_name in self.peft_config:
            raise ValueError(f"there is an adapter {adapter_name!r} already")
        saved = [name for name in adapters if self.peft_config[name].modules_to_save]
        if saved:
            raise ValueError(f"{saved[0]!r} was trained with modules of the model, which cannot be combined")
        own = dict(zip(adapters, strengths_of(list(weights)).tolist(), strict=True))
        layers = self._layers()
        groups = combined({name: taken_apart(layers, name) for name in adapters}, own, combination_type)
        first = self.peft_config[adapters[0]]
        with warnings.catch_warnings():
            # starts that do not matter, as all is filled in
            warnings.simplefilter("ignore")
            config = config_of(groups, task_type=first.task_type, inference_mode=True)
            config.base_model_name_or_path = first.base_model_name_or_path
            self.peft_config[adapter_name] = config
            try:
                self.inject_adapter(self.model, adapter_name)
            except Exception:
                del self.peft_config[adapter_name]
                raise
        fill(self._layers(), adapter_name, config, groups)

    def set_strength(self, adapter_name: str, value: float) -> None:
        """Multiply the adapter's edits by `value` from now on: 1 is as trained, 0 the base, −1 the opposite.

        It is no part of the adapter and is not saved; a call's own `strength` is multiplied by it.

        Raises:
            ValueError: there is no such adapter, or the value is not a finite number.
        """
        if adapter_name not in self.peft_config:
            valid = ", ".join(map(repr, self.peft_config))
            raise ValueError(f"there is no adapter {adapter_name!r}; valid are {valid}")
        (strength,) = strengths_of([value]).tolist()
        for layer in self._layers():
            layer.strengths.pop(adapter_name, None)
            if strength != 1 and adapter_name in layer.groups:
                layer.strengths[adapter_name] = strength

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        # Interventions are made in float32, which PEFT's default asks for.  Without it they take the dtype of what
        # they edit, as the parameters of other methods do.
        quantised = is_quantised(find_root(self.model))
        for layer in self._layers():
            if not autocast_adapter_dtype:
                layer.cast_adapter(adapter_name)
            elif quantised:
                for unit in layer.units(adapter_name):
                    keep_float32(layer.phi(adapter_name, unit))

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        self._check_adapter_names(names, *args, **kwargs)
        with ExitStack() as stack:
            for module in self.modules():
                if isinstance(module, AuxiliaryTrainingWrapper):
                    handle = module.register_forward_pre_hook(partial(_pass_adapter_names, names), with_kwargs=True)
                    stack.callback(handle.remove)
            stack.enter_context(self._watch_model().announcing(adapter_names=tuple(names)))
            yield

    def _check_adapter_names(self, names: list[str], *args: Any, **kwargs: Any) -> None:
        unknown = set(names) - {BASE} - set(self.peft_config)
        if unknown:
            raise ValueError(
                f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unknown))}; "
                f"valid are {', '.join([*self.peft_config, BASE])}"
            )
        candidates = [kwargs.get(key) for key in ("input_ids", "inputs", "inputs_embeds")] + list(args[:1])
        tokens = next((x for x in candidates if isinstance(x, torch.Tensor)), None)
        if tokens is not None and len(tokens) != len(names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(names)} and {len(tokens)} respectively."
            )

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(MERGE_REFUSED)

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        if merge:
            self._check_merge_allowed()
        self._remove_layers(lambda layer: True)
        if any(isinstance(module, BaseTuner) for module in self.model.modules()):
            # another method's adapter, on which this one was put, stays as it is
            return self.model
        return super()._unload_and_optionally_merge(False)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # only modules_to_save are replaced: PEFT's own version looks for a weight that a whole head does not have
        setattr(parent, child_name, new_module)

    def _remove_layers(self, condition: Callable[[ReftLayer], bool]) -> None:
        """Remove the layers of which the condition is true, and all hooks when none is left."""
        for module in list(self.model.modules()):
            for name, child in list(module._modules.items()):
                if isinstance(child, ReftLayer) and condition(child):
                    child.__dict__[HOOK].remove()
                    delattr(module, name)
        if self._layers():
            return
        uninstall_generate(find_root(self.model))
        for module in self.model.modules():
            share_no_bases(module)
            unwatch(module)
            checkpoint_as_before(module)

    def _layers(self) -> list[ReftLayer]:
        return [module for module in self.model.modules() if isinstance(module, ReftLayer)]


def _pass_adapter_names(names: list[str], module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    return args, {**kwargs, "adapter_names": names}
