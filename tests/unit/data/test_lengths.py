"""Micro-batches by a budget of tokens: a pure plan that leaves nothing out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterfit.data.lengths import MAX_EXAMPLES, STEP, padded, planned_by_tokens


@st.composite
def shards(draw):
    """Start, lengths (N, R), their maxima and the micro-batch of full length."""
    num_texts = draw(st.integers(1, 2))
    maxima = draw(st.lists(st.integers(1, 70), min_size=num_texts, max_size=num_texts))
    row = st.tuples(*(st.integers(0, most) for most in maxima))
    lengths = draw(st.lists(row, min_size=1, max_size=80))
    return draw(st.integers(0, 1000)), np.asarray(lengths), maxima, draw(st.integers(1, 40))


@given(shards())
def test_every_example_occurs_once_and_no_micro_batch_exceeds_the_budget(shard):
    start, lengths_NR, maxima, micro_batch = shard
    planned = planned_by_tokens(range(start, start + len(lengths_NR)), lengths_NR, maxima, micro_batch)
    assert sorted(index for part in planned for index in part) == list(range(start, start + len(lengths_NR)))
    for part in planned:
        longest_R = lengths_NR[[index - start for index in part]].max(axis=0)
        assert len(part) * padded(longest_R, maxima).sum() <= micro_batch * sum(maxima)
        assert len(part) <= max(MAX_EXAMPLES, micro_batch)
        assert list(part) == sorted(part)
    assert [part[0] for part in planned] == sorted(part[0] for part in planned)


@given(shards())
def test_the_plan_is_a_function_of_the_lengths_of_the_shard_alone(shard):
    start, lengths_NR, maxima, micro_batch = shard
    moved = planned_by_tokens(
        range(start + 7, start + 7 + len(lengths_NR)), lengths_NR.copy(), list(maxima), micro_batch
    )
    assert moved == [
        [index + 7 for index in part] for part in planned_by_tokens(range(start, start + len(lengths_NR)), *shard[1:])
    ]


def test_lengths_are_rounded_up_and_never_above_their_maximum():
    assert padded(np.asarray([[0], [1], [8], [9], [20]]), [20]).tolist() == [[STEP], [8], [8], [16], [20]]


def test_texts_of_full_length_are_cut_as_without_lengths_and_short_ones_are_many_together():
    assert planned_by_tokens(range(10), np.full((10, 1), 64), [64], 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert planned_by_tokens(range(40), np.full((40, 1), 5), [64], 4) == [list(range(32)), list(range(32, 40))]


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_long_texts_do_not_make_short_ones_long(micro_batch):
    lengths_N1 = np.asarray([64, 3] * 20)[:, None]
    planned = planned_by_tokens(range(40), lengths_N1, [64], micro_batch)
    assert all(len(set(lengths_N1[part, 0].tolist())) == 1 for part in planned)
    tokens = sum(len(part) * int(padded(lengths_N1[part].max(axis=0), [64])[0]) for part in planned)
    assert tokens == 20 * 64 + 20 * STEP
