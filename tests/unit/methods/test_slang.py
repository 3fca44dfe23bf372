"""What SLANG is asked for, refuses and says."""

from typing import Any

import pytest
import torch

from afterfit import Slang
from afterfit.errors import ConfigError
from afterfit.layout import Layout
from afterfit.methods.natural_gradient.fitted import notes_of
from afterfit.methods.natural_gradient.recipe import NaturalGradient, Shards, prior_of
from afterfit.methods.natural_gradient.sampled import GaussianDraws
from afterfit.network.likelihoods import Categorical, Gaussian, Likelihood
from afterfit.plan.bench import Bench
from afterfit.plan.resolve import request_from_objects


def bench(num_examples: int = 40) -> Bench:
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).eval()
    items = [{"input": torch.randn(3), "label": number % 2} for number in range(num_examples)]
    request = request_from_objects(network, {"train": items}, Slang(), Categorical())
    return Bench(request.bench("", {}))


def recipe(likelihood: Likelihood | None = None, **choices: Any) -> NaturalGradient:
    return NaturalGradient(likelihood=likelihood or Categorical(), rank=2, **choices)


@pytest.mark.parametrize(
    ("choices", "likelihood", "says"),
    [
        ({"noise_ramp": 2.0}, Categorical(), "has no noise; remove `method.noise_ramp`"),
        ({}, Gaussian(), "needs the noise variance of a regression"),
        ({"group_precisions": (("hed.*", 1.0),)}, Categorical(), "'hed.*' in `group_precisions` chooses no weights"),
    ],
)
def test_choices_that_mean_nothing_are_refused(choices, likelihood, says):
    with pytest.raises(ConfigError, match=says.replace("*", r"\*")):
        Slang(**choices).stages(likelihood, bench())


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"precision_rate": 1.0}, "keep some precision"),
        ({"learning_rate": 2.0}, "set `precision_rate` below 1"),
        ({"num_slices": 50, "batch_size": 20}, "cannot be cut into 50"),
        ({"start": "ella", "rank": 200}, "`rank` is 200, above the 80 outputs"),
    ],
)
def test_choices_that_do_not_fit_the_data_are_refused(choices, says):
    with pytest.raises(ConfigError, match=says):
        Slang(**choices).check(40, 2)


def test_a_regression_that_starts_from_a_trained_network_may_have_its_noise_fitted():
    assert "variational" in Slang(start="ggn_nystrom", rank=2).stages(Gaussian(), bench())


def test_the_noise_precision_rises_geometrically_over_the_first_half():
    ramped = recipe(Gaussian(0.01), noise_ramp=4.0)
    precisions = [1 / ramped.at(step, 100).noise_variance for step in (0, 25, 50, 99)]  # type: ignore[union-attr]
    assert precisions == pytest.approx([4.0, 20.0, 100.0, 100.0])


def test_step_sizes_fall_with_a_power_of_the_step():
    assert recipe().decayed(0.1, 5) == 0.1
    assert recipe(decay=0.5).decayed(0.1, 9) == pytest.approx(0.025)


def test_the_last_group_that_matches_a_block_gives_its_prior_precision():
    layout = Layout.of(torch.nn.Linear(3, 2), tile_weights=100)
    groups = (("*", 5.0), ("*bias", 1e-6))
    assert prior_of(recipe(group_precisions=groups), layout.tiles[0], torch.float64).tolist() == [5.0] * 6 + [1e-6] * 2
    assert prior_of(recipe(prior_precision=3.0), layout.tiles[0], torch.float64).item() == 3.0


@pytest.mark.parametrize("num_shards", [1, 3, 40])
def test_shards_hold_every_tile_once_in_order_and_about_as_many_weights(num_shards):
    layout = Layout.of(torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Linear(20, 5)), tile_weights=32)
    shards = Shards(layout, num_shards)
    assert [tile for run in shards.runs for tile in run] == list(layout.tiles)
    sizes = [sum(tile.size for tile in run) for run in shards.runs]
    assert max(sizes) <= layout.num_weights / num_shards + 2 * 32


def test_a_collapsed_precision_and_a_frozen_mean_are_told():
    assert list(notes_of(smallest=1.0, way=0.5)) == []
    (collapsed,) = notes_of(smallest=1e-5, way=0.5)
    assert "fell to 1.0e-05" in collapsed
    (frozen,) = notes_of(smallest=1.0, way=1e-6)
    assert "frozen" in frozen


def test_more_draws_leave_the_chunks_that_are_there():
    before = Slang(num_draws=3).stages(Categorical(), bench())
    after = Slang(num_draws=3, more_draws=(7,)).stages(Categorical(), bench())
    assert {name: each for name, each in after.items() if name in before} == before
    assert after["draws-00003"].recipe == GaussianDraws(3, 4, 0)
