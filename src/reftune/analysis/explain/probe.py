"""A model with a ReFT adapter, called with a part of its edits switched off, and looked at from within.

Edits are switched off where they are made: a state that is not to be edited stays as it is, bit for bit, and all that
comes after it is computed anew.

Must not know: what is asked with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...config import ReftConfig
from ...data import encode_prompt, tokenize_record
from ...errors import ReftuneError
from ...generation import GREEDY, end_tokens
from ...interventions import Intervention
from ...models import refuse_encoder
from ...positions import columns_of_slots
from ...specs import joint_span, own_slots, scope_range
from ...training.loss import forward_as, head_as
from ...training.prepare import is_causal
from ...tuner import ReftLayer, find_root, find_stacks

__all__ = ["EVERY", "NONE", "EditSite", "Probe", "Seen", "Switch", "Text", "first_of", "size", "wide"]

# Elements of logits, and tokens, of one call.
LOGITS, TOKENS = 2**25, 2**12
# as TransformerLens has them
NAMES = {"block_output": "resid_post", "attention_output": "attn_out", "mlp_output": "mlp_out"}


@dataclass(frozen=True)
class Text:
    """A prompt and an answer to it, as tokens."""

    ids: tuple[int, ...]
    prompt_length: int
    pieces: tuple[str, ...]
    """Each token as it is read."""
    answer_text: str

    @property
    def answer(self) -> tuple[int, ...]:
        return self.ids[self.prompt_length :]


@dataclass(frozen=True)
class EditSite:
    """One place where the adapter edits."""

    name: str
    """`resid_post.16`: the output of block 16; `attn_out.16`, `mlp_out.16`, `z.16.3`; else the path of the module."""
    layer: int
    module: ReftLayer
    in_stream: bool
    """Whether the edit is added to the residual stream as it is, so that a logit lens means something."""


@dataclass(frozen=True)
class Switch:
    """Which of the adapter's edits are on; None: all."""

    sites: frozenset[str] | None = None
    columns: frozenset[int] | None = None
    without: tuple[str, int, int] | None = None
    """Site, number of its Φ, row of the rank: this one is off."""


EVERY, NONE = Switch(), Switch(sites=frozenset())


@dataclass
class Seen:
    """What one call passed through, for its first row."""

    before: dict[str, Tensor] = field(default_factory=dict)
    """By site, [T, d] as it came."""
    after: dict[str, Tensor] = field(default_factory=dict)
    """By site, [T, d] with the edit."""
    blocks: list[Tensor] = field(default_factory=list)
    """[T, d] behind each block."""

    def delta(self, site: str) -> Tensor:
        return self.after[site] - self.before[site]


class Probe:
    """A causal language model with one active ReFT adapter, in eval mode.

    Raises:
        ReftuneError: it is another kind of model, or its adapter does more than edit hidden states.
    """

    def __init__(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
        refuse_encoder(model.config.name_or_path or type(model).__name__, model.config)
        if not is_causal(model):
            raise ReftuneError(
                f"{type(find_root(model)).__name__} is no causal language model, of which alone an adapter can be "
                "explained: there is no next token that its edits make likelier"
            )
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
                yield EditSite(path.rpartition(".")[0], module.layer, module, False)
            elif group.head is not None:
                yield EditSite(f"z.{module.layer}.{group.head}", module.layer, module, False)
            else:
                yield EditSite(f"{NAMES[group.component]}.{module.layer}", module.layer, module, True)

    # --- texts --------------------------------------------------------------------------------------------------------

    def text(self, prompt: dict[str, Any] | str, *, answer: str | None = None, max_new_tokens: int = 32) -> Text:
        """A prompt, a record or a raw text, with an answer; by default the adapter's own, greedily."""
        start = encode_prompt(prompt, self.tokenizer)
        if answer is not None:
            example = tokenize_record(_answered(prompt, answer), self.tokenizer)
            return self._text(example.input_ids, example.prompt_length)
        ids = torch.tensor([start], device=self.model.device)
        generator: Any = self.model
        ends = end_tokens(getattr(self.model, "generation_config", None), self.tokenizer)
        arguments = {**GREEDY, "pad_token_id": self.tokenizer.pad_token_id, "eos_token_id": ends}
        with torch.inference_mode():
            made = generator.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, **arguments
            )
        return self._text(made[0].tolist(), len(start))

    def _text(self, ids: Sequence[int], prompt_length: int) -> Text:
        pieces = tuple(str(self.tokenizer.decode([token])) for token in ids)
        return Text(tuple(ids), prompt_length, pieces, str(self.tokenizer.decode(list(ids[prompt_length:]))))

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

    @torch.no_grad()
    def logits(self, text: Text, switches: Sequence[Switch]) -> Iterator[Tensor]:
        """For each switch [A + 1, V]: what follows the prompt, and what follows each of the A tokens of the answer."""
        kept = text.prompt_length - 1
        size = max(1, min(LOGITS // (self.root.config.get_text_config().vocab_size * (len(text.answer) + 1)), TOKENS))
        size = max(1, min(size, TOKENS // len(text.ids)))
        for start in range(0, len(switches), size):
            chosen = switches[start : start + size]
            with self._switched(text, chosen), head_as(self.head, lambda of, hidden: of(hidden[:, kept:])):
                found = self._call(text, len(chosen))
            # a model that does not call its head has them all
            found = found[:, -(len(text.answer) + 1) :]
            yield from wide(found)

    def log_likelihoods(self, text: Text, switches: Sequence[Switch]) -> list[float]:
        """Σ log p of the tokens of the answer, in nats, for each switch."""
        return [self.log_likelihood(text, found) for found in self.logits(text, switches)]

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
            stack.enter_context(self._switched(text, [switch], found))
            for block in self.blocks:
                # behind the hook that edits
                handle = block.register_forward_hook(lambda _, args, out: found.blocks.append(first_of(out)[0].clone()))
                stack.callback(handle.remove)
            stack.enter_context(head_as(self.head, lambda of, hidden: of(hidden[:, -1:])))
            self._call(text, 1)
        return found

    def _call(self, text: Text, rows: int) -> Tensor:
        ids = torch.tensor([text.ids], device=self.model.device).expand(rows, -1)
        lengths = torch.full((rows,), text.prompt_length, device=self.model.device)
        model: Any = self.model
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), prompt_length=lengths, use_cache=False).logits

    @contextmanager
    def _switched(self, text: Text, switches: Sequence[Switch], seen: Seen | None = None) -> Iterator[None]:
        """Inside, row i of a call of the text has the edits of switch i."""
        with ExitStack() as stack:
            for site in self.sites:
                gate = torch.tensor([_gate(site.name, switch, len(text.ids)) for switch in switches])
                if seen is not None or not gate.all():
                    stack.enter_context(_edit_as(site, gate, seen))
                for number, phi in enumerate(self.phis(site)):
                    rows = [
                        s.without[2] if s.without and s.without[:2] == (site.name, number) else -1 for s in switches
                    ]
                    if max(rows) >= 0:
                        stack.enter_context(_without_rows(phi, rows))
            yield


def first_of(output: Any) -> Tensor:
    """The hidden state that a block returns, alone or first of several."""
    return output[0] if isinstance(output, (tuple, list)) else output


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def size(x: Tensor) -> float:
    """The Euclidean norm of x [d]."""
    return float(wide(x).norm())


def _gate(name: str, switch: Switch, width: int) -> list[bool]:
    if switch.sites is not None and name not in switch.sites:
        return [False] * width
    return [switch.columns is None or column in switch.columns for column in range(width)]


@contextmanager
def _edit_as(site: EditSite, gate: Tensor, seen: Seen | None) -> Iterator[None]:
    """Inside, the site edits where gate [B, T] is true."""
    own: Callable[[Tensor], Tensor] = site.module.edit
    attributes: dict[str, Any] = vars(site.module)

    def edit(h: Tensor) -> Tensor:
        edited = torch.where(gate.to(h.device).reshape(*h.shape[:-1], 1), own(h), h)
        if seen is not None:
            seen.before[site.name] = h.reshape(*gate.shape, -1)[0].clone()
            seen.after[site.name] = edited.reshape(*gate.shape, -1)[0].clone()
        return edited

    attributes["edit"] = edit
    try:
        yield
    finally:
        del attributes["edit"]


def _without_rows(phi: Intervention, rows: Sequence[int]) -> Any:
    """Inside, row i of a batch has no row `rows[i]` of the rank; −1: it has all."""
    own = phi.forward
    mask = torch.ones(len(rows), 1, phi.options.r)
    for i, row in enumerate(rows):
        if row >= 0:
            mask[i, 0, row] = 0

    def forward(h: Tensor, rank_mask: Tensor | None = None, *basis: Tensor) -> Tensor:
        here = mask.to(h.device)
        return own(h, here if rank_mask is None else rank_mask * here, *basis)

    return forward_as(phi, forward)


def _answered(prompt: dict[str, Any] | str, answer: str) -> dict[str, Any]:
    """The record of this prompt whose response is this answer."""
    if isinstance(prompt, str):
        return {"prompt": prompt, "completion": answer}
    if "messages" in prompt:
        turns = list(prompt["messages"])
        while turns and turns[-1].get("role") == "assistant":
            turns.pop()
        return {**prompt, "messages": [*turns, {"role": "assistant", "content": answer}]}
    return {**prompt, ("output" if "instruction" in prompt else "completion"): answer}
