"""The Nystrom approximation from an image of random columns."""

import pytest
import torch
from torch import Tensor

from afterfit.linalg.nystrom import NystromFactor, nystrom_factor
from afterfit.seeds import Seed, normals, signs

NUM_WEIGHTS = 200


def matrix(rank: int, seed: int = 1) -> Tensor:
    """(P, P), eigenvalues from 10 down to 0.1."""
    basis = torch.linalg.qr(normals(Seed(seed), NUM_WEIGHTS, rank, dtype=torch.float64)).Q
    return (basis * torch.logspace(1, -1, rank, dtype=torch.float64)) @ basis.T


def factor(curvature_PP: Tensor, num_probes: int, dtype: torch.dtype = torch.float64) -> tuple[NystromFactor, Tensor]:
    """The factor, and its columns U (P, K)."""
    probes_PS = signs(Seed(2).key(), range(len(curvature_PP)), num_probes, dtype=torch.float64)
    image_PS = (curvature_PP @ probes_PS).to(dtype).double()
    made = nystrom_factor(probes_PS.T @ image_PS, image_PS.T @ image_PS, dtype)
    return made, image_PS @ made.combination


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sixty_probes_of_rank_fifteen_keep_exactly_fifteen_directions(seed, dtype):
    curvature_PP = matrix(15, seed)
    made, columns_PK = factor(curvature_PP, 60, dtype)
    assert len(made.values) == 15
    # The core squares the condition number, 100, of the rounding of the image; some tens of terms.
    rtol = 1e4 * 30 * torch.finfo(dtype).eps
    expected = torch.linalg.eigvalsh(curvature_PP).flip(0)[:15]
    assert torch.allclose(made.values, expected, rtol=rtol)
    assert torch.allclose(columns_PK.T @ columns_PK, torch.eye(15, dtype=torch.float64), atol=rtol)


def test_as_many_probes_as_weights_give_the_matrix_itself():
    curvature_PP = matrix(NUM_WEIGHTS)
    made, columns_PK = factor(curvature_PP, NUM_WEIGHTS)
    again_PP = (columns_PK * made.values) @ columns_PK.T
    # Signs of 200 x 200 have a condition number of some hundreds, and the core squares the matrix's 100.
    assert float((again_PP - curvature_PP).abs().max()) <= 1e-8 * 10


@pytest.mark.parametrize("num_probes", [5, 20, 40])
def test_fewer_probes_than_the_rank_never_say_more_than_there_is(num_probes):
    curvature_PP = matrix(60)
    made, columns_PK = factor(curvature_PP, num_probes)
    assert len(made.values) == num_probes
    assert torch.equal(made.values, made.values.sort(descending=True).values)
    missing_PP = curvature_PP - (columns_PK * made.values) @ columns_PK.T
    # G minus its Nystrom approximation is positive semi-definite, to rounding.
    assert float(torch.linalg.eigvalsh(missing_PP)[0]) > -1e-9 * 10


def test_no_curvature_has_no_directions():
    made = nystrom_factor(torch.zeros(4, 4), torch.zeros(4, 4), torch.float64)
    assert made.values.shape == (0,)
    assert made.combination.shape == (4, 0)
