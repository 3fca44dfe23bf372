"""The likelihoods against automatic differentiation and exact arithmetic."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.functional import hessian
from torch.testing import assert_close

from afterfit.errors import AfterfitError, ConfigError, DataError, NumericalError
from afterfit.network.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    likelihood_named,
)
from afterfit.seeds import Seed, normals

ALL = [Categorical(), Bernoulli(), Gaussian(0.3)]
by_name = pytest.mark.parametrize("likelihood", ALL, ids=lambda likelihood: likelihood.name)


def example_targets(likelihood: Likelihood, num: int, num_outputs: int, seed: int) -> Tensor:
    noise_NC = normals(Seed(seed).child("targets"), num, num_outputs, dtype=torch.float64)
    if likelihood.name == "categorical":
        return noise_NC.argmax(dim=1)
    return (noise_NC > 0).long() if likelihood.name == "bernoulli" else noise_NC


@by_name
@settings(max_examples=15)
@given(
    num=st.integers(1, 4),
    num_outputs=st.integers(2, 6),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    seed=st.integers(0, 99),
)
def test_derivatives_and_root_equal_automatic_differentiation(likelihood, num, num_outputs, scale, seed):
    outputs_BC = normals(Seed(seed), num, num_outputs, dtype=torch.float64) * scale
    targets = example_targets(likelihood, num, num_outputs, seed)
    leaf_BC = outputs_BC.clone().requires_grad_()
    (gradient_BC,) = torch.autograd.grad(likelihood.log_density(leaf_BC, targets).sum(), leaf_BC)
    hessian_BCC = torch.stack(
        [
            hessian(
                lambda row_C, i=i: -likelihood.log_density(row_C[None], targets[i : i + 1]).sum(),
                outputs_BC[i],
            )
            for i in range(num)
        ]
    )
    # A handful of float64 operations; the scale of the Gaussian's entries is 1 / 0.3.
    assert_close(likelihood.gradient(outputs_BC, targets), gradient_BC, rtol=0, atol=1e-13)
    assert_close(likelihood.hessian(outputs_BC), hessian_BCC, rtol=0, atol=1e-13)
    root_BSC = likelihood.root(outputs_BC)
    assert root_BSC.shape == (num, likelihood.num_cotangents(num_outputs), num_outputs)
    assert_close(root_BSC.mT @ root_BSC, hessian_BCC, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "logits",
    [[20.0, 0.0, -3.0], [0.0, 40.0, 0.0, 1.0], [-60.0, 0.0, -50.0], [5.0, 5.0], [0.0, 0.0, 0.0, 0.0, 30.0]],
)
def test_softmax_root_and_hessian_keep_their_relative_accuracy_at_saturated_logits(logits, dtype):
    odds = [Fraction(torch.tensor(z, dtype=torch.float64).exp().item()) for z in logits]
    p = [odd / sum(odds) for odd in odds]
    exact_CC = [[(p[i] if i == j else 0) - p[i] * p[j] for j in range(len(p))] for i in range(len(p))]
    expected_BCC = torch.tensor([[float(entry) for entry in row] for row in exact_CC], dtype=torch.float64)[None]
    outputs_BC = torch.tensor([logits], dtype=dtype)
    # Log probabilities up to 60 in size are rounded to 60 eps and exponentiated: 60 eps relative, twice in a
    # product. Products below the smallest normal number are lost.
    rtol, atol = 200 * torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    root_BSC = Categorical().root(outputs_BC).double()
    assert_close(root_BSC.mT @ root_BSC, expected_BCC, rtol=rtol, atol=atol)
    assert_close(Categorical().hessian(outputs_BC).double(), expected_BCC, rtol=rtol, atol=atol)


@by_name
def test_extreme_outputs_give_finite_numbers(likelihood):
    outputs_BC = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [300.0, 300.0, -300.0]])
    targets = example_targets(likelihood, 3, 3, seed=1)
    for value in (
        likelihood.log_density(outputs_BC, targets),
        likelihood.gradient(outputs_BC, targets),
        likelihood.hessian(outputs_BC),
        likelihood.root(outputs_BC),
        likelihood.sample_cotangents(outputs_BC, Seed(1), torch.arange(3), 4),
    ):
        assert bool(torch.isfinite(value).all())


@by_name
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sampled_cotangents_have_the_hessian_as_mean_outer_product(likelihood, seed):
    num_draws = 4000
    outputs_BC = normals(Seed(seed), 3, 4, dtype=torch.float64)
    cotangents_BSC = likelihood.sample_cotangents(
        outputs_BC, Seed(seed).child("fit"), torch.tensor([7, 8, 90]), num_draws
    )
    products_BSCC = cotangents_BSC[..., :, None] * cotangents_BSC[..., None, :] * num_draws
    error_BCC = products_BSCC.mean(dim=1) - likelihood.hessian(outputs_BC)
    standard_error_BCC = products_BSCC.std(dim=1) / num_draws**0.5
    # 48 entries, 3 seeds: 4.5 standard errors are passed once in 1 000 suites. The floor is rounding, for
    # entries that hardly vary, as the Bernoulli's diagonal where p is 1/2.
    assert bool((error_BCC.abs() <= 4.5 * standard_error_BCC + 1e-12).all())


@by_name
def test_sampled_cotangents_are_named_by_the_example_and_not_by_the_batch(likelihood):
    outputs_BC = normals(Seed(3), 6, 3, dtype=torch.float64)
    indexes_B = torch.tensor([5, 0, 9, 1000, 2, 3])
    whole_BSC = likelihood.sample_cotangents(outputs_BC, Seed(1), indexes_B, 5)
    parts = [likelihood.sample_cotangents(outputs_BC[i : i + 2], Seed(1), indexes_B[i : i + 2], 5) for i in (0, 2, 4)]
    # The noise is the same; the last bit of a sigmoid changes with its place in a vector register.
    assert_close(whole_BSC, torch.cat(parts), rtol=1e-14, atol=0)
    assert not torch.equal(whole_BSC, likelihood.sample_cotangents(outputs_BC, Seed(2), indexes_B, 5))
    same_BC = outputs_BC[:1].expand(2, 3)
    first, second = likelihood.sample_cotangents(same_BC, Seed(1), torch.tensor([0, 1]), 50)
    assert not torch.equal(first, second)


@by_name
def test_sixteen_bit_outputs_are_widened_first(likelihood):
    outputs_BC = normals(Seed(4), 2, 3).bfloat16()
    assert torch.equal(likelihood.root(outputs_BC), likelihood.root(outputs_BC.float()))
    assert likelihood.sample_cotangents(outputs_BC, Seed(1), torch.arange(2), 3).dtype == torch.float32


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.5)], ids=lambda likelihood: likelihood.name)
def test_flat_targets_stand_for_one_output(likelihood):
    outputs_BC = normals(Seed(5), 4, 1)
    targets = torch.tensor([0, 1, 1, 0])
    likelihood.check(targets, 1)
    flat = likelihood.log_density(outputs_BC, targets)
    assert flat.shape == (4,)
    assert torch.equal(flat, likelihood.log_density(outputs_BC, targets[:, None]))


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_fitted_noise_maximises_the_likelihood(num_outputs):
    outputs_NC = normals(Seed(6), 50, num_outputs, dtype=torch.float64)
    targets = outputs_NC + normals(Seed(7), 50, num_outputs, dtype=torch.float64) * 0.2
    fitted = Gaussian().fit_noise(outputs_NC, targets)

    def total(factor: float) -> float:
        return Gaussian(fitted.variance * factor).log_density(outputs_NC, targets).sum().item()

    assert total(1.0) > max(total(0.99), total(1.01))
    assert Gaussian().noise_variance is None


def test_noise_that_cannot_be_fitted_or_used_says_so():
    with pytest.raises(NumericalError, match="give `noise_variance`"):
        Gaussian().fit_noise(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ConfigError, match="noise variance is not known"):
        Gaussian().root(torch.zeros(3, 1))
    with pytest.raises(ConfigError, match="positive"):
        Gaussian(0.0)


@pytest.mark.parametrize(
    ("likelihood", "targets", "num_outputs", "sentence"),
    [
        (Categorical(), torch.tensor([0, 1, 3]), 3, "Example 2 has label 3.*classes 0 to 2"),
        (Categorical(), torch.tensor([0, -1, 7]), 3, "Example 1 has label -1"),
        (Categorical(), torch.tensor([0.0, 1.0]), 3, "Labels are float32"),
        (Categorical(), torch.zeros(2, 3, dtype=torch.int64), 3, r"shape \(2, 3\)"),
        (Categorical(), torch.zeros(2, dtype=torch.int64), 1, "at least 2"),
        (Bernoulli(), torch.tensor([[0, 1], [1, 2]]), 2, "Example 1 has target 2"),
        (Bernoulli(), torch.tensor([0.0, float("nan")]), 1, "Example 1 has target nan"),
        (Bernoulli(), torch.tensor([0, 1]), 2, "2 outputs"),
        (
            Gaussian(1.0),
            torch.tensor([[0.0, 1.0], [float("inf"), 0.0]]),
            2,
            "Example 1 has a target that is not",
        ),
        (Gaussian(1.0), torch.zeros(4, 3), 2, r"shape \(4, 3\)"),
        (Gaussian(1.0), torch.zeros(4, 1, 1), 1, "shape"),
    ],
)
def test_targets_that_do_not_fit_are_refused_with_a_sentence(likelihood, targets, num_outputs, sentence):
    with pytest.raises(DataError, match=sentence):
        likelihood.check(targets, num_outputs)


@by_name
def test_good_targets_pass_and_names_lead_to_their_likelihood(likelihood):
    likelihood.check(example_targets(likelihood, 5, 3, seed=1), 3)
    likelihood.check(torch.tensor([1, 0], dtype=torch.uint8), 2 if likelihood.name == "categorical" else 1)
    assert LIKELIHOODS[likelihood.name] is type(likelihood)
    noise = 0.3 if likelihood.name == "gaussian" else None
    assert likelihood_named(likelihood.name, noise) == likelihood


@pytest.mark.parametrize(("name", "noise"), [("poisson", None), ("categorical", 0.1), ("gaussian", -1.0)])
def test_a_likelihood_that_cannot_be_is_refused(name, noise):
    with pytest.raises(AfterfitError):
        likelihood_named(name, noise)
