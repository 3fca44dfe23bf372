"""Sums whose bits depend on the numbers only."""

import math

import pytest
import torch

from afterfit.precision import CORE, dot, norm, one_thread, state_dtype
from afterfit.seeds import Seed, normals

NUM = 10_001


def at_offset(vector: torch.Tensor, offset: int) -> torch.Tensor:
    """The same numbers, `offset` elements further in memory."""
    room = torch.empty(len(vector) + offset, dtype=vector.dtype)
    room[offset:] = vector
    return room[offset:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dot_does_not_change_with_memory_alignment(dtype):
    left = normals(Seed(1), NUM, dtype=torch.float64).to(dtype)
    right = normals(Seed(2), NUM, dtype=torch.float64).to(dtype)
    values = {float(dot(at_offset(left, first), at_offset(right, second))) for first in range(9) for second in range(9)}
    assert len(values) == 1


def test_dot_does_not_change_with_strides():
    left, right = normals(Seed(1), NUM), normals(Seed(2), NUM)
    strided = torch.stack([left, right], dim=1)
    assert float(dot(strided[:, 0], strided[:, 1])) == float(dot(left, right))


def test_dot_sums_float32_products_in_float64():
    left, right = normals(Seed(1), NUM), normals(Seed(2), NUM)
    exact = math.fsum(a * b for a, b in zip(left.double().tolist(), right.double().tolist(), strict=True))
    assert dot(left, right).dtype == torch.float64
    # Pairwise summation of 1e4 terms of size 1 in float64.
    assert float(dot(left, right)) == pytest.approx(exact, abs=1e-11)


def test_norm_is_the_euclidean_length():
    assert float(norm(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))) == 5.0


def test_states_are_wider_than_half_and_as_wide_as_the_forward():
    assert state_dtype(torch.float64) == torch.float64
    assert {state_dtype(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)} == {torch.float32}
    assert torch.float64 == CORE


def test_one_thread_gives_the_threads_back_after_an_error_too():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError), one_thread():
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
