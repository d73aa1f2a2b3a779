"""What all interventions share: options, dtype rules, dropout, rank masks, initialisation helpers.

An intervention Φ maps a hidden state to an edit, delta = Φ(h) - h.
Must not know: positions, layers, attention masks, models.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reftune.interventions.activations import Activation, activation
from reftune.interventions.orthonormal import autocast_off, orthonormal_rows

__all__ = ["Intervention", "InterventionOptions", "LowRankIntervention", "OrthonormalIntervention"]

INITS = ("zero", "identity", "paper", "random")
FORMS = ("direct", "delta")
VECTORS = ("learned", "given")
RMS_EPS = 1e-6


@dataclass(frozen=True)
class InterventionOptions:
    r: int = 4
    """Rank: how many directions of the hidden state are edited.  Without effect on `red` and `steer`."""
    act_fn: str | None = None
    """Applied to the learned affine map: None or "linear" for nothing, else a name in ACTIVATIONS."""
    dropout: float = 0.0
    """Dropout on the edit, never on the hidden state."""
    init: str = "identity"
    """"zero" and "identity": the edit starts as exactly 0; with "zero", what reads h is drawn and what writes rests
    (DiReFT: W1 as a linear layer, W2 = 0), where "identity" has it the other way round.  Where both are one, as for
    LoReFT (W = R), they are the same.  "paper": as published.  "random": no part starts at rest.
    """
    form: str = "direct"
    """How `loreft` and `noreft` keep their projection: W itself, or "delta", ΔW = W - R, so that what is trained, and
    decayed, is the distance from the identity.  Without effect on others."""
    alpha: float | None = None
    """The edit's coefficients are multiplied by alpha / sqrt(r), as LoRA's with rank stabilisation; None: by 1."""
    rms: bool = False
    """Φ is fed h / sqrt(mean(h²) + 1e-6) in place of h: its edit does not grow with the stream."""
    vector: str = "learned"
    """`steer` only: is its direction trained ("learned") or fixed ("given")?"""

    def __post_init__(self) -> None:
        activation(self.act_fn)
        if self.r < 1:
            raise ValueError(f"r={self.r!r} is not a rank: use a whole number of at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout!r} is not a probability below 1: use 0.0 <= dropout < 1.0")
        if self.init not in INITS:
            raise ValueError(f"init={self.init!r} is unknown: use one of {INITS}")
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r} is unknown: use one of {FORMS}")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha={self.alpha!r} is no scale: use a number above 0, or None for none")
        if self.vector not in VECTORS:
            raise ValueError(f"vector={self.vector!r} is unknown: use one of {VECTORS}")


class Intervention(nn.Module, ABC):
    """One Φ.  A subclass declares its parameters' shapes, says how they start, and computes the edit."""

    has_subspaces: ClassVar[bool]
    """True if there is a rank axis, so that parts of it can be masked."""
    uses: ClassVar[frozenset[str]] = frozenset()
    """Which of the options `act_fn`, `vector` and `form` have an effect."""
    reads_h: ClassVar[bool] = True
    """Whether the edit depends on h."""
    has_zero: ClassVar[bool] = False
    """Whether `initialise` knows "zero"; otherwise it is told "identity", which is the same then."""
    no_identity_because: ClassVar[str] = ""
    """Completes the error message where `supports_identity` says no."""

    d: int
    options: InterventionOptions

    def __init__(
        self,
        d: int,
        options: InterventionOptions,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._check(d, options)
        self.d = d
        self.options = options
        self.dropout = nn.Dropout(options.dropout)
        for name, shape in self.parameter_shapes(d, options).items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        for name, shape in self.buffer_shapes(d, options).items():
            self.register_buffer(name, torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    @abstractmethod
    def parameter_shapes(cls, d: int, options: InterventionOptions) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the trainable parameters."""

    @classmethod
    def buffer_shapes(cls, d: int, options: InterventionOptions) -> dict[str, tuple[int, ...]]:
        """Names and shapes of tensors that are saved but not trained; most have none."""
        return {}

    @abstractmethod
    def initialise(self, init: str) -> None:
        """Fill all parameters and buffers in place; runs without gradient."""

    @abstractmethod
    def edit(self, h: Tensor, rank_mask: Tensor | None) -> Tensor:
        """The delta of h [..., d], which has the compute dtype; autocast is off."""

    @classmethod
    def supports_identity(cls, act_fn: str | None) -> bool:
        """Can the edit start as exactly zero and still learn?"""
        activation(act_fn)
        return True

    @classmethod
    def supports_zero(cls, act_fn: str | None) -> bool:
        """Can it start with `init="zero"`?"""
        return cls.supports_identity(act_fn)

    @classmethod
    def supports_start(cls, init: str, act_fn: str | None) -> bool:
        """Can it start with this `init`?  "paper" and "random" all can."""
        starts = {"identity": cls.supports_identity, "zero": cls.supports_zero}
        return init not in starts or starts[init](act_fn)

    @classmethod
    def supports_form(cls, form: str, act_fn: str | None) -> bool:
        """Has it the form "delta"?  "direct" all have."""
        return form == "direct"

    @classmethod
    def parameter_count(cls, d: int, options: InterventionOptions) -> int:
        return sum(math.prod(shape) for shape in cls.parameter_shapes(d, options).values())

    @property
    def activation(self) -> Activation | None:
        return activation(self.options.act_fn)

    def reset_parameters(self) -> None:
        """Start anew, as `options.init` says.  Does nothing on the meta device, where there is nothing to fill."""
        if any(parameter.is_meta for parameter in self.parameters()):
            return
        init = self.options.init
        with torch.no_grad():
            self.initialise("identity" if init == "zero" and not self.has_zero else init)

    def forward(self, h: Tensor, rank_mask: Tensor | None = None) -> Tensor:
        """h [..., d] -> delta [..., d], in the widest of h's dtype, the parameters' dtype and float32.

        `rank_mask` [..., r] multiplies the r coefficients and broadcasts over the leading dimensions as torch does:
        one mask per row of h [B, P, d] is [B, 1, r].
        """
        return self._delta(h, rank_mask, self.edit)

    def _delta(self, h: Tensor, rank_mask: Tensor | None, edit: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
        if h.shape[-1] != self.d:
            raise ValueError(f"h has width {h.shape[-1]}, this {type(self).__name__} was built for {self.d}")
        if rank_mask is not None:
            self._check_mask(rank_mask)
        dtype = torch.promote_types(h.dtype, torch.float32)
        for other in {parameter.dtype for parameter in self._parameters.values() if parameter is not None}:
            dtype = torch.promote_types(dtype, other)
        with autocast_off(h.device.type):
            wide = h.to(dtype)
            delta = edit(rms_normalised(wide) if self.options.rms else wide, rank_mask)
        # called only if there is some: in a prefill, a call of a module takes as long as the edit
        return self.dropout(delta) if self.options.dropout else delta

    def extra_repr(self) -> str:
        return f"d={self.d}, {self.options}"

    def _check_mask(self, rank_mask: Tensor) -> None:
        if not self.has_subspaces:
            raise ValueError(f"{type(self).__name__} has no rank axis: it takes no rank_mask (subspaces)")
        if rank_mask.shape[-1:] != (self.options.r,):
            raise ValueError(
                f"rank_mask has shape {list(rank_mask.shape)}: its last dimension must be r={self.options.r}"
            )

    @classmethod
    def _check(cls, d: int, options: InterventionOptions) -> None:
        name = cls.__name__
        if cls.has_subspaces and options.r > d:
            raise ValueError(f"{name}: the rank r={options.r} exceeds the width d={d}: use r <= {d}")
        if not cls.supports_start(options.init, options.act_fn):
            without = " or act_fn=None" if options.act_fn and cls.supports_identity(None) else ""
            raise ValueError(
                f"{name} with act_fn={options.act_fn!r} cannot start as the identity: {cls.no_identity_because}. "
                f"Use init='paper' or init='random'{without}"
            )
        if not cls.supports_form(options.form, options.act_fn):
            why = f"needs act_fn=None, not {options.act_fn!r}" if "form" in cls.uses else "is of loreft and noreft"
            raise ValueError(f"{name}: form={options.form!r} {why}; use form='direct'")
        if options.rms and not cls.reads_h:
            warnings.warn(f"{name} does not depend on h: rms=True has no effect", stacklevel=3)
        if options.alpha is not None and not cls.has_subspaces:
            warnings.warn(f"{name} has no rank: alpha={options.alpha!r} has no effect", stacklevel=3)
        if activation(options.act_fn) is not None and "act_fn" not in cls.uses:
            warnings.warn(f"{name} learns no affine map: act_fn={options.act_fn!r} has no effect", stacklevel=3)
        if options.vector != "learned" and "vector" not in cls.uses:
            warnings.warn(f"{name} has no steering vector: vector={options.vector!r} has no effect", stacklevel=3)


class LowRankIntervention(Intervention):
    """delta = basisᵀ · coefficients(h), with a basis [r, d] and r coefficients per position."""

    has_subspaces: ClassVar[bool] = True

    @property
    def scale(self) -> float:
        """What multiplies the coefficients: alpha / sqrt(r), or 1."""
        return 1.0 if self.options.alpha is None else self.options.alpha / math.sqrt(self.options.r)

    @abstractmethod
    def basis(self) -> Tensor:
        """[r, d]: the directions that the edit is written in."""

    @abstractmethod
    def coefficients(self, h: Tensor, basis: Tensor) -> Tensor:
        """[..., r], or [r] where they do not depend on h; before they are multiplied by `scale`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "linear" not in cls.__dict__ and cls.__dict__.keys() & {"coefficients", "edit", "forward"}:
            # what it inherits is of another formula
            cls.linear = LowRankIntervention.linear

    def linear(self, basis: Tensor) -> tuple[Tensor, Tensor] | None:
        """weight [r, d] and bias [r] if `coefficients` are weight h + bias, in the dtype of `basis`; else None."""
        return None

    def edit(self, h: Tensor, rank_mask: Tensor | None) -> Tensor:
        return self._edit_in(self.basis(), h, rank_mask)

    def _edit_in(self, basis: Tensor, h: Tensor, rank_mask: Tensor | None) -> Tensor:
        basis_RD = basis.to(h.dtype)
        coefficients_R = self.coefficients(h, basis_RD)
        if self.options.alpha is not None:
            coefficients_R = coefficients_R * self.scale
        if rank_mask is not None:
            coefficients_R = coefficients_R * rank_mask.to(h.dtype)
        return (coefficients_R @ basis_RD).expand_as(h)

    def act(self, x: Tensor) -> Tensor:
        chosen = self.activation
        return x if chosen is None else chosen.function(x)


class OrthonormalIntervention(LowRankIntervention):
    """A basis with orthonormal rows: those of the free matrix R [r, d]."""

    R: nn.Parameter

    def basis(self) -> Tensor:
        return orthonormal_rows(self.R)

    def forward(self, h: Tensor, rank_mask: Tensor | None = None, basis: Tensor | None = None) -> Tensor:
        """As of any intervention; `basis` [r, d] is `basis()` if the caller has it, from a batch of many R."""
        edit = self.edit if basis is None else partial(self._edit_in, basis)
        return self._delta(h, rank_mask, edit)


def rms_normalised(h: Tensor) -> Tensor:
    """h [..., d] over the root of its mean square, as RMSNorm without a weight (Zhang and Sennrich 2019)."""
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + RMS_EPS)


# Drawn in float32 or wider and rounded once, so that a seed means the same weights in every storage dtype.


def uniform_(parameter: Tensor, *, low: float, high: float) -> None:
    parameter.copy_(_wide(parameter).uniform_(low, high))


def normal_(parameter: Tensor, *, mean: float = 0.0, std: float) -> None:
    parameter.copy_(_wide(parameter).normal_(mean, std))


def like_linear_(parameter: Tensor, *, d: int) -> None:
    """The default of torch.nn.Linear(d, r), which is the same for its weight and its bias."""
    uniform_(parameter, low=-1 / math.sqrt(d), high=1 / math.sqrt(d))


def start_projection_(phi: Intervention, name: str, reference: Tensor, init: str) -> None:
    """Fill b and the projection `name` of a Φ that is the identity where it equals `reference` [r, d] and b is 0.

    In the form "delta" it is dW that is filled, the projection less the reference.
    """
    delta = phi.options.form == "delta"
    projection, b = phi.get_parameter("dW" if delta else name), phi.get_parameter("b")
    if init == "identity":
        b.zero_()
        projection.copy_(torch.zeros_like(reference) if delta else reference)
        return
    like_linear_(projection, d=phi.d)
    like_linear_(b, d=phi.d)
    if delta:
        projection.sub_(reference)


def orthonormal_(parameter: Tensor) -> None:
    parameter.copy_(orthonormal_rows(_wide(parameter).normal_()))


def _wide(parameter: Tensor) -> Tensor:
    return torch.empty_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))
