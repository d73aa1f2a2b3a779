"""A token for each row of a batch, by the row's own options and its own random numbers.

What a row draws does not depend on the rows beside it: each has a generator, one number of it a token.  The order is
vLLM's: log-probabilities are those of the model, before anything; then biases, penalties, temperature, min_p, top_k,
top_p.

Must not know: requests, adapters, text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Choice", "RowSampler", "SamplingOptions", "cut_unlikely", "sample"]

SMALLEST_TEMPERATURE = 1e-5
SEED_RANGE = 1 << 63
# Of so many of the most probable tokens it is looked first which can be drawn.
HEAD = 256


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens of one row are chosen."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that the answer has already."""
    frequency_penalty: float = 0.0
    """The same, times how often."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that prompt or answer have."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None
    """How many of the most probable tokens to report beside the chosen one.  None: nothing."""

    @property
    def greedy(self) -> bool:
        return self.temperature < SMALLEST_TEMPERATURE

    @property
    def cuts(self) -> bool:
        """Whether some tokens cannot be drawn."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@dataclass(frozen=True)
class Choice:
    """A chosen token, with log-probabilities if they were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """(token, log-probability), most probable first."""


class RowSampler:
    """What the choice of one row's next token depends on besides the logits."""

    def __init__(self, options: SamplingOptions, prompt: Iterable[int]) -> None:
        self.options = options
        self.counts: Counter[int] = Counter()
        self.prompt = frozenset(prompt) if options.repetition_penalty != 1 else frozenset()
        self.generator = torch.Generator()
        if options.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(options.seed % SEED_RANGE)
        self.bias = _pairs(options.logit_bias)

    def penalise(self, logits_V: Tensor) -> None:
        """Biases and penalties, in place."""
        o = self.options
        if self.bias is not None:
            tokens, values = (t.to(logits_V.device) for t in self.bias)
            logits_V[tokens] += values
        if o.repetition_penalty != 1:
            seen = torch.tensor(sorted(self.prompt | set(self.counts)), device=logits_V.device, dtype=torch.long)
            chosen = logits_V[seen]
            logits_V[seen] = torch.where(chosen > 0, chosen / o.repetition_penalty, chosen * o.repetition_penalty)
        if (o.presence_penalty or o.frequency_penalty) and self.counts:
            tokens = torch.tensor(list(self.counts), device=logits_V.device)
            times = torch.tensor(list(self.counts.values()), device=logits_V.device, dtype=logits_V.dtype)
            logits_V[tokens] -= o.presence_penalty + o.frequency_penalty * times

    def draw(self) -> float:
        """The row's next random number, from 0 to below 1."""
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def chose(self, token: int) -> None:
        """Remember the token for the penalties."""
        self.counts[token] += 1


def sample(logits_BV: Tensor, samplers: Sequence[RowSampler | None]) -> list[Choice | None]:
    """A choice for each row; None for rows without a sampler, which are finished."""
    live = [i for i, sampler in enumerate(samplers) if sampler is not None]
    rows = [sampler for sampler in samplers if sampler is not None]
    if not rows:
        return [None] * len(samplers)
    logits_NV = (logits_BV if len(live) == len(samplers) else logits_BV[live]).float()
    reported = [i for i, row in enumerate(rows) if row.options.logprobs is not None]
    logprobs_MV = torch.log_softmax(logits_NV[reported], -1) if reported else None
    changed = logits_NV.clone()
    for i, row in enumerate(rows):
        row.penalise(changed[i])
    tokens = changed.argmax(-1).tolist()
    drawn = [i for i, row in enumerate(rows) if not row.options.greedy]
    if drawn:
        for i, token in zip(drawn, _draw(changed[drawn], [rows[i] for i in drawn]), strict=True):
            tokens[i] = token
    found: list[Choice | None] = [None] * len(samplers)
    for i, (place, row) in enumerate(zip(live, rows, strict=True)):
        row.chose(tokens[i])
        found[place] = Choice(tokens[i])
    if logprobs_MV is not None:
        for values, i in zip(logprobs_MV, reported, strict=True):
            found[live[i]] = _reported(values, tokens[i], rows[i].options.logprobs or 0)
    return found


def _draw(logits_NV: Tensor, rows: Sequence[RowSampler]) -> list[int]:
    """One token a row, by inverting its cumulative distribution."""
    scaled = logits_NV / torch.tensor([[row.options.temperature] for row in rows], device=logits_NV.device)
    # only rows that ask for it: what a row draws must not depend on what others ask for
    cut = [i for i, row in enumerate(rows) if row.options.cuts]
    if cut:
        scaled[cut] = cut_unlikely(scaled[cut], [rows[i].options for i in cut])
    # float64: a sum over a vocabulary must end at 1
    ends = torch.softmax(scaled.double(), -1).cumsum(-1)
    total = ends[:, -1:]
    at = torch.tensor([[row.draw()] for row in rows], device=ends.device, dtype=torch.float64) * total
    # below the total, so that the token that it falls on is there and has a probability
    at = torch.minimum(at, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(ends, at, right=True)[:, 0].tolist()


def cut_unlikely(scaled_NV: Tensor, options: Sequence[SamplingOptions], head: int = HEAD) -> Tensor:
    """−∞ for the tokens that min_p, top_k or top_p leave out; the most probable token always stays.

    What stays is the beginning of the tokens by their probability, mostly within the first `head` of them: to sort all
    of a vocabulary takes longer than a layer of the model.  Of equally probable tokens the first ones stay.
    """
    size = min(head, scaled_NV.shape[-1])
    values, order = _first(scaled_NV, size)
    keep, known = _kept(values, scaled_NV, options)
    found = torch.full_like(scaled_NV, -torch.inf).scatter_(-1, order, values.masked_fill(~keep, -torch.inf))
    open_ = (~known).nonzero()[:, 0].tolist()
    if open_:
        found[open_] = cut_unlikely(scaled_NV[open_], [options[i] for i in open_], scaled_NV.shape[-1])
    return found


def _first(scaled_NV: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The `size` highest values of each row, descending, and where they are: of equal ones the first first."""
    if size == scaled_NV.shape[-1]:
        return torch.sort(scaled_NV, dim=-1, descending=True, stable=True)
    at = scaled_NV.topk(size, -1, sorted=False).indices.sort(-1).values
    values, order = torch.sort(scaled_NV.gather(-1, at), dim=-1, descending=True, stable=True)
    return values, at.gather(-1, order)


def _kept(values_NK: Tensor, scaled_NV: Tensor, options: Sequence[SamplingOptions]) -> tuple[Tensor, Tensor]:
    """[N, K] which of the highest values stay, and [N] whether that is known: no other value of the row can stay."""
    device, size = values_NK.device, values_NK.shape[-1]
    is_whole = size == scaled_NV.shape[-1]
    min_p = torch.tensor([[o.min_p] for o in options], device=device)
    top_k = torch.tensor([[o.top_k or scaled_NV.shape[-1]] for o in options], device=device)
    top_p = torch.tensor([[o.top_p] for o in options], device=device, dtype=torch.float64)
    highest = values_NK[:, :1]
    rank = torch.arange(size, device=device)
    left = ~(values_NK < highest + min_p.log()) & (rank < top_k)
    weights = (values_NK.double() - highest.double()).exp().where(left, 0)
    total = weights.sum(-1, keepdim=True)
    known = ~left.all(-1)
    if not is_whole:
        # where neither min_p nor top_k leave out anything, top_p is of the whole row
        whole = known.logical_not() & torch.tensor([not o.min_p and not o.top_k for o in options], device=device)
        at = whole.nonzero()[:, 0]
        total[at] = (scaled_NV[at] - highest[at]).double().exp().sum(-1, keepdim=True)
        known = known | whole
    before = (weights.cumsum(-1) - weights) / total
    keep = left & ((before < top_p) | (rank == 0) | (top_p >= 1))
    last = values_NK.masked_fill(~keep, torch.inf).amin(-1)
    # of values as high as the lowest some may lie beyond
    return keep, (known & (last > values_NK[:, -1])) | is_whole


def _reported(logprobs_V: Tensor, token: int, count: int) -> Choice:
    values, tokens = logprobs_V.topk(min(count, logprobs_V.shape[-1]))
    top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
    return Choice(token, float(logprobs_V[token]), top)


def _pairs(bias: Mapping[int, float]) -> tuple[Tensor, Tensor] | None:
    return (torch.tensor(list(bias)), torch.tensor(list(bias.values()), dtype=torch.float32)) if bias else None
