"""Block conjugate gradients against direct solutions."""

import pytest
import torch
from torch import Tensor

from afterfit.linalg.conjugate_gradients import aim, begin, solve, step

SEEDS = pytest.mark.parametrize("seed", [1, 2, 3])


def unit_gram(num_rows: int, size: int, seed: int, power: float = 0.75) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(num_rows, num_rows, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(size, num_rows, generator=generator, dtype=torch.float64))
    rows = left @ torch.diag(torch.arange(1, num_rows + 1, dtype=torch.float64) ** -power) @ right.T
    rows = rows / rows.norm(dim=1, keepdim=True)
    return rows @ rows.T, rows


def as_it_is(residual: Tensor) -> Tensor:
    return residual


@SEEDS
def test_the_directions_are_conjugate_and_end_when_they_span_all(seed):
    gram, rows = unit_gram(60, 90, seed)
    rhs = rows @ torch.randn(90, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    cg = solve(lambda w: gram @ w, rhs, as_it_is, num_steps=200)
    assert cg.directions_Nm.shape[1] == 60
    identity = torch.eye(60, dtype=torch.float64)
    assert torch.allclose(cg.directions_Nm.T @ gram @ cg.directions_Nm, identity, atol=1e-8)
    assert torch.allclose(gram @ cg.solution_Nk, rhs, atol=1e-11)


@SEEDS
def test_a_block_needs_as_many_fewer_steps_as_it_has_columns(seed):
    gram, rows = unit_gram(60, 90, seed)
    noise = torch.randn(90, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    cg = solve(lambda w: gram @ w, rows @ noise, as_it_is, num_steps=6)
    assert float(cg.residual_Nk.abs().max()) <= 1e-10


def test_duplicated_and_vanishing_rows_leave_a_solution_without_them():
    _, rows = unit_gram(20, 40, 1)
    rows = torch.cat([rows, rows[:8], torch.zeros(2, 40, dtype=torch.float64)])
    rhs = rows @ torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cg = solve(lambda w: rows @ (rows.T @ w), rhs, as_it_is, num_steps=50)
    assert cg.directions_Nm.shape[1] == 20
    assert torch.allclose(rows @ (rows.T @ cg.solution_Nk), rhs, atol=1e-11)


def test_a_right_hand_side_of_zeros_needs_no_direction():
    cg = aim(begin(torch.zeros(5, 2, dtype=torch.float64)), torch.zeros(5, 2, dtype=torch.float64))
    assert cg.direction_Nj.shape == (5, 0)


def test_a_preconditioner_that_is_all_but_the_inverse_takes_two_steps():
    gram, rows = unit_gram(60, 90, 2)
    factor = torch.linalg.cholesky(gram.float() + 1e-6 * torch.eye(60))
    rhs = rows @ torch.randn(90, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def precondition(residual: Tensor) -> Tensor:
        return torch.cholesky_solve(residual.float(), factor).double()

    cg = solve(lambda w: gram @ w, rhs, precondition, num_steps=3)
    assert float(cg.residual_Nk.abs().max()) <= 1e-8


def test_what_one_right_hand_side_taught_serves_the_next():
    gram, rows = unit_gram(60, 90, 3)
    generator = torch.Generator().manual_seed(0)
    first, second = (rows @ torch.randn(90, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    cg = solve(lambda w: gram @ w, first, as_it_is, num_steps=200)
    again = begin(second, cg.directions_Nm, cg.images_Nm)
    assert torch.allclose(gram @ again.solution_Nk, second, atol=1e-10)


def test_rounding_of_the_products_is_made_good_by_starting_again():
    gram, rows = unit_gram(60, 90, 1)
    rhs = rows @ torch.randn(90, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    known, total = begin(rhs), torch.zeros_like(rhs)
    for _ in range(3):
        known = begin(rhs - gram @ total, known.directions_Nm, known.images_Nm)
        for _ in range(15):
            known = aim(known, known.residual_Nk)
            if not known.direction_Nj.shape[1]:
                break
            known = step(known, (gram.float() @ known.direction_Nj.float()).double())
        total = total + known.solution_Nk
    assert float((rhs - gram @ total).abs().max()) <= 1e-9
