"""Each Φ against its formula, written out here for one vector in float64.

A new intervention adds one function to FORMULAS.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reftune.interventions import ACTIVATIONS, INTERVENTIONS, Intervention, InterventionOptions

R, D = 4, 12
Parameters = dict[str, Tensor]
Act = Callable[[Tensor], Tensor]


def loreft(h: Tensor, p: Parameters, act: Act) -> Tensor:
    return p["R"].T @ (act(p["W"] @ h + p["b"]) - p["R"] @ h)


def noreft(h: Tensor, p: Parameters, act: Act) -> Tensor:
    return p["W2"].T @ (act(p["W1"] @ h + p["b"]) - p["W2"] @ h)


def direft(h: Tensor, p: Parameters, act: Act) -> Tensor:
    return p["W2"].T @ act(p["W1"] @ h + p["b"])


def direft_orthonormal(h: Tensor, p: Parameters, act: Act) -> Tensor:
    return p["R"].T @ act(p["W"] @ h + p["b"])


def consreft(h: Tensor, p: Parameters, act: Act) -> Tensor:
    return p["R"].T @ (p["b"] - p["R"] @ h)


def lobireft(h: Tensor, p: Parameters, act: Act) -> Tensor:
    return p["R"].T @ p["b"]


def red(h: Tensor, p: Parameters, act: Act) -> Tensor:
    return p["s"] * h + p["b"] - h


def steer(h: Tensor, p: Parameters, act: Act) -> Tensor:
    return p["a"] * p["v"]


FORMULAS = {
    "consreft": consreft,
    "direft": direft,
    "direft_orthonormal": direft_orthonormal,
    "lobireft": lobireft,
    "loreft": loreft,
    "noreft": noreft,
    "red": red,
    "steer": steer,
}
# Functions written out, so that a wrong entry of ACTIVATIONS does not agree with itself.
ACTS: dict[str | None, Act] = {
    None: lambda x: x,
    "linear": lambda x: x,
    "relu": lambda x: x * (x > 0),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "tanh": lambda x: 1 - 2 / (torch.exp(2 * x) + 1),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
}


def make(name: str, act_fn: str | None = None, *, dtype: torch.dtype = torch.float64) -> Intervention:
    torch.manual_seed(0)
    module = INTERVENTIONS[name](D, InterventionOptions(r=R, act_fn=act_fn, init="random"), dtype=dtype)
    with torch.no_grad():  # as training leaves them: R neither orthonormal nor of unit scale, a not 1
        for parameter in module.parameters():
            parameter.mul_(1.5).add_(0.3 * torch.randn_like(parameter))
    return module


def parameters_of(module: Intervention) -> Parameters:
    """In float64, with R orthonormalised by Gram-Schmidt."""
    parameters = {name: value.detach().double() for name, value in module.state_dict().items()}
    if "R" in parameters:
        rows: list[Tensor] = []
        for row in parameters["R"]:
            for earlier in rows:
                row = row - (row @ earlier) * earlier
            rows.append(row / row.norm())
        parameters["R"] = torch.stack(rows)
    return parameters


def expected(name: str, h: Tensor, parameters: Parameters, act_fn: str | None = None) -> Tensor:
    rows = [FORMULAS[name](row, parameters, ACTS[act_fn]) for row in h.reshape(-1, D)]
    return torch.stack(rows).reshape(h.shape)


def states(*, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(3, 5, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def cases() -> list[tuple[str, str | None]]:
    return [(name, act) for name, phi in INTERVENTIONS.items() for act in (ACTS if "act_fn" in phi.uses else [None])]


def test_every_intervention_has_a_formula_and_every_activation_a_reference() -> None:
    assert set(FORMULAS) == set(INTERVENTIONS)
    assert set(ACTS) == {None, "linear", *ACTIVATIONS}


@pytest.mark.parametrize(("name", "act_fn"), cases())
def test_formula(name: str, act_fn: str | None) -> None:
    module = make(name, act_fn)
    # Some twenty roundings of numbers of the order of 1.
    assert torch.allclose(
        module(states()), expected(name, states(), parameters_of(module), act_fn), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize(("name", "reference", "projection"), [("loreft", "R", "W"), ("noreft", "W2", "W1")])
def test_the_form_delta_is_the_same_formula(name: str, reference: str, projection: str) -> None:
    torch.manual_seed(0)
    module = INTERVENTIONS[name](D, InterventionOptions(r=R, init="random", form="delta"), dtype=torch.float64)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5).add_(0.3 * torch.randn_like(parameter))
    parameters = parameters_of(module)
    assert projection not in parameters
    parameters[projection] = parameters[reference] + parameters.pop("dW")
    assert torch.allclose(module(states()), expected(name, states(), parameters), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["direct", "delta"])
@pytest.mark.parametrize("name", ["loreft", "noreft"])
@pytest.mark.parametrize("init", ["paper", "zero", "identity"])
def test_a_start_is_the_same_map_in_both_forms(name: str, form: str, init: str) -> None:
    torch.manual_seed(0)
    direct = INTERVENTIONS[name](D, InterventionOptions(r=R, init=init), dtype=torch.float64)
    torch.manual_seed(0)
    module = INTERVENTIONS[name](D, InterventionOptions(r=R, init=init, form=form), dtype=torch.float64)
    assert torch.allclose(module(states()), direct(states()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [name for name, phi in INTERVENTIONS.items() if phi.has_subspaces])
def test_alpha_over_the_root_of_the_rank_multiplies_the_edit(name: str) -> None:
    torch.manual_seed(0)
    options = InterventionOptions(r=R, init="random", alpha=3.0)
    module = INTERVENTIONS[name](D, options, dtype=torch.float64)
    wanted = expected(name, states(), parameters_of(module)) * 3.0 / R**0.5
    assert torch.allclose(module(states()), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name, phi in INTERVENTIONS.items() if phi.reads_h])
def test_rms_feeds_the_normalised_state(name: str) -> None:
    torch.manual_seed(0)
    module = INTERVENTIONS[name](D, InterventionOptions(r=R, init="random", rms=True), dtype=torch.float64)
    h = 50 * states()
    normalised = h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    wanted = expected(name, normalised, parameters_of(module))
    assert torch.allclose(module(h), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("act_fn", [None, "silu"])
@pytest.mark.parametrize("name", [name for name, phi in INTERVENTIONS.items() if phi.has_subspaces])
def test_a_rank_mask_leaves_the_formula_of_the_rows_kept(name: str, act_fn: str | None) -> None:
    act_fn = act_fn if "act_fn" in INTERVENTIONS[name].uses else None
    module, parameters = make(name, act_fn), parameters_of(make(name, act_fn))
    masks = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 1]], dtype=torch.bool)
    delta = module(states(), masks[:, None])  # one mask per batch row
    for row, mask in enumerate(masks):
        kept = {name: value[mask] for name, value in parameters.items()}
        assert torch.allclose(delta[row], expected(name, states()[row], kept, act_fn), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_bfloat16_storage_costs_at_most_twice_what_the_plain_formula_in_bfloat16_does(name: str) -> None:
    """Both start from the same bfloat16 parameters and states; the truth is their formula in float64.

    The plain formula rounds R once and then every product and sum.  Ours rounds R once (where a difference is to
    cancel) and nothing else, so its error should be the smaller one; 2 leaves room for luck in few roundings.
    """
    module, h = make(name, dtype=torch.bfloat16), states(dtype=torch.bfloat16)
    parameters = parameters_of(module)
    truth = expected(name, h.double(), parameters)
    plain = expected(name, h, {key: value.bfloat16() for key, value in parameters.items()})
    assert (module(h) - truth).norm() <= 2 * (plain - truth).norm()
    assert (plain - truth).norm() > 0
