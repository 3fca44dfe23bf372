import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from afterfit import seeds
from afterfit.errors import ConfigError, NumericalError
from afterfit.posterior import links
from afterfit.posterior.gaussian import Gaussian
from afterfit.posterior.links import LINKS
from afterfit.seeds import Seed

SEED = Seed(3, ("links",))
NODES, WEIGHTS = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(100))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def normals(seed: Seed, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return seeds.normals(seed, *shape, dtype=dtype)


def two_dimensional_quadrature(mean_C: Tensor, root_C2: Tensor) -> Tensor:
    """Expected softmax of a Gaussian with two columns in its root, by a product of Gauss-Hermite rules."""
    grid = torch.cartesian_prod(NODES, NODES)
    weights = torch.cartesian_prod(WEIGHTS, WEIGHTS).prod(dim=1)
    return ((mean_C + grid @ root_C2.mT).softmax(dim=-1) * weights[:, None]).sum(dim=0)


def test_the_registry_offers_the_three_links():
    assert set(LINKS) == {"probit", "monte_carlo", "laplace_bridge"}


@pytest.mark.parametrize("outputs", [2, 3, 10])
def test_monte_carlo_agrees_with_quadrature(outputs: int):
    mean = normals(SEED.child("mean"), 1, outputs)
    root = 2 * normals(SEED.child("root"), 1, outputs, 2)
    num = 20_000
    drawn = Gaussian(mean, root).probabilities("monte_carlo", num_draws=num, seed=SEED)
    # A probability's standard error is at most 1 / (2 sqrt(num)); four of them.
    expected = two_dimensional_quadrature(mean[0], root[0])
    torch.testing.assert_close(drawn[0], expected, rtol=0, atol=2 / math.sqrt(num))


def test_monte_carlo_with_a_dense_part_agrees_with_the_same_covariance_as_a_root():
    mean, root = normals(SEED.child("mean"), 1, 4), normals(SEED.child("root"), 1, 4, 2)
    split = Gaussian(mean, root[..., :1], root[..., 1:] @ root[..., 1:].mT, indexes=torch.arange(1))
    num = 20_000
    drawn = split.probabilities("monte_carlo", num_draws=num, seed=SEED)
    expected = two_dimensional_quadrature(mean[0], root[0])
    torch.testing.assert_close(drawn[0], expected, rtol=0, atol=2 / math.sqrt(num))


@pytest.mark.parametrize("dense", [False, True])
def test_monte_carlo_does_not_depend_on_the_size_of_its_pieces(dense: bool, monkeypatch: pytest.MonkeyPatch):
    mean, root = normals(SEED.child("mean"), 5, 4), normals(SEED.child("root"), 5, 4, 3)
    case = Gaussian(mean, root, root @ root.mT if dense else None, indexes=torch.arange(5))
    whole = case.probabilities("monte_carlo", num_draws=33, seed=SEED)
    monkeypatch.setattr(links, "DRAW_BYTES", 500)
    torch.testing.assert_close(case.probabilities("monte_carlo", num_draws=33, seed=SEED), whole)


def test_monte_carlo_never_holds_all_draws(monkeypatch: pytest.MonkeyPatch):
    held: list[int] = []
    squash = links.squash

    def watching(logits: Tensor, likelihood: links.Meaning) -> Tensor:
        held.append(logits.numel() * logits.element_size())
        return squash(logits, likelihood)

    monkeypatch.setattr(links, "squash", watching)
    case = Gaussian(torch.zeros(64, 1000), torch.zeros(64, 1000, 2))
    case.probabilities("monte_carlo", num_draws=256)
    assert len(held) > 1
    assert max(held) <= links.DRAW_BYTES / 3
    assert sum(held) == 64 * 1000 * 256 * 4


@pytest.mark.parametrize("deviation", [0.1, 1.0, 3.0, 10.0])
def test_probit_of_one_sigmoid_is_within_two_hundredths_of_quadrature(deviation: float):
    mean = torch.linspace(-8, 8, 65, dtype=torch.float64)[:, None]
    root = torch.full((65, 1, 1), deviation, dtype=torch.float64)
    # A fine trapezium rule over +-10 deviations: the sigmoid is too steep for Gauss-Hermite at 10 deviations.
    grid = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    weights = torch.exp(-grid.square() / 2)
    expected = ((mean + deviation * grid).sigmoid() * weights).sum(dim=1, keepdim=True) / weights.sum()
    probit = Gaussian(mean, root, likelihood="bernoulli").probabilities("probit")
    torch.testing.assert_close(probit, expected, rtol=0, atol=0.02)


def test_two_class_probit_has_the_closed_form():
    case = Gaussian(torch.tensor([[1.0, -1.0]]), torch.tensor([[[2.0], [0.0]]]))
    shrunk = torch.tensor([1 / math.sqrt(1 + math.pi / 2), -1.0])
    torch.testing.assert_close(case.probabilities("probit")[0], shrunk.softmax(dim=0))


def dirichlet_gaussian(alpha: Tensor) -> Gaussian:
    """The Laplace approximation of a Dirichlet in the softmax basis (arXiv:2003.01227, equations 7 and 8)."""
    num = len(alpha)
    mean = alpha.log() - alpha.log().mean()
    inverse = 1 / alpha
    covariance = inverse.diag() - (inverse[:, None] + inverse[None, :] - inverse.mean()) / num
    values, vectors = torch.linalg.eigh(covariance)
    return Gaussian(mean[None], (vectors * values.clamp_min(0).sqrt())[None])


@pytest.mark.parametrize("num", [2, 3, 10])
def test_the_laplace_bridge_inverts_the_laplace_approximation_of_a_dirichlet(num: int):
    alpha = torch.linspace(2, 30, num, dtype=torch.float64)  # variances small enough that nothing is corrected
    bridged = dirichlet_gaussian(alpha).probabilities("laplace_bridge")
    torch.testing.assert_close(bridged[0], alpha / alpha.sum(), rtol=1e-10, atol=0)


def test_the_two_class_laplace_bridge_is_a_sigmoid_of_the_rescaled_difference():
    mean = torch.tensor([[1.5, -0.5]], dtype=torch.float64)
    for deviation, scale in ((0.5, 1.0), (8.0, 4.0)):  # difference's variance over 4 is 1/16, 16
        root = torch.tensor([[[deviation], [0.0]]], dtype=torch.float64)
        bridged = Gaussian(mean, root).probabilities("laplace_bridge")
        expected = torch.tensor(2.0 / scale, dtype=torch.float64).sigmoid()
        torch.testing.assert_close(bridged[0, 0], expected)
        single = Gaussian(mean[:, :1] - mean[:, 1:], root[:, :1], likelihood="bernoulli")
        torch.testing.assert_close(single.probabilities("laplace_bridge")[0, 0], expected)


def test_the_laplace_bridge_is_uniform_in_the_limit_of_large_equal_variances():
    case = Gaussian(normals(SEED, 1, 5), 1e6 * torch.eye(5, dtype=torch.float64)[None])
    # Logits are shrunk by sqrt(c), about 7e5.
    torch.testing.assert_close(
        case.probabilities("laplace_bridge"), torch.full((1, 5), 0.2, dtype=torch.float64), rtol=0, atol=1e-5
    )


def test_a_variance_that_all_logits_share_leaves_what_a_softmax_sees():
    mean = normals(SEED, 2, 4)
    shared = torch.full((2, 4, 1), 3.0, dtype=torch.float64)
    case = Gaussian(mean, shared)
    for link in ("monte_carlo", "laplace_bridge"):
        torch.testing.assert_close(case.probabilities(link), mean.softmax(dim=1))


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("link", list(LINKS))
def test_without_covariance_the_probabilities_are_those_of_the_mean(link, dtype, likelihood):
    mean = 20 * normals(SEED, 4, 3, dtype=dtype)
    found = Gaussian(mean, torch.zeros(4, 3, 2, dtype=dtype), likelihood=likelihood).probabilities(link)
    expected = mean.softmax(dim=1) if likelihood == "categorical" else mean.sigmoid()
    assert found.dtype == dtype
    if link == "probit":
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected)


@settings(max_examples=40)
@given(
    st.sampled_from(list(LINKS)),
    st.integers(2, 12),
    st.integers(0, 5),
    st.floats(-12, 6),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 10_000),
)
def test_class_probabilities_are_finite_and_sum_to_one(link, outputs, rank, power, dtype, number):
    root = (10**power * normals(Seed(number, ("root",)), 3, outputs, rank)).to(dtype)
    found = Gaussian((30 * normals(Seed(number), 3, outputs)).to(dtype), root).probabilities(link, num_draws=8)
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("link", list(LINKS))
def test_one_example_of_a_thousand_classes_and_of_one_output_work(link):
    wide = Gaussian(normals(SEED, 1, 1000), normals(SEED.child("root"), 1, 1000, 3)).probabilities(link)
    assert wide.shape == (1, 1000)
    single = Gaussian(torch.ones(1, 1), torch.ones(1, 1, 1), likelihood="bernoulli").probabilities(link)
    assert 0.5 < float(single) < 0.74  # pulled from sigmoid(1) towards a half


@pytest.mark.parametrize(
    ("case", "link", "message"),
    [
        (Gaussian(torch.zeros(1, 2), torch.zeros(1, 2, 1)), "mean_field", "choose one of"),
        (Gaussian(torch.zeros(1, 2), torch.zeros(1, 2, 1), likelihood="gaussian"), "probit", "observe"),
        (Gaussian(torch.zeros(1, 1), torch.zeros(1, 1, 1)), "probit", "bernoulli"),
    ],
)
def test_what_has_no_probabilities_is_refused(case, link, message):
    with pytest.raises(ConfigError, match=message):
        case.probabilities(link)


def test_no_draws_are_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        Gaussian(torch.zeros(1, 2), torch.zeros(1, 2, 1)).probabilities("monte_carlo", num_draws=0)


@pytest.mark.parametrize("link", list(LINKS))
def test_outputs_that_are_not_finite_are_refused(link):
    broken = Gaussian(torch.zeros(1, 2), torch.full((1, 2, 1), torch.inf))
    with pytest.raises(NumericalError, match="not finite"):
        broken.probabilities(link)


def test_noise_is_told_apart_from_what_data_would_take_away():
    case = Gaussian(torch.zeros(2, 2), torch.tensor([[[1.0], [2.0]]]).expand(2, -1, -1), likelihood="gaussian")
    observed = case.observe(torch.tensor([0.5, 0.25]))
    assert observed.epistemic[0].tolist() == [1.0, 4.0]
    assert observed.noise[1].tolist() == [0.5, 0.25]
    assert observed.variance[1].tolist() == [1.5, 4.25]
