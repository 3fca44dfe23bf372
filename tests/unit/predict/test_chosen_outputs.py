"""Predictions of some outputs only, as networks with many need them."""

import pytest
import torch

import afterfit
from afterfit.errors import ConfigError
from cases import assert_near, case_named

CASE = case_named("mlp")


@pytest.fixture(scope="module", params=["none", "prior"])
def posterior(request):
    method = afterfit.Ella(num_landmarks=20, num_features=6, prior_precision=1.0, complement=request.param)
    return afterfit.fit(CASE.module(), CASE.items, method=method, likelihood=CASE.likelihood)


@pytest.mark.parametrize("outputs", [[0], [2, 0]])
def test_they_are_those_of_the_whole_prediction(posterior, outputs):
    inputs = CASE.fresh.batch(range(5)).inputs
    whole, some = posterior.predict(inputs), posterior.predict(inputs, outputs=outputs)
    assert torch.equal(some.mean, whole.mean[:, outputs])
    assert_near(some.covariance, whole.covariance[:, outputs][:, :, outputs], 1e-10)


@pytest.mark.parametrize("outputs", [[], [0, 0], [-1], [CASE.num_outputs]])
def test_outputs_that_there_are_not_are_refused_with_the_remedy(posterior, outputs):
    with pytest.raises(ConfigError, match="give numbers from 0, each once"):
        posterior.predict(CASE.fresh.batch(range(5)).inputs, outputs=outputs)
