"""The best full Gaussian of logistic regression, and what is measured of it."""

import math

import pytest
import torch

from full_gaussian import FullGaussian, Logits, Problem, divergence, negative_log_likelihood, symmetric_divergence


def _problem(seed: int) -> Problem:
    torch.manual_seed(seed)
    inputs_NP = torch.randn(40, 4, dtype=torch.float64)
    targets_N = (inputs_NP @ torch.tensor([1.0, -2.0, 0.5, 0.0]).double() + torch.randn(40) > 0).double()
    return Problem(inputs_NP, targets_N, torch.tensor([1.0, 1.0, 1.0, 1e-2]).double())


@pytest.mark.parametrize("deviation", [1e-3, 1.0, 30.0])
def test_expectations_are_those_of_the_normal_distribution(deviation: float) -> None:
    logits = Logits(torch.tensor([0.7, -3.0]).double(), torch.tensor([deviation, deviation]).double())

    squares = logits.expected(torch.square)
    cosines = logits.expected(torch.cos)
    both_sides = logits.expected(torch.sigmoid) + Logits(-logits.mean_N, logits.deviation_N).expected(torch.sigmoid)

    torch.testing.assert_close(squares, logits.mean_N.square() + deviation**2, rtol=1e-12, atol=0)
    torch.testing.assert_close(cosines, logits.mean_N.cos() * math.exp(-(deviation**2) / 2), rtol=0, atol=1e-12)
    torch.testing.assert_close(both_sides, torch.ones(2).double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_best_gaussian_is_a_stationary_point_of_the_elbo_in_all_its_numbers(seed: int) -> None:
    problem = _problem(seed)
    best = problem.best()
    lowest = problem.negative_elbo(best)

    for number in range(4):
        unit_P = torch.eye(4, dtype=torch.float64)[number]
        for other in range(4):
            lean_PP = torch.outer(unit_P, torch.eye(4, dtype=torch.float64)[other])
            lean_PP = lean_PP + lean_PP.mT
            for sign in (-1e-4, 1e-4):
                moved = FullGaussian(best.mean_P + sign * unit_P, best.precision_PP + sign * lean_PP)
                risen = problem.negative_elbo(moved) - lowest
                assert 0 < risen < 1e-5  # the square of the move times a curvature: no slope is left


def test_divergences_are_those_of_torch() -> None:
    problem = _problem(1)
    left, right = problem.best(), FullGaussian(torch.ones(4).double(), torch.eye(4).double() * 3)
    normals = [
        torch.distributions.MultivariateNormal(side.mean_P, precision_matrix=side.precision_PP)
        for side in (left, right)
    ]
    there = float(torch.distributions.kl_divergence(normals[0], normals[1]))
    back = float(torch.distributions.kl_divergence(normals[1], normals[0]))

    assert divergence(left, right) == pytest.approx(there, rel=1e-12)
    assert symmetric_divergence(left, right) == pytest.approx((there + back) / 2, rel=1e-12)
    assert symmetric_divergence(left, left) == pytest.approx(0, abs=1e-12)


def test_the_negative_log_likelihood_is_that_of_the_mean_probability() -> None:
    problem = _problem(2)
    best = problem.best()
    normal = torch.distributions.MultivariateNormal(best.mean_P, precision_matrix=best.precision_PP)
    probabilities_N = torch.sigmoid(normal.sample(torch.Size([200_000])) @ problem.inputs_NP.mT).mean(dim=0)
    sampled = torch.nn.functional.binary_cross_entropy(probabilities_N, problem.targets_N)

    made = negative_log_likelihood(best, problem.inputs_NP, problem.targets_N)

    assert made == pytest.approx(float(sampled), abs=2e-3)  # four standard errors of 200 000 draws
