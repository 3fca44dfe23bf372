"""Micro-batches from sizes alone."""

import pytest

from afterfit.layout import Block, Layout
from afterfit.resources import GB
from afterfit.rows.functional import ROWS_SHARE
from afterfit.rows.planning import MAX_MICRO_BATCH, micro_batch


def layout_of(num_weights: int) -> Layout:
    return Layout((Block("weights", (num_weights,)),), tile_weights=max(1, num_weights // 8))


def test_small_networks_take_the_largest_micro_batch():
    assert micro_batch(layout_of(1000), num_cotangents=10, memory_gb=2.0) == MAX_MICRO_BATCH


@pytest.mark.parametrize(
    ("fits", "expected"), [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (7, 4), (31, 16), (32, 32), (99, 32)]
)
def test_it_is_the_largest_power_of_two_whose_rows_fit(fits, expected):
    num_weights, num_cotangents = 1024, 4
    one_example_gb = num_weights * num_cotangents * 4 / (ROWS_SHARE * GB)
    memory_gb = (fits + 0.5) * one_example_gb
    assert micro_batch(layout_of(num_weights), num_cotangents, memory_gb) == expected


def test_wider_numbers_halve_it():
    memory_gb = 8.5 * 1024 * 4 * 4 / (ROWS_SHARE * GB)
    assert micro_batch(layout_of(1024), 4, memory_gb, bytes_per_weight=4) == 8
    assert micro_batch(layout_of(1024), 4, memory_gb, bytes_per_weight=8) == 4


def test_what_it_says_fits_makes_one_group():
    layout = layout_of(1000)
    memory_gb = 5e-5
    size = micro_batch(layout, 3, memory_gb)
    assert 1 < size < MAX_MICRO_BATCH
    assert len(layout.groups(size * 3 * 4, ROWS_SHARE * memory_gb * GB)) == 1
    assert len(layout.groups(2 * size * 3 * 4, ROWS_SHARE * memory_gb * GB)) > 1
