"""Cross-entropy of labelled tokens only, in chunks: logits of other tokens are never computed, nor all at once.

The output embeddings ("head") of a causal language model are met within the model's own forward, by an attribute of
the instance, so that wrappers (DDP, FSDP, autocast) see a normal call.

Must not know: positions, interventions, storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .rows import Batch

__all__ = ["ResponseLoss", "chunk_rows", "chunked_cross_entropy", "forward_as", "head_as"]

# Elements of one chunk of logits, 64 MB and 512 MB in float32: enough rows to keep the machine busy.
CHUNK = {"cpu": 2**24, "cuda": 2**27}

Logits = Callable[[Tensor], Tensor]
Post = Callable[[Tensor], Tensor]


class ResponseLoss:
    """Σ −log p(label) over the labelled tokens of a batch, as the model itself would compute it.

    Between the head and the logits some models cap or scale; what this one does is found by `prepare`.
    """

    def __init__(self, root: Any) -> None:
        self.root = root
        self.head: nn.Module = root.get_output_embeddings()
        self.post: Post | None = None
        self.vocabulary = 0
        self.longest = _rope_limit(root.config.get_text_config())
        """Tokens up to which a row may be computed beside any others; None for no limit."""

    def prepare(self, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
        """Call the model plainly, to find out what happens behind its head: `post` stays None if it is nothing known.

        Returns what the model does.
        """
        raw: list[Tensor] = []

        def forward(of: Logits, hidden: Tensor) -> Tensor:
            found = of(hidden)
            # the last column, which is a token also where padding is on the left and attention to it undefined
            raw.append(found[:1, -1:].clone())
            return found

        with torch.no_grad(), head_as(self.head, forward):
            out = model(**inputs, use_cache=False)
        logits = out["logits"] if isinstance(out, dict) else out[0]
        if raw:
            self.vocabulary = logits.shape[-1]
            self.post = _post(raw[0], logits[:1, -1:], self.root.config.get_text_config())
        return out

    def tokens(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of each of the batch's targets, [N]: −log p, and whether it is the likeliest token.  Without gradient."""
        assert self.post is not None
        post, losses, hits = self.post, [], []

        def forward(of: Logits, hidden: Tensor) -> Tensor:
            chosen, rows = hidden[batch.rows, batch.columns], chunk_rows(hidden.device, self.vocabulary)
            for h, targets in zip(chosen.split(rows), batch.targets.split(rows), strict=True):
                logits = post(of(h)).float()
                losses.append(F.cross_entropy(logits, targets, reduction="none"))
                hits.append(logits.argmax(-1) == targets)
            return hidden[:1, :1, :1].expand(1, 1, self.vocabulary).clone()

        with torch.no_grad(), head_as(self.head, forward):
            model(**{"use_cache": False, **batch.inputs})
        return torch.cat(losses), torch.cat(hits)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum over the batch's targets, with gradient if it is enabled."""
        assert self.post is not None
        post, found = self.post, []

        def forward(of: Logits, hidden: Tensor) -> Tensor:
            chosen = hidden[batch.rows, batch.columns]
            rows = chunk_rows(hidden.device, self.vocabulary)
            trained = any(p.requires_grad for p in self.head.parameters())
            # a linear layer does not need its own result again
            bare = post is _as_it_is and type(self.head) is nn.Linear
            logits_of: Logits = of if bare else lambda h: post(of(h))
            found.append(
                chunked_cross_entropy(chosen, batch.targets, logits_of, rows=rows, trained=trained, overwrite=bare)
            )
            # Something like a logit must be given back, with a graph: DDP looks there for what was used.
            return of(hidden[:1, :1]) if trained else hidden[:1, :1, :1].expand(1, 1, self.vocabulary).clone()

        with head_as(self.head, forward):
            model(**{"use_cache": False, **batch.inputs})
        return found[0]


@contextmanager
def forward_as(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, `forward` is what a call of the module computes; its hooks run as ever."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


def head_as(head: nn.Module, forward: Callable[[Logits, Tensor], Tensor]) -> AbstractContextManager[None]:
    """Inside, the head's forward is `forward(own forward, hidden)`."""
    own = head.forward
    return forward_as(head, lambda hidden, *args, **kwargs: forward(own, hidden))


def chunk_rows(device: torch.device, vocabulary: int) -> int:
    """Rows of logits that exist at a time."""
    return max(1, CHUNK.get(device.type, CHUNK["cuda"]) // vocabulary)


def chunked_cross_entropy(
    hidden: Tensor, targets: Tensor, logits_of: Logits, *, rows: int, trained: bool = False, overwrite: bool = False
) -> Tensor:
    """hidden [N, d], targets [N] → Σ −log softmax(logits_of(hidden))[target], in float32.

    Logits of `rows` rows exist at a time, in the backward pass too.  With a frozen head the gradient of `hidden` is
    computed along with the loss; with a `trained` one the logits are computed again in the backward pass.
    `overwrite`: float32 logits may be written over, as nothing needs them for its gradient.
    """
    if not trained:
        return _ChunkedLoss.apply(hidden, targets, logits_of, rows, overwrite)
    total = hidden.new_zeros((), dtype=torch.float32)
    for h, t in zip(hidden.split(rows), targets.split(rows), strict=True):
        total = total + checkpoint(_sum, logits_of, h, t, use_reentrant=False)
    return total


def _sum(logits_of: Logits, hidden: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits_of(hidden).float(), targets, reduction="sum")


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, logits_of: Logits, rows: int, overwrite: bool) -> Tensor:
        needed = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needed else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            h = hidden[part].detach().requires_grad_(needed)
            with torch.set_grad_enabled(needed):
                logits = logits_of(h)
            at = targets[part, None]
            p = logits.detach().to(torch.float32, copy=not overwrite)
            top = p.amax(-1, keepdim=True)
            wanted = p.gather(1, at)
            p.sub_(top).exp_()
            sums = p.sum(-1, keepdim=True)
            total += (sums.log() + top - wanted).sum()
            if gradient is not None:
                p.div_(sums).scatter_add_(1, at, p.new_full((1, 1), -1.0).expand_as(at))
                gradient[part] = torch.autograd.grad(logits, h, p.to(logits.dtype))[0]
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = None if ctx.gradient is None else ctx.gradient * grads[0].to(ctx.gradient.dtype)
        return scaled, None, None, None, None


def _rope_limit(config: Any) -> int | None:
    """Tokens up to which a row does not depend on the longest row of its call, as with some rotary embeddings."""
    parameters = getattr(config, "rope_parameters", None) or {}
    for found in [parameters, *(value for value in parameters.values() if isinstance(value, dict))]:
        if found.get("rope_type") in ("dynamic", "longrope"):
            own = getattr(config, "original_max_position_embeddings", None)
            return found.get("original_max_position_embeddings") or own or config.max_position_embeddings
    return None


def _post(raw: Tensor, logits: Tensor, config: Any) -> Post | None:
    """What the model does behind its head, of what fields of configurations say; None if it is something else."""
    if torch.equal(raw.to(logits.dtype), logits):
        return _as_it_is
    cap = getattr(config, "final_logit_softcapping", None)
    factors = [getattr(config, name, None) for name in ("logit_scale", "lm_head_multiplier")]
    divisor = getattr(config, "logits_scaling", None)
    candidates: list[Post] = [lambda x: torch.tanh(x / cap) * cap] if cap else []
    candidates += [lambda x, factor=factor: x * factor for factor in factors if factor]
    candidates += [lambda x: x / divisor] if divisor else []
    # the operations are the same, so that rounding is all that may differ
    tolerance = 1e-5 if raw.dtype == torch.float32 else 1e-2
    close = [p for p in candidates if torch.allclose(p(raw).to(logits.dtype), logits, rtol=tolerance, atol=tolerance)]
    return close[0] if close else None


def _as_it_is(logits: Tensor) -> Tensor:
    return logits
