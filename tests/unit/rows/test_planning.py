"""Micro-batches from sizes alone."""

import pytest

from afterfit.layout import Block, Layout
from afterfit.resources import GB
from afterfit.rows.planning import (
    ENOUGH_ROWS,
    GRADIENTS_SHARE,
    KEPT_SHARE,
    MAX_MICRO_BATCH,
    cotangents_at_once,
    micro_batch,
)


def layout_of(num_weights: int) -> Layout:
    return Layout((Block("weights", (num_weights,)),), tile_weights=max(1, num_weights // 8))


def test_small_networks_take_the_largest_micro_batch():
    assert micro_batch(layout_of(1000), num_cotangents=10, memory_gb=2.0, gradient_numbers=1000) == MAX_MICRO_BATCH


@pytest.mark.parametrize(("fits", "expected"), [(1, 1), (2, 2), (3, 2), (4, 4), (7, 4), (31, 16), (32, 32), (99, 32)])
def test_it_is_the_largest_power_of_two_whose_kept_rows_fit(fits, expected):
    num_weights, num_cotangents = 1024, ENOUGH_ROWS
    one_example_gb = num_weights * num_cotangents * 4 / (KEPT_SHARE * GB)
    assert micro_batch(layout_of(num_weights), num_cotangents, (fits + 0.5) * one_example_gb) == expected


@pytest.mark.parametrize(("fits", "expected"), [(0, 1), (1, 1), (3, 2), (8, 8)])
def test_gradients_bound_it_where_rows_are_too_large_to_be_kept(fits, expected):
    num_cotangents, numbers = 4, 1000
    one_example_gb = numbers * num_cotangents * 4 / (GRADIENTS_SHARE * GB)
    large = layout_of(10**9)
    made = micro_batch(large, num_cotangents, (fits + 0.5) * one_example_gb, gradient_numbers=numbers)
    assert made == expected


def test_wider_numbers_halve_it():
    memory_gb = 8.5 * 1024 * 16 * 4 / (KEPT_SHARE * GB)
    assert micro_batch(layout_of(1024), 16, memory_gb, bytes_per_number=4) == 8
    assert micro_batch(layout_of(1024), 16, memory_gb, bytes_per_number=8) == 4


@pytest.mark.parametrize(
    ("kept", "passed", "expected"),
    [(10, 10, 10), (9, 10, 5), (4, 10, 4), (10, 3, 3), (3, 10, 10), (0, 10, 10), (0, 0, 1), (99, 99, 10)],
)
def test_parts_are_even_and_keep_their_rows_where_that_leaves_enough_of_them(kept, passed, expected):
    each = 1000
    made = cotangents_at_once(
        4,
        10,
        each / GB,
        row_bytes=int(KEPT_SHARE * each / (kept + 0.5)),
        gradient_bytes=int(GRADIENTS_SHARE * each / (passed + 0.5)),
    )
    assert made == expected
