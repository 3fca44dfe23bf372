"""The sketch with Monte Carlo cotangents; with exact ones it is held against dense Laplace in `agreement`."""

import pytest
from torch import Tensor

import afterfit
from cases import NetworkCase, case_named, dense_laplace

PRIOR = 0.7
SAMPLED = pytest.mark.parametrize("name", ["mlp", "bernoulli", "regression"])


def covariance(case: NetworkCase, seed: int, num_samples: int | None, **options: int) -> Tensor:
    """Of the outputs at fresh inputs, with as many probes as weights."""
    method = afterfit.GgnNystrom(
        num_probes=case.network().layout.num_weights, num_samples=num_samples, seed=seed, prior_precision=PRIOR
    )
    posterior = afterfit.fit(
        case.module(),
        case.items,
        method=method,
        likelihood=case.likelihood,
        output=case.output,
        **({"micro_batch": 4, "num_shards": 2} | options),  # type: ignore[arg-type]
    )
    return posterior.predict(case.fresh.batch(range(5))).covariance


def error(case: NetworkCase, actual: Tensor) -> float:
    """Relative, in the Frobenius norm."""
    expected = dense_laplace(case, PRIOR, 1.0)(case.fresh.batch(range(5)))
    return float((actual - expected).norm() / expected.norm())


@SAMPLED
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_many_samples_come_near_dense_laplace_as_their_root(name, seed):
    case = case_named(name)
    few, many = (error(case, covariance(case, seed, num)) for num in (20, 2000))
    assert many < 0.02  # measured: at most .005, and .06 with 20 samples
    assert many < few / 3


@SAMPLED
def test_samples_belong_to_their_examples_and_not_to_micro_batches(name):
    case = case_named(name)
    one, other = covariance(case, 1, 2), covariance(case, 1, 2, micro_batch=3, num_shards=1)
    assert float((one - other).norm()) < 1e-9 * float(one.norm())
