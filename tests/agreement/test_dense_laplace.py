"""Both methods against dense linearised Laplace, in float64, on every tiny network of the table."""

import pytest
import torch
from torch import Tensor

import afterfit
from afterfit.algebra import Batch
from afterfit.plan.api import Posterior
from cases import NETWORK_CASES, NetworkCase, assert_near, dense_evidence, dense_ggn, dense_jacobian, dense_laplace

PRIOR = 0.7
TEMPERATURE = 1.5
EVERY_CASE = pytest.mark.parametrize("case", NETWORK_CASES, ids=str)


def tolerance(case: NetworkCase) -> float:
    """1e-8, as asked; where the network itself rounds to float32, 1e-5 (its Jacobian depends on the batch)."""
    return max(1e-8, case.rtol if case.rtol > 1e-8 else 0.0)


def fitted(case: NetworkCase, method: object) -> Posterior:
    return afterfit.fit(
        case.module(),
        case.items,
        method=method,  # type: ignore[arg-type]
        likelihood=case.likelihood,
        output=case.output,
        micro_batch=4,
        num_shards=2,
    )


def everything(case: NetworkCase) -> Batch:
    return case.examples.batch(range(case.num_examples))


def ella(case: NetworkCase, num_features: int, complement: str = "none") -> Posterior:
    num_rows = case.num_examples * case.num_outputs
    method = afterfit.Ella(
        num_landmarks=num_rows,
        num_features=num_features,
        prior_precision=PRIOR,
        temperature=TEMPERATURE,
        complement=complement,
    )
    return fitted(case, method)


def flat_basis(posterior: Posterior) -> Tensor:
    return torch.cat(list(posterior.basis.values()))


@EVERY_CASE
def test_ella_with_every_row_equals_dense_laplace_at_training_inputs(case):
    posterior = ella(case, num_features=case.num_examples * case.num_outputs)
    expected = dense_laplace(case, PRIOR, TEMPERATURE)(everything(case))
    actual = posterior.predict(everything(case).inputs).covariance
    assert_near(actual, expected, tolerance(case))


@EVERY_CASE
def test_ella_with_the_prior_outside_equals_dense_laplace_everywhere(case):
    posterior = ella(case, case.num_examples * case.num_outputs, complement="prior")
    fresh = case.fresh.batch(range(5))
    expected = dense_laplace(case, PRIOR, TEMPERATURE)(fresh)
    assert_near(posterior.predict(fresh).covariance, expected, tolerance(case))


@EVERY_CASE
@pytest.mark.parametrize("part", [0.3, 1.0])
def test_ella_equals_the_dense_subspace_formula_at_fresh_inputs_and_never_exceeds_laplace(case, part):
    posterior = ella(case, max(1, int(part * case.num_examples * case.num_outputs)))
    fresh = case.fresh.batch(range(5))
    basis_PK = flat_basis(posterior)
    identity_KK = torch.eye(basis_PK.shape[1], dtype=basis_PK.dtype)
    assert_near(basis_PK.T @ basis_PK, identity_KK, max(1e-6, tolerance(case)))
    precision_KK = basis_PK.T @ dense_ggn(case) @ basis_PK / TEMPERATURE + PRIOR * identity_KK
    features_BCK = dense_jacobian(case.network(), fresh) @ basis_PK
    expected = features_BCK @ torch.linalg.solve(precision_KK, features_BCK.mT)
    actual = posterior.predict(fresh).covariance
    assert_near(actual, expected, tolerance(case))
    gap = dense_laplace(case, PRIOR, TEMPERATURE)(fresh) - actual
    scale = float(actual.abs().max())
    assert float(torch.linalg.eigvalsh(gap).min()) >= -tolerance(case) * scale
    assert float(torch.linalg.eigvalsh(actual).min()) >= -1e-12 * scale


@EVERY_CASE
def test_a_sketch_with_as_many_probes_as_weights_equals_dense_laplace_and_its_evidence(case):
    method = afterfit.GgnNystrom(num_probes=case.num_weights, prior_precision=PRIOR, temperature=TEMPERATURE)
    posterior = fitted(case, method)
    fresh = case.fresh.batch(range(5))
    expected = dense_laplace(case, PRIOR, TEMPERATURE)(fresh)
    assert_near(posterior.predict(fresh).covariance, expected, tolerance(case))
    evidence = dense_evidence(case, PRIOR, TEMPERATURE)
    assert posterior.facts["log_evidence_nats"] == pytest.approx(evidence, rel=tolerance(case))
