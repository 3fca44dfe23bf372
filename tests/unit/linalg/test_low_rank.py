"""Cores of a low-rank plus diagonal precision against dense inverses, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from afterfit.linalg.low_rank import Core, divergence, divergence_part, entropy, leading, spread, variances, whitened


def precision(num_weights: int, rank: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """U whose columns are neither orthogonal nor of one length, D, and U U^T + D."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(num_weights, rank, generator=generator, dtype=torch.float64)
    factor = factor @ (torch.ones(rank, rank, dtype=torch.float64) + torch.eye(rank, dtype=torch.float64))
    diagonal = 0.1 + torch.rand(num_weights, generator=generator, dtype=torch.float64)
    return factor, diagonal, factor @ factor.mT + diagonal.diag()


def core_of(factor: Tensor, diagonal: Tensor) -> tuple[Tensor, Core]:
    whitened_PL = whitened(factor, diagonal)
    return whitened_PL, Core.of(whitened_PL.mT @ whitened_PL)


@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 99))
def test_draws_of_a_factor_that_is_not_orthogonal_have_the_dense_covariance(num_weights, rank, seed):
    factor, diagonal, dense = precision(num_weights, rank, seed)
    whitened_PL, core = core_of(factor, diagonal)
    eye = torch.eye(num_weights, dtype=torch.float64)
    root = spread(eye, whitened_PL, core.draw @ (whitened_PL.mT @ eye), diagonal)
    torch.testing.assert_close(root @ root.mT, torch.linalg.inv(dense), rtol=1e-9, atol=1e-10)


def test_many_draws_have_the_dense_covariance_within_their_standard_errors():
    factor, diagonal, dense = precision(6, 3)
    whitened_PL, core = core_of(factor, diagonal)
    noise = torch.randn(6, 200_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    draws = spread(noise, whitened_PL, core.draw @ (whitened_PL.mT @ noise), diagonal)
    covariance = torch.linalg.inv(dense)
    variance = covariance.diagonal()
    standard_error = ((variance[:, None] * variance + covariance.square()) / noise.shape[1]).sqrt()
    assert ((draws @ draws.mT / noise.shape[1] - covariance).abs() < 5 * standard_error).all()


@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 99))
def test_solutions_determinants_and_variances_are_the_dense_ones(num_weights, rank, seed):
    factor, diagonal, dense = precision(num_weights, rank, seed)
    whitened_PL, core = core_of(factor, diagonal)
    right = torch.linspace(-1, 2, 2 * num_weights, dtype=torch.float64).view(num_weights, 2)
    scaled = right * diagonal.rsqrt()[:, None]
    solved = spread(scaled, whitened_PL, core.solve @ (whitened_PL.mT @ scaled), diagonal)
    torch.testing.assert_close(solved, torch.linalg.solve(dense, right), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(core.log_det + diagonal.log().sum(), torch.logdet(dense))
    torch.testing.assert_close(
        variances(whitened_PL, diagonal, core.solve), torch.linalg.inv(dense).diagonal(), rtol=1e-9, atol=1e-10
    )


def test_a_factor_of_zeros_leaves_the_diagonal_alone():
    noise = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    diagonal = torch.full((5,), 4.0, dtype=torch.float64)
    whitened_PL, core = core_of(torch.zeros(5, 3, dtype=torch.float64), diagonal)
    assert torch.equal(spread(noise, whitened_PL, core.draw @ (whitened_PL.mT @ noise), diagonal), noise / 2)
    assert float(core.log_det) == 0.0


def test_a_batch_of_gaussians_is_each_of_them():
    made = [precision(7, 2, seed) for seed in range(3)]
    factor, diagonal = torch.stack([each[0] for each in made]), torch.stack([each[1] for each in made])
    whitened_RPL, core = core_of(factor, diagonal)
    for number, (each, own, _) in enumerate(made):
        whitened_PL, alone = core_of(each, own)
        torch.testing.assert_close(core.draw[number], alone.draw)
        torch.testing.assert_close(whitened_RPL[number], whitened_PL)
    torch.testing.assert_close(core.log_det, torch.stack([core_of(each, own)[1].log_det for each, own, _ in made]))


@pytest.mark.parametrize("rank", [1, 3, 6, 9])
def test_leading_vectors_are_orthonormal_and_span_the_largest_eigenspace(rank):
    _, _, dense = precision(6, 6)
    made = leading(dense, rank)
    kept = min(rank, 6)
    assert made.shape == (6, rank)
    torch.testing.assert_close((made.mT @ made)[-kept:, -kept:], torch.eye(kept, dtype=torch.float64))
    expected = torch.linalg.eigh(dense).eigenvectors[:, 6 - kept :]
    torch.testing.assert_close(made @ made.mT, expected @ expected.mT)
    assert not made[:, : rank - kept].any()


def test_equal_and_zero_eigenvalues_still_give_orthonormal_vectors():
    for dense in (torch.zeros(5, 5), torch.eye(5), torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]))):
        made = leading(dense, 2)
        torch.testing.assert_close(made.mT @ made, torch.eye(2, dtype=torch.float64))


def test_entropy_and_divergence_are_those_of_torch():
    factor, diagonal, dense = precision(6, 2)
    whitened_PL, core = core_of(factor, diagonal)
    mean, prior = torch.linspace(-1, 1, 6, dtype=torch.float64), torch.linspace(0.5, 2, 6, dtype=torch.float64)
    fitted = torch.distributions.MultivariateNormal(mean, precision_matrix=dense)
    before = torch.distributions.MultivariateNormal(torch.zeros_like(mean), precision_matrix=prior.diag())
    log_det = core.log_det + diagonal.log().sum()
    made = divergence(log_det, divergence_part(mean, variances(whitened_PL, diagonal, core.solve), prior), 6)
    torch.testing.assert_close(made, torch.distributions.kl_divergence(fitted, before))
    torch.testing.assert_close(entropy(log_det, 6), fitted.entropy())
