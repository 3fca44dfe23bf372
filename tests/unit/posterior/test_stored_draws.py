"""Exactly the draws that are stored are averaged; everything is held against plain loops over them."""

import math

import pytest
import torch

from afterfit.errors import ConfigError, NumericalError
from afterfit.posterior import stored_draws
from afterfit.posterior.gaussian import Gaussian
from afterfit.posterior.stored_draws import StoredDraws
from afterfit.seeds import Seed, normals

NUM_EXAMPLES, NUM_OUTPUTS, NUM_DRAWS = 7, 4, 5


def outputs(likelihood: str = "categorical", seed: int = 1) -> StoredDraws:
    place = Seed(seed, ("stored",))
    mean = 2 * normals(place.child("mean"), NUM_EXAMPLES, NUM_OUTPUTS, dtype=torch.float64)
    moved = normals(place.child("moved"), NUM_EXAMPLES, NUM_OUTPUTS, NUM_DRAWS, dtype=torch.float64)
    return StoredDraws(mean, 1.5 * moved, likelihood)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_moments_are_means_over_draws_about_the_trained_network(seed):
    given = outputs(seed=seed)
    moved_SBC = given.draws - given.mean
    assert given.draws.shape == (NUM_DRAWS, NUM_EXAMPLES, NUM_OUTPUTS)
    covariance = sum(row[:, :, None] * row[:, None, :] for row in moved_SBC) / NUM_DRAWS
    torch.testing.assert_close(given.covariance, covariance)  # float64 rounding of 5 terms
    torch.testing.assert_close(given.variance, covariance.diagonal(dim1=1, dim2=2))
    observed = given.observe(0.3)
    torch.testing.assert_close(observed.variance, given.variance + 0.3)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_probabilities_and_disagreement_are_moments_of_the_probabilities_of_each_draw(likelihood, seed):
    given = outputs(likelihood, seed)
    each = [row.softmax(dim=1) if likelihood == "categorical" else row.sigmoid() for row in given.draws]
    mean = sum(each) / NUM_DRAWS
    torch.testing.assert_close(given.probabilities(), mean)
    torch.testing.assert_close(given.disagreement, sum((one - mean).square().sum(dim=1) for one in each) / NUM_DRAWS)
    # What the mean of logarithms would give is another number altogether.
    wrong = (sum(one.log() for one in each) / NUM_DRAWS).exp()
    assert float((wrong - mean).abs().max()) > 0.01


def test_pieces_of_any_size_give_the_same_numbers(monkeypatch):
    whole = outputs()
    expected = whole.probabilities(), whole.disagreement
    for draw_bytes in (1, 200, 1000):  # a draw of an example at a time, two examples, three draws of a few
        monkeypatch.setattr(stored_draws, "DRAW_BYTES", draw_bytes)
        parts = outputs()
        torch.testing.assert_close(parts.probabilities(), expected[0])
        torch.testing.assert_close(parts.disagreement, expected[1])


@pytest.mark.parametrize("link", ["probit", "laplace_bridge"])
def test_links_with_a_formula_take_the_gaussian_of_the_same_moments(link):
    given = outputs()
    same = Gaussian(given.mean, given.displacements / math.sqrt(NUM_DRAWS))
    torch.testing.assert_close(same.covariance, given.covariance)
    torch.testing.assert_close(given.probabilities(link), same.probabilities(link))


def test_draws_that_agree_are_the_trained_network_and_confident_disagreement_does_not_cancel():
    still = StoredDraws(outputs().mean, torch.zeros(NUM_EXAMPLES, NUM_OUTPUTS, 3, dtype=torch.float64))
    torch.testing.assert_close(still.probabilities(), still.mean.softmax(dim=1))
    assert float(still.disagreement.abs().max()) < 1e-30
    mean = torch.tensor([[18.0, 0.0]])  # float32: the softmax differs from one in its last digits only
    moved = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    small = StoredDraws(mean, moved).disagreement
    exact = StoredDraws(mean.double(), moved.double()).disagreement
    assert 0 < float(exact) < 1e-15
    assert float(small) < 1e-13  # square of one rounding of a number near one


def test_what_has_no_probabilities_is_refused_in_one_sentence():
    for call in (lambda given: given.probabilities(), lambda given: given.disagreement):
        with pytest.raises(ConfigError, match="call `observe"):
            call(outputs("gaussian"))
        with pytest.raises(ConfigError, match="set the likelihood to `bernoulli`"):
            call(StoredDraws(torch.zeros(2, 1), torch.zeros(2, 1, 3)))
        with pytest.raises(NumericalError, match="lower the scale"):
            call(StoredDraws(torch.zeros(2, 2), torch.full((2, 2, 3), math.inf)))
    with pytest.raises(ConfigError, match="asks for \\(2, 2, S\\)"):
        StoredDraws(torch.zeros(2, 2), torch.zeros(2, 3, 3))
    with pytest.raises(ConfigError, match="at least one"):
        StoredDraws(torch.zeros(2, 2), torch.zeros(2, 2, 0))
