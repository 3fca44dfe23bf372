"""The first eigenvectors of batches, by squaring where there is one of each to find."""

import pytest
import torch

from afterfit.linalg.low_rank import leading


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_first_eigenvector_of_each_of_a_batch_is_that_of_the_dense_problem(seed: int) -> None:
    torch.manual_seed(seed)
    factors = torch.randn(4, 60, 21, dtype=torch.float64) * torch.logspace(0, 2, 21, dtype=torch.float64)
    grams = factors.mT @ factors

    found = leading(grams, 1)

    dense = torch.linalg.eigh(grams).eigenvectors[..., -1:]
    torch.testing.assert_close((found * dense).sum(dim=-2).abs(), torch.ones(4, 1).double(), rtol=0, atol=1e-13)
    torch.testing.assert_close(found @ found.mT, dense @ dense.mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("apart", [0.0, 1e-6, 1e-4, 1e-2])
def test_of_eigenvalues_close_together_hardly_anything_is_lost(apart: float) -> None:
    torch.manual_seed(1)
    basis = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64)).Q
    values = torch.tensor([1.0, 1.0 - apart, *[0.5] * 7]).double()
    gram = (basis * values) @ basis.mT

    found = leading(gram[None], 1)[0]

    torch.testing.assert_close(found.mT @ found, torch.ones(1, 1).double())
    assert float(found.mT @ gram @ found) >= 1 - 1e-5


def test_a_matrix_of_zeros_has_a_column_of_zeros_and_leaves_its_neighbours_alone() -> None:
    grams = torch.stack([torch.zeros(3, 3), torch.diag(torch.tensor([1.0, 1e-200, 0.0]))]).double()

    found = leading(grams, 1)

    assert found[0].flatten().tolist() == [0, 0, 0]
    assert found[1].flatten().tolist() == [1, 0, 0]
