"""Divergences against numerical integration."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate

from afterfit.methods.dropout.divergence import gaussian, kingma, molchanov


def exact(log_alpha: float) -> float:
    """Of N(1, alpha) from the log-uniform prior: E log|w| - log(alpha) / 2 and the constant that makes it end at 0."""
    deviation = math.exp(log_alpha / 2)

    def weighted(e: float) -> float:
        return math.log(abs(1 + deviation * e)) * math.exp(-e * e / 2) / math.sqrt(2 * math.pi)

    zero = -1 / deviation  # where the logarithm has its pole
    ends = [-12.0, *([zero] if abs(zero) < 12 else []), 12.0]
    total = sum(integrate.quad(weighted, low, high, limit=200)[0] for low, high in pairwise(ends))
    return total - log_alpha / 2 + (np.euler_gamma + math.log(2)) / 2


@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")  # at the pole
def test_the_sigmoid_is_the_divergence_to_a_hundredth_of_a_nat():
    grid = np.linspace(-8, 8, 81)
    made = molchanov(torch.tensor(grid)).numpy()
    assert np.abs(made - [exact(value) for value in grid]).max() < 0.0095


@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")
def test_the_cubic_is_the_divergence_up_to_alpha_of_one_and_stays_there():
    grid = np.linspace(-8, 0, 41)
    made = kingma(torch.tensor(grid)).numpy()
    assert np.abs(made - [exact(value) for value in grid]).max() < 0.041
    beyond = torch.tensor([0.0, 1.0, 5.0], requires_grad=True)
    assert torch.equal(kingma(beyond).detach(), kingma(torch.zeros(3)))
    (slope,) = torch.autograd.grad(kingma(beyond).sum(), beyond)
    assert slope[1:].abs().max() == 0


def test_the_divergence_from_a_gaussian_is_torchs():
    mean, variance = torch.linspace(-2, 2, 9).double(), torch.logspace(-3, 1, 9).double()
    own = torch.distributions.Normal(mean, variance.sqrt())
    prior = torch.distributions.Normal(torch.zeros(9).double(), 0.5)
    torch.testing.assert_close(gaussian(mean, variance, 4.0), torch.distributions.kl_divergence(own, prior))
