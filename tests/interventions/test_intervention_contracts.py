"""What every Φ in the registry promises, whatever its formula."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo
from safetensors.torch import load_file, save_file
from torch import Tensor

from reftune.interventions import ACTIVATIONS, INTERVENTIONS, Intervention, InterventionOptions, orthonormal_rows
from reftune.interventions.steer import Steer

R, D = 3, 8
RANDOM = InterventionOptions(r=R, init="random")
STORAGE = [torch.float32, torch.bfloat16, torch.float16]
SUBSPACES = [name for name, phi in INTERVENTIONS.items() if phi.has_subspaces]
every_intervention = pytest.mark.parametrize("name", INTERVENTIONS)
every_start = pytest.mark.parametrize("act_fn", [None, *ACTIVATIONS])


def make(name: str, options: InterventionOptions = RANDOM, *, dtype: torch.dtype = torch.float32) -> Intervention:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # options without effect have their own test
        return INTERVENTIONS[name](D, options, dtype=dtype)


def states(*, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1)).to(dtype)


def identity_works(name: str, act_fn: str | None) -> bool:
    return INTERVENTIONS[name].supports_identity(act_fn)


# Shape, dtype, gradients ---------------------------------------------------------------------------------------------


@every_intervention
@pytest.mark.parametrize("h_dtype", [torch.float64, *STORAGE])
@pytest.mark.parametrize("dtype", [torch.float64, *STORAGE])
def test_keeps_the_shape_and_computes_in_the_widest_dtype(name: str, dtype: torch.dtype, h_dtype: torch.dtype) -> None:
    delta = make(name, dtype=dtype)(states(dtype=h_dtype))
    assert delta.shape == (2, 5, D)
    assert delta.dtype == (torch.float64 if torch.float64 in (dtype, h_dtype) else torch.float32)
    assert make(name)(states()[0, 0]).shape == (D,)
    assert make(name)(states()[:, :0]).shape == (2, 0, D)


@every_intervention
def test_gradcheck(name: str) -> None:
    module = make(name, replace(RANDOM, act_fn="silu"), dtype=torch.float64)
    names, values = zip(*module.named_parameters(), strict=True)

    def run(h: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (h,))

    h = states(dtype=torch.float64)[0, :2].requires_grad_()
    assert torch.autograd.gradcheck(run, (h, *(value.detach().requires_grad_() for value in values)))


@every_intervention
@every_start
def test_gradients_reach_every_parameter(name: str, act_fn: str | None) -> None:
    module = make(name, replace(RANDOM, act_fn=act_fn))
    (module(states()) * torch.randn(2, 5, D)).sum().backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.count_nonzero() > 0, key


@every_intervention
def test_permuting_positions_permutes_the_edit(name: str) -> None:
    module, order = make(name), torch.tensor([3, 0, 4, 1, 2])
    # Equal up to the order of summation inside a matrix product.
    assert torch.allclose(module(states()[:, order]), module(states())[:, order], rtol=1e-6, atol=1e-7)


@every_intervention
def test_autocast_changes_nothing(name: str) -> None:
    module = make(name)
    expected = module(states())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(states()), expected)


# Parameters ----------------------------------------------------------------------------------------------------------

COUNTS = {
    "consreft": R * D + R,
    "direft": 2 * R * D + R,
    "direft_orthonormal": 2 * R * D + R,
    "lobireft": R * D + R,
    "loreft": 2 * R * D + R,
    "noreft": 2 * R * D + R,
    "red": 2 * D,
    "steer": 1 + D,
}


@every_intervention
def test_parameter_count(name: str) -> None:
    actual = sum(parameter.numel() for parameter in make(name).parameters() if parameter.requires_grad)
    assert INTERVENTIONS[name].parameter_count(D, RANDOM) == actual == COUNTS[name]


def test_parameter_count_of_the_paper() -> None:
    options = InterventionOptions(r=8)
    assert 32 * INTERVENTIONS["loreft"].parameter_count(4096, options) == 2_097_408


@every_intervention
@pytest.mark.parametrize("dtype", STORAGE)
def test_saved_and_loaded_edits_are_bit_equal(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    module, other = make(name, dtype=dtype), make(name, dtype=dtype)
    with torch.no_grad():
        for value in [*module.parameters(), *other.parameters()]:
            value.add_(torch.randn_like(value))
    assert not torch.equal(module(states()), other(states()))
    save_file(module.state_dict(), tmp_path / "adapter.safetensors")
    other.load_state_dict(load_file(tmp_path / "adapter.safetensors"))
    assert torch.equal(module(states()), other(states()))


@every_intervention
def test_meta_device(name: str) -> None:
    module = INTERVENTIONS[name](D, replace(RANDOM, dropout=0.1), device="meta")
    assert all(value.is_meta for value in module.state_dict().values())
    assert module(states().to("meta")).shape == (2, 5, D)
    with torch.device("meta"):
        assert all(value.is_meta for value in INTERVENTIONS[name](D, RANDOM).parameters())
    torch.manual_seed(0)
    module.to_empty(device="cpu").reset_parameters()
    assert torch.equal(module.eval()(states()), make(name)(states()))


# Initialisation ------------------------------------------------------------------------------------------------------


@every_intervention
@every_start
@pytest.mark.parametrize("dtype", STORAGE)
def test_identity_is_exactly_zero_and_learns_or_is_refused(name: str, act_fn: str | None, dtype: torch.dtype) -> None:
    options = InterventionOptions(r=R, act_fn=act_fn)
    if not identity_works(name, act_fn):
        with pytest.raises(ValueError, match=r"cannot start as the identity.*init='paper' or init='random'"):
            make(name, options)
        return
    assert_rests_and_learns(make(name, options, dtype=dtype))


def assert_rests_and_learns(module: Intervention) -> None:
    for h_dtype in [torch.float64, *STORAGE]:
        delta = module(states(dtype=h_dtype) * 100)
        assert torch.equal(delta, torch.zeros_like(delta))
    (module(states()) * torch.randn(2, 5, D)).sum().backward()
    assert any(p.grad is not None and p.grad.count_nonzero() > 0 for p in module.parameters())


@every_intervention
@every_start
@pytest.mark.parametrize("form", ["direct", "delta"])
@pytest.mark.parametrize("dtype", STORAGE)
def test_zero_is_exactly_zero_and_learns_or_is_refused(
    name: str, act_fn: str | None, form: str, dtype: torch.dtype
) -> None:
    phi = INTERVENTIONS[name]
    options = InterventionOptions(r=R, act_fn=act_fn, init="zero", form=form)
    if not phi.supports_form(form, act_fn) or not phi.supports_zero(act_fn):
        with pytest.raises(ValueError, match=r"cannot start as the identity|form='delta'"):
            make(name, options)
        return
    assert_rests_and_learns(make(name, options, dtype=dtype))


def test_zero_of_direft_draws_what_reads_and_rests_what_writes() -> None:
    for act_fn in (None, *ACTIVATIONS):
        module = make("direft", InterventionOptions(r=R, act_fn=act_fn, init="zero"))
        state = module.state_dict()
        assert state["W1"].count_nonzero() == R * D and state["W1"].abs().max() <= D**-0.5
        assert state["W2"].count_nonzero() == state["b"].count_nonzero() == 0


def test_the_form_delta_is_decayed_towards_the_identity() -> None:
    module = make("loreft", replace(RANDOM, form="delta"))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5)
        halved = module(states())
        for name, parameter in module.named_parameters():
            if name != "R":
                parameter.zero_()
    assert halved.count_nonzero() > 0
    assert module(states()).count_nonzero() == 0


def test_where_the_identity_is_supported() -> None:
    linear_only, not_at_rest = {None, "linear"}, {None, "linear", "gelu", "silu", "tanh"}
    supported = {
        name: {act for act in (None, "linear", *ACTIVATIONS) if identity_works(name, act)} for name in INTERVENTIONS
    }
    anything = {None, "linear", *ACTIVATIONS}
    assert supported == {
        "consreft": set(),
        "direft": not_at_rest,
        "direft_orthonormal": not_at_rest,
        "lobireft": anything,
        "loreft": linear_only,
        "noreft": linear_only,
        "red": anything,
        "steer": anything,
    }


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_starts_from_zero_is_what_the_activation_does(name: str) -> None:
    zero = torch.zeros((), requires_grad=True)
    value = ACTIVATIONS[name].function(zero)
    (slope,) = torch.autograd.grad(value, zero)
    assert ACTIVATIONS[name].starts_from_zero == (value.item() == 0 and slope.item() != 0)


@pytest.mark.parametrize("dtype", STORAGE)
def test_the_identity_of_loreft_does_not_hang_on_the_raw_matrix(dtype: torch.dtype) -> None:
    """Weight decay shrinks raw R while W = orthonormal(R) still stands."""
    module = make("loreft", InterventionOptions(r=R), dtype=dtype)
    with torch.no_grad():
        module.get_parameter("R").mul_(0.5)  # exact in every float dtype
    assert module(states()).count_nonzero() == 0


@every_intervention
def test_random_is_no_identity(name: str) -> None:
    assert make(name)(states()).abs().min() > 0


def test_paper_initialisation() -> None:
    paper = InterventionOptions(r=32, init="paper")
    bound = 64**-0.5
    for name, phi in INTERVENTIONS.items():
        torch.manual_seed(0)
        for key, value in phi(64, paper).state_dict().items():
            if key == "R":
                assert torch.allclose(orthonormal_rows(value), value, rtol=0, atol=1e-6)
            elif key in ("W", "W1", "W2") or (key == "b" and "W2" in phi.parameter_shapes(64, paper)):
                assert bound * 0.8 < value.abs().max() <= bound, (name, key)
    red, steer = INTERVENTIONS["red"](64, paper), INTERVENTIONS["steer"](64, paper)
    assert torch.equal(red.state_dict()["s"], torch.ones(64))
    assert red.state_dict()["b"].count_nonzero() == 0
    assert steer.state_dict()["a"].tolist() == [1.0]
    assert 0.7 < steer.state_dict()["v"].norm() < 1.3
    for name in ("consreft", "lobireft"):
        b = INTERVENTIONS[name](64, paper).state_dict()["b"]
        assert 0 <= b.min() < 0.2 < 0.8 < b.max() < 1


@every_intervention
def test_a_seed_means_the_same_weights_in_every_storage_dtype(name: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        for key, value in make(name, dtype=dtype).state_dict().items():
            assert torch.equal(value, make(name).state_dict()[key].to(dtype)), key


# Dropout, masks, compilation -----------------------------------------------------------------------------------------


@every_intervention
def test_dropout_acts_on_the_edit_in_training_only(name: str) -> None:
    module = make(name, replace(RANDOM, dropout=0.5))
    assert not torch.equal(module(states()), module(states()))
    delta, whole = module(states()), make(name)(states())
    assert torch.allclose(delta[delta != 0], 2 * whole[delta != 0])
    module.eval()
    assert torch.equal(module(states()), whole)


@pytest.mark.parametrize("name", SUBSPACES)
def test_rank_masks(name: str) -> None:
    module, h = make(name), states()
    assert torch.equal(module(h, torch.ones(R)), module(h))
    assert module(h, torch.zeros(2, 5, R)).count_nonzero() == 0
    rows_on = torch.tensor([True, False])[:, None, None].expand(2, 1, R)
    delta = module(h, rows_on)
    assert torch.allclose(delta[0], module(h)[0])
    assert delta[1].count_nonzero() == 0
    with pytest.raises(ValueError, match=f"must be r={R}"):
        module(h, torch.ones(2, 5, 1))


@pytest.mark.parametrize("name", sorted(set(INTERVENTIONS) - set(SUBSPACES)))
def test_rank_masks_are_refused_without_a_rank(name: str) -> None:
    with pytest.raises(ValueError, match="no rank axis"):
        make(name)(states(), torch.ones(R))


@every_intervention
def test_compiles_without_a_graph_break(name: str) -> None:
    torch._dynamo.reset()
    module = make(name, replace(RANDOM, act_fn="gelu"))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")

    def run(phi: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        delta = phi(states())
        return delta, *torch.autograd.grad(delta.square().sum(), list(module.parameters()))

    for ours, theirs in zip(run(compiled), run(module), strict=True):
        # The traced backward may add up in another order.
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow  # compiles C++
def test_compiled_by_inductor_equals_eager() -> None:
    torch._dynamo.reset()
    module, mask = make("loreft"), torch.tensor([1.0, 0.0, 1.0])
    with torch.no_grad():
        compiled = torch.compile(module, fullgraph=True)(states(), mask)
        # Fused kernels sum in another order.
        assert torch.allclose(compiled, module(states(), mask), rtol=1e-5, atol=1e-6)


# What users get wrong, and what the peers do wrong -------------------------------------------------------------------


def test_weight_decay_cannot_wear_the_rows_down() -> None:
    """pyreft's R is exactly 0 after one step of AdamW with its default weight decay."""
    module = make("loreft")
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.01)
    for _ in range(50):
        optimiser.zero_grad()
        (states() + module(states())).square().mean().backward()
        optimiser.step()
    rows = orthonormal_rows(module.get_parameter("R"))
    assert torch.allclose(rows @ rows.T, torch.eye(R), rtol=0, atol=1e-5)
    assert module(states()).isfinite().all()


@pytest.mark.parametrize("name", SUBSPACES)
def test_a_rank_above_the_width_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="r=9 exceeds the width d=8"):
        make(name, replace(RANDOM, r=9))


@every_intervention
def test_another_width_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="h has width 9"):
        make(name)(torch.zeros(2, 9))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("r", 0, "r=0"),
        ("act_fn", "swish", "act_fn='swish'.*'gelu', 'relu'"),
        ("dropout", 1.0, "dropout=1.0"),
        ("init", "zeros", "init='zeros'.*identity"),
        ("vector", "fixed", "vector='fixed'.*given"),
    ],
)
def test_a_bad_option_is_refused_by_name(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InterventionOptions(**{field: value})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("red", replace(RANDOM, act_fn="gelu"), "act_fn='gelu' has no effect"),
        ("red", replace(RANDOM, alpha=2.0), "alpha=2.0 has no effect"),
        ("lobireft", replace(RANDOM, rms=True), "rms=True has no effect"),
        ("loreft", replace(RANDOM, vector="given"), "vector='given' has no effect"),
    ],
)
def test_an_option_without_effect_warns(name: str, options: InterventionOptions, message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        INTERVENTIONS[name](D, options)


def test_steering_along_a_given_vector() -> None:
    given = InterventionOptions(vector="given")
    module = Steer(D, given)
    assert [key for key, _ in module.named_parameters()] == ["a"]
    assert set(module.state_dict()) == {"a", "v"}
    assert Steer.parameter_count(D, given) == 1
    v = torch.arange(D, dtype=torch.float32)
    module.set_vector(v)
    v.add_(1)  # a copy was taken
    assert module(states()).count_nonzero() == 0  # still the identity
    module(states()).sum().backward()
    assert module.a.grad is not None
    assert module.a.grad.item() == 10 * sum(range(D))
    with torch.no_grad():
        module.a.fill_(2.0)
    assert torch.equal(module(states()), (2 * torch.arange(D, dtype=torch.float32)).expand(2, 5, D))
    with pytest.raises(ValueError, match=r"shape \[3\]: it must be \[8\]"):
        module.set_vector(torch.zeros(3))


def test_steering_along_a_given_vector_starts_with_none() -> None:
    paper = Steer(D, InterventionOptions(vector="given", init="paper"))
    assert paper.v.count_nonzero() == 0
    assert paper.a.tolist() == [1.0]
    assert Steer(D, replace(RANDOM, vector="given"))(states()).abs().min() > 0


def test_a_learned_vector_can_be_set() -> None:
    module = Steer(D, InterventionOptions())
    module.set_vector(torch.ones(D))
    assert torch.equal(module(states()), torch.ones(2, 5, D))
    assert module.v.requires_grad
