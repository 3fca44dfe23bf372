"""Eigenpairs of small cores, and how many of them are more than rounding."""

import pytest
import torch

from afterfit.errors import NumericalError
from afterfit.linalg.eigen import eigenpairs, numerical_rank
from afterfit.seeds import Seed, normals


def psd(seed: int, size: int, rank: int) -> torch.Tensor:
    root = normals(Seed(seed), size, rank, dtype=torch.float64)
    return root @ root.T


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_pairs_fall_are_orthonormal_and_make_the_matrix_again(seed):
    matrix = psd(seed, 12, 12)
    values, vectors = eigenpairs(matrix)
    assert torch.equal(values, values.sort(descending=True).values)
    # float64, products of 12 terms
    assert torch.allclose(vectors.T @ vectors, torch.eye(12, dtype=torch.float64), atol=1e-13)
    assert torch.allclose((vectors * values) @ vectors.T, matrix, atol=1e-12)


def test_float32_is_widened_and_rounding_that_breaks_the_symmetry_does_not_matter():
    matrix = psd(1, 6, 6)
    values, vectors = eigenpairs(matrix.float())
    assert values.dtype == vectors.dtype == torch.float64
    skew = torch.triu(torch.full((6, 6), 1e-3, dtype=torch.float64), 1)
    assert torch.allclose(eigenpairs(matrix + skew - skew.T).values, eigenpairs(matrix).values, rtol=1e-12)


def test_the_bits_do_not_depend_on_the_number_of_threads():
    matrix = psd(2, 150, 150)
    threads = torch.get_num_threads()
    one = eigenpairs(matrix)
    torch.set_num_threads(2)
    try:
        two = eigenpairs(matrix)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one.values, two.values)
    assert torch.equal(one.vectors, two.vectors)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_core_that_is_not_finite_is_an_error_with_a_remedy(wrong):
    matrix = torch.eye(3)
    matrix[0, 1] = wrong
    with pytest.raises(NumericalError, match="not finite; check the data"):
        eigenpairs(matrix)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 7, 30])
def test_the_numerical_rank_of_a_gram_is_the_rank_of_its_factor(dtype, rank):
    left = normals(Seed(3), 30, rank, dtype=torch.float64)
    right = normals(Seed(4), rank, 400, dtype=torch.float64)
    rows = (left @ right).to(dtype)
    values = eigenpairs(rows @ rows.T).values
    assert numerical_rank(values, dtype) == rank


def test_nothing_has_no_rank():
    assert numerical_rank(torch.zeros(0), torch.float64) == 0
    assert numerical_rank(torch.zeros(4), torch.float64) == 0
