"""A model with a ReFT adapter, called with a part of its edits switched off, and looked at from within.

Must not know: what is asked with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, TypeVar

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...config import ReftConfig, ReftGroup
from ...errors import ReftuneError
from ...interventions import Intervention
from ...positions import columns_of_slots, content_terms, named_tokens, segments_of_full_rows, token_units
from ...specs import PositionSpec, joint_span, own_slots, scope_range
from ...training.loss import head_as
from ...tuner import ReftLayer, find_root, find_stacks
from .replay import Kept
from .switches import EVERY, EditSite, Seen, Switch, Text, first_of, switched
from .texts import check_causal, text_of

T = TypeVar("T")

__all__ = ["Probe"]

# as TransformerLens has them
NAMES = {"block_output": "resid_post", "attention_output": "attn_out", "mlp_output": "mlp_out"}


class Probe:
    """A causal language model with one active ReFT adapter, in eval mode.

    Raises:
        ReftuneError: it is another kind of model, or its adapter does more than edit hidden states.
    """

    def __init__(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
        check_causal(model)
        active = model.active_adapters
        if len(active) != 1:
            raise ReftuneError(f"the adapters {active} are active together; choose one by set_adapter")
        self.adapter = active[0]
        config = model.peft_config[self.adapter]
        if not isinstance(config, ReftConfig):
            kind = config.to_dict().get("peft_type")
            raise ReftuneError(f"the adapter is of the method {kind}, not of ReFT: it edits no hidden states")
        if config.modules_to_save:
            raise ReftuneError(
                f"the adapter also replaces the modules {config.modules_to_save}, so what it does is not its edits "
                "alone; adapters without modules_to_save can be explained"
            )
        self.config = config
        self.model = model.eval()
        self.root: Any = find_root(model)
        self.tokenizer = tokenizer
        self.head: nn.Module = self.root.get_output_embeddings()
        self._kept: Kept | None = None
        self.sites = [site for site in self._sites() if site.module.groups.get(self.adapter)]

    @property
    def stack(self) -> nn.Module:
        """The module that holds the blocks."""
        return self.root.get_submodule(find_stacks(self.root)[0].path)

    @cached_property
    def blocks(self) -> list[nn.Module]:
        return [self.root.get_submodule(path) for path in find_stacks(self.root)[0].blocks]

    @property
    def layers(self) -> list[int]:
        """Layers with edits, in order."""
        return sorted({site.layer for site in self.sites})

    def phis(self, site: EditSite) -> list[Intervention]:
        """The Φ of a site, in their order."""
        return [site.module.phi(self.adapter, unit) for unit in site.module.units(self.adapter)]

    def _sites(self) -> Iterator[EditSite]:
        for path, module in self.root.named_modules():
            if not isinstance(module, ReftLayer) or self.adapter not in module.groups:
                continue
            group = module.groups[self.adapter][0]
            if group.layers is None:
                # named by target_modules, so that what it is for the stream is not known
                yield EditSite(path.rpartition(".")[0], module.layer, module, self.adapter, False)
            elif group.head is not None:
                yield EditSite(f"z.{module.layer}.{group.head}", module.layer, module, self.adapter, False)
            else:
                yield EditSite(f"{NAMES[group.component]}.{module.layer}", module.layer, module, self.adapter, True)

    # --- texts --------------------------------------------------------------------------------------------------------

    def text(self, prompt: dict[str, Any] | str, *, answer: str | None = None, max_new_tokens: int = 32) -> Text:
        """A prompt, a record or a raw text, with an answer; by default the adapter's own, greedily."""
        return text_of(self.model, self.tokenizer, prompt, answer=answer, max_new_tokens=max_new_tokens)

    def edits(self, site: EditSite, text: Text) -> list[tuple[int, int]]:
        """What a site edits of a text, in order: (token, number of the Φ that edits it)."""
        units = site.module.units(self.adapter)
        joint = joint_span([unit.group.spec for unit in units])
        slots = columns_of_slots(joint, text.prompt_length)
        found: list[tuple[int, int]] = []
        for number, unit in enumerate(units):
            spec = unit.group.spec
            if spec.scope == "span":
                own = [slots[slot] for slot in own_slots(spec, joint)[unit.part]]
            elif spec.scope == "terms":
                own = [column for column, phi in enumerate(_units(text, unit.group, joint)) if phi == unit.part.start]
            else:
                first, stop = scope_range(spec, text.prompt_length)
                own = range(first, len(text.ids) if stop is None else stop)
            found += [(column, number) for column in own if column is not None]
        return sorted(found)

    def columns(self, site: EditSite, text: Text) -> list[int]:
        """The tokens of a text that a site edits."""
        return sorted({column for column, _ in self.edits(site, text)})

    def labels(self, text: Text) -> list[str]:
        """A name for each token that says the same in other texts: f1, f2 … l2, l1 of the prompt; r1, r2 … behind it.

        Those of the f… that the adapter names; all others of the prompt are counted from its end.
        """
        joint = joint_span([group.spec for site in self.sites for group in site.module.groups[self.adapter]])
        slots = columns_of_slots(joint, text.prompt_length)[: joint.first]
        first = {column: f"f{i}" for i, column in enumerate(slots, start=1) if column is not None}
        prompt = [first.get(c, f"l{text.prompt_length - c}") for c in range(text.prompt_length)]
        return prompt + [f"r{i}" for i in range(1, len(text.answer) + 1)]

    def edited_columns(self, text: Text) -> list[int]:
        """The tokens that any site edits."""
        return sorted({column for site in self.sites for column in self.columns(site, text)})

    # --- calls --------------------------------------------------------------------------------------------------------

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Inside, what a text's calls begin with is computed once; the weights must stay as they are."""
        outer, self._kept = self._kept, self._kept or Kept()
        try:
            yield
        finally:
            self._kept = outer

    def each(self, text: Text, switches: Sequence[Switch], of: Callable[[Tensor], T]) -> list[T]:
        """For each switch `of` its logits [A + 1, V]: what follows the prompt, and what follows each answer token."""
        with self.keeping():
            assert self._kept is not None
            return self._kept.replay(self, text).each(switches, of)

    def logits(self, text: Text, switches: Sequence[Switch]) -> list[Tensor]:
        """For each switch [A + 1, V]: what follows the prompt, and what follows each of the A tokens of the answer."""
        return self.each(text, switches, lambda logits: logits)

    def log_likelihoods(self, text: Text, switches: Sequence[Switch]) -> list[float]:
        """Σ log p of the tokens of the answer, in nats, for each switch."""
        return self.each(text, switches, lambda logits: self.log_likelihood(text, logits))

    def log_likelihood(self, text: Text, logits: Tensor) -> float:
        """Σ log p of the tokens of the answer, in nats, by logits [A + 1, V].

        Raises:
            ReftuneError: there are none.
        """
        if not text.answer:
            raise ReftuneError("the answer has no tokens, so it cannot become likelier; name one by --answer")
        wanted = torch.tensor(text.answer, device=logits.device)[:, None]
        return float(logits[:-1].log_softmax(-1).gather(-1, wanted).sum())

    @torch.no_grad()
    def seen(self, text: Text, switch: Switch = EVERY) -> Seen:
        """States at the sites and behind the blocks, in one call without the head's work."""
        found = Seen()
        with ExitStack() as stack:
            stack.enter_context(switched(self.sites, [switch], len(text.ids), seen=found))
            for block in self.blocks:
                # behind the hook that edits
                handle = block.register_forward_hook(lambda _, args, out: found.blocks.append(first_of(out)[0].clone()))
                stack.callback(handle.remove)
            stack.enter_context(head_as(self.head, lambda of, hidden: of(hidden[:, -1:])))
            self.call(text, 1)
        return found

    def call(self, text: Text, rows: int, start: int = 0, **more: Any) -> Tensor:
        """Logits of a call of the text's tokens from `start` on, the same in all rows."""
        device = self.model.device
        ids = torch.tensor([text.ids[start:]], device=device).expand(rows, -1)
        if text.spans is not None:
            more["spans"] = torch.tensor([text.spans[start:]], device=device).expand(rows, -1)
        if start:
            more["prompt_ids"] = torch.tensor([text.ids], device=device).expand(rows, -1)
        if not start:
            more = {"attention_mask": torch.ones_like(ids), "use_cache": False, **more}
        lengths = torch.full((rows,), text.prompt_length, device=device)
        model: Any = self.model
        return model(input_ids=ids, prompt_length=lengths, **more).logits


def _units(text: Text, group: ReftGroup, joint: PositionSpec) -> list[int]:
    """Of each token the number of the group's Φ that edits it, −1 for none; of positions of terms."""
    spec, width = group.spec, len(text.ids)
    content = content_terms([spec])
    if text.spans is None and content_terms([spec], "span"):
        raise ReftuneError(f"positions {str(spec)!r}: nothing of this prompt is marked, so nothing says what is edited")
    marks = None if text.spans is None else torch.tensor([text.spans])
    prompt = segments_of_full_rows(1, width, torch.device("cpu"))._replace(end=torch.tensor([text.prompt_length]))
    named = named_tokens(content, torch.tensor([text.ids]), marks, prompt)
    return token_units(spec, group.tie, joint, prompt, 0, width, named)[0].tolist()
