"""The small convolutional network."""

import pytest
import torch

from afterfit.network.loading import load_module
from afterfit.network.settings import NetworkSettings

FACTORY = "afterfit.network.lenet:lenet"


def test_it_has_the_layers_and_the_weights_that_its_text_names():
    module = load_module(NetworkSettings(factory=FACTORY))
    named = dict(module.named_parameters())
    shapes = [tuple(weight.shape) for name, weight in named.items() if name.endswith("weight")]
    assert shapes == [(6, 1, 5, 5), (16, 6, 5, 5), (120, 256), (84, 120), (10, 84)]
    assert sum(weight.numel() for weight in named.values()) == 44_426
    assert module(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_number_of_labels_is_the_number_of_outputs():
    module = load_module(NetworkSettings(factory=FACTORY, arguments={"num_labels": 3}))
    assert module(torch.zeros(2, 1, 28, 28)).shape == (2, 3)


@pytest.mark.parametrize("is_smooth", [False, True])
def test_the_smooth_one_is_bent_everywhere_and_the_other_at_its_kinks_only(is_smooth):
    module = load_module(NetworkSettings(factory=FACTORY, arguments={"is_smooth": is_smooth})).double()
    image, direction = torch.randn(2, 1, 1, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = torch.linspace(0, 1e-5, 11, dtype=torch.float64)
    slopes = torch.stack([torch.func.jvp(module, (image + step * direction,), (direction,))[1] for step in steps])
    change = slopes.diff(dim=0).abs().amax(dim=(1, 2))
    assert bool((change > 1e-9).all()) if is_smooth else float(change.median()) < 1e-12


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_example_does_not_see_the_others_of_its_batch(seed):
    module = load_module(NetworkSettings(factory=FACTORY, seed=seed)).double()
    images_BCHW = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    alone = torch.cat([module(image[None]) for image in images_BCHW])
    assert torch.allclose(module(images_BCHW), alone, rtol=0, atol=1e-12)  # sums of 256 numbers of order 1, in float64
