"""Randomness by name: golden values, tiles made alone, and the statistics of signs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from afterfit.seeds import Seed, normals, signs, uniforms

keys = st.integers(0, 2**63 - 1)


def test_the_key_is_what_it_always_was():
    """Stored fits name their draws by it; a change here makes them other draws."""
    assert Seed(0).key() == 2033344993903900207
    assert Seed(17).child("probe", 3).key() == 5510036705831735335


def test_the_first_signs_are_what_they_always_were():
    assert signs(Seed(0).key(), range(2), 4).tolist() == [[-1.0, -1.0, 1.0, -1.0], [-1.0, -1.0, -1.0, 1.0]]
    assert signs(0, range(10**12, 10**12 + 1), 66)[0, 62:].tolist() == [1.0, -1.0, -1.0, 1.0]


def mixed(word: int) -> int:
    """SplitMix64's finaliser on Python's unbounded integers."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) % 2**64
    return word ^ (word >> 31)


@given(keys, st.integers(0, 10**12), st.integers(0, 300))
def test_signs_are_the_bits_of_splitmix64(key, row, column):
    golden = 0x9E3779B97F4A7C15
    counter = mixed((row * golden + key) % 2**64) + column // 64 * golden
    bit = mixed(counter % 2**64) >> (column % 64) & 1
    assert float(signs(key, range(row, row + 1), column + 1)[0, column]) == 2 * bit - 1


def test_the_first_normals_are_what_they_always_were():
    assert normals(Seed(0), 2, dtype=torch.float64).tolist() == pytest.approx(
        [-0.17933947237234715, -0.4499085209759114], abs=1e-12
    )


def test_children_are_places_of_their_own():
    root = Seed(3)
    places = [
        root,
        root.child("a"),
        root.child("b"),
        root.child("a", "b"),
        root.child("ab"),
        Seed(4),
        Seed(4).child("a"),
    ]
    assert len({place.key() for place in places}) == len(places)
    assert root.child("a", 1) == root.child("a").child("1")
    assert all(0 <= place.key() < 2**63 for place in places)


@given(keys, st.integers(0, 10**12), st.integers(0, 300))
def test_uniforms_are_the_upper_bits_of_splitmix64(key, row, column):
    golden = 0x9E3779B97F4A7C15
    counter = mixed((row * golden + key) % 2**64) + column * golden
    expected = (mixed(counter % 2**64) >> 11) / 2**53
    assert float(uniforms(key, range(row, row + 1), column + 1)[0, column]) == expected


@pytest.mark.parametrize("root", [1, 2, 3])
def test_uniforms_are_uniform_and_columns_and_rows_are_independent(root):
    """Centred and scaled to variance one, means of n products have a standard error of 1 / sqrt(n)."""
    num_rows, num_columns = 20_000, 40
    values = uniforms(Seed(root).child("tokens").key(), range(num_rows), num_columns)
    assert 0 <= float(values.min()) < float(values.max()) < 1
    counts = torch.histc(values, 64, 0, 1)  # 12 500 each, with a standard deviation of 112
    assert (counts - values.numel() / 64).abs().max() < 5 * (values.numel() / 64) ** 0.5
    scaled = (values - 0.5) * math.sqrt(12)
    columns = scaled.T @ scaled / num_rows
    assert (columns - torch.eye(num_columns, dtype=torch.float64)).abs().max() < 5 / math.sqrt(num_rows)
    assert (scaled[:-1] * scaled[1:]).mean(dim=0).abs().max() < 5 / math.sqrt(num_rows - 1)


@given(keys, st.integers(0, 10**12), st.integers(0, 40), st.integers(1, 20), st.integers(1, 130))
def test_any_tile_alone_is_the_slice_of_the_whole(key, first, start, length, num_columns):
    whole = signs(key, range(first, first + 64), num_columns)
    rows = range(first + start, min(first + start + length, first + 64))
    tile = signs(key, rows, num_columns)
    assert torch.equal(tile, whole[start : start + len(rows)])


@given(keys, st.integers(1, 130), st.integers(1, 130))
def test_fewer_columns_are_a_prefix_of_more(key, few, many):
    few, many = min(few, many), max(few, many)
    assert torch.equal(signs(key, range(9), few), signs(key, range(9), many)[:, :few])


def test_strided_rows_are_the_rows_they_name():
    assert torch.equal(signs(5, range(1, 20, 3), 7), signs(5, range(20), 7)[1::3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_signs_are_plus_and_minus_one_in_any_dtype(dtype):
    values = signs(5, range(100), 70, dtype=dtype)
    assert values.dtype == dtype
    assert values.shape == (100, 70)
    assert torch.equal(values.double().abs(), torch.ones(100, 70, dtype=torch.float64))
    assert torch.equal(values.double(), signs(5, range(100), 70).double())


@pytest.mark.parametrize("root", [1, 2, 3])
def test_signs_are_balanced_and_columns_and_rows_are_independent(root):
    """Means of n independent signs have a standard error of 1 / sqrt(n); 5 suffice for 1e4 pairs."""
    num_rows, num_columns = 20_000, 96
    values = signs(Seed(root).child("probe").key(), range(num_rows), num_columns, dtype=torch.float64)
    error = 1 / math.sqrt(num_rows)
    columns = values.T @ values / num_rows
    assert (columns - torch.eye(num_columns, dtype=torch.float64)).abs().max() < 5 * error
    assert values.mean(dim=0).abs().max() < 5 * error
    # Rows that follow each other, and rows that are a power of two apart, share a counter's low bits.
    for apart in (1, 2, 64, 4096):
        agreement = (values[:-apart] * values[apart:]).mean(dim=0)
        assert agreement.abs().max() < 5 / math.sqrt(num_rows - apart)


@pytest.mark.parametrize("root", [1, 2, 3])
def test_places_are_independent_of_each_other(root):
    num = 40_000
    left = signs(Seed(root).child("a").key(), range(num), 64, dtype=torch.float64)
    right = signs(Seed(root).child("b").key(), range(num), 64, dtype=torch.float64)
    assert (left * right).mean(dim=0).abs().max() < 5 / math.sqrt(num)


def test_normals_are_named_by_place_and_shape_and_leave_the_global_stream_alone():
    before = torch.get_rng_state()
    first = normals(Seed(1), 4, dtype=torch.float64)
    assert torch.equal(first, normals(Seed(1), 4, dtype=torch.float64))
    assert not torch.equal(first, normals(Seed(2), 4, dtype=torch.float64))
    assert not torch.equal(first, normals(Seed(1), 5, dtype=torch.float64)[:4])
    assert torch.equal(first.float(), normals(Seed(1), 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_numpy_and_torch_generators_start_over_at_each_call():
    place = Seed(9).child("order")
    assert torch.equal(torch.rand(3, generator=place.generator()), torch.rand(3, generator=place.generator()))
    assert place.numpy().permutation(50).tolist() == place.numpy().permutation(50).tolist()
    assert place.numpy().permutation(50).tolist() != place.child("x").numpy().permutation(50).tolist()
