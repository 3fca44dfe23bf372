"""What comes out of noisy products, against explicit draws of the weights."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from afterfit.methods.dropout.local import Estimator, Fitted, NoisyProducts
from afterfit.methods.dropout.weights import NoiseChoices, NoisyWeight, Site
from afterfit.seeds import Seed

DRAWS = 8000
ERRORS = 5.5  # standard errors; of some thousand moments the largest is at 4 or so


class Product:
    """A layer on two examples."""

    def __init__(self, data: Tensor, weight: Tensor, site: Site, run: Callable) -> None:
        self.data, self.weight, self.site, self.run = data, weight, site, run


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PRODUCTS = {
    "linear": Product(_random(2, 3, 4, seed=1), _random(5, 4, seed=2), Site(1), lambda x, w: F.linear(x, w)),
    "bias": Product(
        _random(2, 4, seed=1), _random(5, 4, seed=2), Site(1), lambda x, w: F.linear(x, w, _random(5, seed=3))
    ),
    "addmm": Product(
        _random(2, 4, seed=1), _random(4, 5, seed=2), Site(0), lambda x, w: torch.addmm(_random(5, seed=3), x, w)
    ),
    "conv1d": Product(
        _random(2, 3, 9, seed=1),
        _random(4, 3, 3, seed=2),
        Site(1),
        lambda x, w: F.conv1d(x, w, None, stride=2, padding=1),
    ),
    "conv2d in groups": Product(
        _random(2, 4, 6, 6, seed=1),
        _random(6, 2, 3, 3, seed=2),
        Site(1, 2),
        lambda x, w: F.conv2d(x, w, _random(6, seed=3), stride=(2, 1), padding=1, dilation=2, groups=2),
    ),
}
CHOICES = {
    "weight": NoiseChoices("independent", "weight", True, "molchanov", 1.0),
    "unit": NoiseChoices("independent", "unit", False, "molchanov", 1.0),
    "layer": NoiseChoices("independent", "layer", False, "molchanov", 1.0),
    "type A": NoiseChoices("correlated", "unit", False, "molchanov", 1.0),
    "dropped": NoiseChoices("bernoulli", "layer", False, "molchanov", 1.0),
}


def fitted(product: Product, choices: NoiseChoices) -> Fitted:
    noisy = NoisyWeight(choices, product.site, tuple(product.weight.shape))
    free = _random(*noisy.free_shape, seed=4) - 1
    return Fitted(noisy, product.weight, free)


def moments(draws_SX: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and variance, each with its standard error."""
    mean, centred = draws_SX.mean(dim=0), draws_SX - draws_SX.mean(dim=0)
    variance, fourth = centred.square().mean(dim=0), centred.pow(4).mean(dim=0)
    root = math.sqrt(len(draws_SX))
    return mean, variance.sqrt() / root, variance, (fourth - variance.square()).clamp_min(0).sqrt() / root


@pytest.mark.parametrize("estimator", ["local", "per_example", "per_batch"])
@pytest.mark.parametrize("kind", CHOICES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_what_comes_out_has_the_moments_of_drawn_weights(name, kind, estimator):
    product, choices = PRODUCTS[name], CHOICES[kind]
    of = fitted(product, choices)
    torch.manual_seed(0)
    if estimator == "per_batch":
        made = torch.stack([sampled(product, of, estimator, product.data).flatten() for _ in range(DRAWS // 4)])
    else:  # examples have noise of their own
        copies = product.data.repeat(DRAWS, *[1] * (product.data.dim() - 1))
        made = sampled(product, of, estimator, copies).view(DRAWS, -1)
    seed = Seed(0, ("test",))
    drawn = (of.noisy.drawn(of.mean, of.free, seed.child(number)) for number in range(DRAWS))
    explicit = torch.stack([product.run(product.data, product.weight + moved).flatten() for moved in drawn])
    mean, mean_error, variance, variance_error = moments(made)
    right_mean, right_mean_error, right, right_error = moments(explicit)
    assert float(right.min()) > 0
    assert ((mean - right_mean).abs() <= ERRORS * (mean_error + right_mean_error)).all()
    assert ((variance - right).abs() <= ERRORS * (variance_error + right_error)).all()


def sampled(product: Product, of: Fitted, estimator: Estimator, data: Tensor) -> Tensor:
    with NoisyProducts([of], estimator, len(data)):
        return product.run(data, product.weight)


@pytest.mark.parametrize("noise", ["correlated", "bernoulli"])
def test_noise_of_input_units_is_the_same_at_all_positions_of_an_image(noise):
    choices = NoiseChoices(noise, "unit", False, "molchanov", 1.0)
    product = Product(torch.ones(2, 30, 4, 4), torch.arange(30.0).view(1, 30, 1, 1), Site(1), F.conv2d)
    of = Fitted(NoisyWeight(choices, Site(1), (1, 30, 1, 1)), product.weight, torch.zeros(30))
    torch.manual_seed(0)
    made = sampled(product, of, "local", product.data)
    assert torch.equal(made, made[..., :1, :1].expand_as(made))
    assert not torch.equal(made[0], made[1])


@pytest.mark.parametrize("kind", ["type A", "dropped"])
@pytest.mark.parametrize("estimator", ["local", "per_example"])
@pytest.mark.parametrize("is_flat", [False, True])
def test_positions_of_an_example_share_the_noise_of_a_unit(is_flat, estimator, kind):
    product = PRODUCTS["linear"]
    of = fitted(product, CHOICES[kind])
    torch.manual_seed(0)
    copies = product.data.repeat(DRAWS, 1, 1)
    with NoisyProducts([of], estimator, len(copies)):
        if is_flat:  # as Hugging Face's Conv1D does
            made = F.linear(copies.flatten(0, 1), of.mean).view(len(copies), 3, -1)
        else:
            made = F.linear(copies, of.mean)
    seed = Seed(0, ("test",))
    drawn = (of.noisy.drawn(of.mean, of.free, seed.child(number)) for number in range(DRAWS))
    explicit = torch.stack([F.linear(product.data, of.mean + moved) for moved in drawn]).sum(dim=2)  # of positions
    summed = made.view(DRAWS, 2, 3, -1).sum(dim=2)
    _, _, variance, error = moments(summed)
    _, _, right, right_error = moments(explicit)
    assert ((variance - right).abs() <= ERRORS * (error + right_error)).all()


def test_small_rates_drop_in_sixteen_bits_too():
    choices = NoiseChoices("bernoulli", "layer", False, "molchanov", 1.0)
    weight = torch.ones(1, 1000, dtype=torch.bfloat16)
    of = Fitted(NoisyWeight(choices, Site(1), (1, 1000)), weight, torch.full((1,), math.log(1e-3 / (1 - 1e-3))))
    torch.manual_seed(0)
    data = torch.eye(1000, dtype=torch.bfloat16).repeat(100, 1)
    with NoisyProducts([of], "local", len(data)):
        made = F.linear(data, weight)
    assert made.dtype == torch.bfloat16
    assert float((made == 0).float().mean()) == pytest.approx(1e-3, rel=0.4)


@pytest.mark.parametrize("estimator", ["per_example", "per_batch"])
@pytest.mark.parametrize("kind", CHOICES)
def test_drawn_weights_are_the_same_at_all_their_uses(kind, estimator):
    of = fitted(PRODUCTS["linear"], CHOICES[kind])
    data = PRODUCTS["linear"].data
    torch.manual_seed(0)
    with NoisyProducts([of], estimator, 2):
        first, second, third = F.linear(data, of.mean), F.linear(data, of.mean), F.linear(data[:, 0], of.mean)
    assert torch.equal(first, second)
    torch.testing.assert_close(third, first[:, 0])


@pytest.mark.parametrize("estimator", ["local", "per_example", "per_batch"])
@pytest.mark.parametrize("kind", CHOICES)
def test_what_all_examples_share_has_noise_and_keeps_its_shape(kind, estimator):
    of = fitted(PRODUCTS["linear"], CHOICES[kind])
    torch.manual_seed(0)
    with NoisyProducts([of], estimator, 7):
        made = F.linear(torch.ones(1, 4).double(), of.mean)
    assert made.shape == (1, 5)
    assert not torch.equal(made, F.linear(torch.ones(1, 4).double(), of.mean))
