from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterfit.data.shards import MAX_SHARDS, shard_ranges


@given(st.integers(1, 10**9), st.floats(0, 1e3), st.none() | st.integers(1, 2000))
def test_shards_are_consecutive_equal_and_a_power_of_two(num_examples, seconds, num_shards):
    shards = shard_ranges(num_examples, seconds, num_shards)
    assert shards[0].start == 0
    assert shards[-1].stop == num_examples
    assert all(left.stop == right.start for left, right in pairwise(shards))
    sizes = {len(shard) for shard in shards}
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
    assert len(shards).bit_count() == 1
    assert len(shards) <= MAX_SHARDS


@pytest.mark.parametrize(
    ("num_examples", "seconds", "wanted"),
    [(20000, 0.006, 4), (20000, 0.0059, 2), (3, 1e6, 2), (10**9, 1.0, 512), (1, 1.0, 1)],
)
def test_a_shard_lasts_at_least_thirty_seconds(num_examples, seconds, wanted):
    assert len(shard_ranges(num_examples, seconds)) == wanted


def test_a_number_of_shards_is_lowered_to_a_power_of_two():
    assert [len(shard_ranges(100, 0.0, number)) for number in (1, 3, 8, 1000)] == [1, 2, 8, 64]


def test_no_examples_are_one_empty_shard():
    assert shard_ranges(0, 1.0) == [range(0)]
