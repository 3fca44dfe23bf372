"""Systems with the Gram of dependent rows, and the Gram itself."""

import pytest
import torch
from torch import Tensor

from afterfit.errors import NumericalError
from afterfit.linalg.gram import add_gram, mirrored
from afterfit.linalg.pivoted_cholesky import TiledSystem, pivoted_cholesky, solve_by_factor

SEEDS = pytest.mark.parametrize("seed", [1, 2, 3])
CUT_OFF = 1e-12


def unit_rows(num_rows: int, size: int, seed: int, power: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, size, generator=generator, dtype=torch.float64)
    rows = rows * torch.arange(1, size + 1, dtype=torch.float64) ** -power
    return rows / rows.norm(dim=1, keepdim=True)


def tiles(matrix: Tensor, size: int = 7) -> dict[str, Tensor]:
    return {f"{number:05d}": tile for number, tile in enumerate(matrix.split(size))}


def system(gram: Tensor) -> TiledSystem:
    lower, order = pivoted_cholesky(gram.clone(), CUT_OFF)
    return TiledSystem(tiles(gram), tiles(lower, 5), order)


@SEEDS
def test_the_factor_is_one_of_the_independent_rows_and_the_others_depend_on_them(seed):
    rows = unit_rows(30, 12, seed)
    gram = rows @ rows.T
    lower, order = pivoted_cholesky(gram.clone(), CUT_OFF)
    assert len(order) == 12  # its rank
    assert torch.allclose(lower @ lower.T, gram[order][:, order], atol=1e-12)
    assert torch.equal(lower, lower.tril())
    rest = rows - rows @ torch.linalg.pinv(rows[order]) @ rows[order]
    assert float(rest.abs().max()) <= 1e-12


@SEEDS
@pytest.mark.parametrize("num_rows", [12, 30])
def test_what_is_solved_takes_a_draw_off_the_span_of_the_rows(seed, num_rows):
    rows = unit_rows(num_rows, 40, seed, power=0.75)
    rows = torch.cat([rows, rows[:3], torch.zeros(1, 40, dtype=torch.float64)])
    noise = torch.randn(40, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    solution = system(rows @ rows.T).solve(rows @ noise)
    left = rows @ (noise - rows.T @ solution)
    assert float(left.abs().max()) <= 1e-12  # cond 1e3 and less, refined


def test_refinement_repairs_what_rounding_did_to_a_factor():
    rows = unit_rows(60, 90, 1, power=1.5)
    gram = rows @ rows.T
    lower, order = pivoted_cholesky(gram.clone(), CUT_OFF)
    rough = TiledSystem(tiles(gram), tiles(lower.float().double(), 9), order)
    rhs = gram @ torch.randn(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    off = [float((gram @ rough.solve(rhs, refinements) - rhs).norm() / rhs.norm()) for refinements in (0, 2)]
    assert off[1] <= 1e-3 * off[0]


@pytest.mark.parametrize("size", [1, 4, 100])
def test_tiles_of_any_size_solve_alike(size):
    rows = unit_rows(23, 40, 2)
    gram = rows @ rows.T
    lower, order = pivoted_cholesky(gram.clone(), CUT_OFF)
    rhs = torch.randn(23, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[order]
    expected = torch.cholesky_solve(rhs, lower)
    assert torch.allclose(solve_by_factor(tiles(lower, size), rhs), expected, atol=1e-10)


def test_a_gram_that_is_not_finite_is_refused():
    with pytest.raises(NumericalError, match="not finite"):
        pivoted_cholesky(torch.full((2, 2), torch.nan, dtype=torch.float64), CUT_OFF)


@pytest.mark.parametrize("num_rows", [5, 1500])
def test_a_gram_is_summed_in_the_dtype_of_its_total(num_rows):
    rows = unit_rows(num_rows, 33, 1).float()
    total = torch.zeros(num_rows, num_rows, dtype=torch.float64)
    for part in rows.split(10, dim=1):
        add_gram(part, part, total)
    assert torch.allclose(mirrored(total), rows.double() @ rows.double().T, rtol=0, atol=1e-14)


def test_a_product_of_two_blocks_is_whole():
    left, right = unit_rows(1100, 20, 1).float(), unit_rows(7, 20, 2).float()
    total = torch.zeros(1100, 7, dtype=torch.float64)
    add_gram(left, right, total)
    assert torch.allclose(total, left.double() @ right.double().T, rtol=0, atol=1e-14)
