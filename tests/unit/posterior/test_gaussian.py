import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afterfit import seeds
from afterfit.errors import ConfigError, NumericalError
from afterfit.posterior.gaussian import Gaussian, psd_root
from afterfit.seeds import Seed

SEED = Seed(7, ("test",))


def normals(seed: Seed, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return seeds.normals(seed, *shape, dtype=dtype)


def gaussian(
    batch: int, outputs: int, rank: int, *, dense: bool = False, dtype: torch.dtype = torch.float64
) -> Gaussian:
    place = SEED.child("case", batch, outputs, rank)
    factor = normals(place.child("dense"), batch, outputs, outputs)
    return Gaussian(
        normals(place.child("mean"), batch, outputs, dtype=dtype),
        normals(place.child("root"), batch, outputs, rank, dtype=dtype),
        (factor @ factor.mT).to(dtype) if dense else None,
        "categorical",
        torch.arange(100, 100 + batch),
    )


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("rank", [0, 2, 9])
def test_the_variance_is_the_diagonal_of_the_covariance(rank: int, dense: bool):
    case = gaussian(3, 4, rank, dense=dense)
    torch.testing.assert_close(case.variance, case.covariance.diagonal(dim1=1, dim2=2))


@pytest.mark.parametrize("dense", [False, True])
def test_the_centred_variance_is_that_of_the_logits_less_their_average(dense: bool):
    case = gaussian(3, 4, 2, dense=dense)
    centre = torch.eye(4, dtype=torch.float64) - 0.25
    expected = (centre @ case.covariance @ centre).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(case.centred_variance, expected)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("rank", [0, 2, 9])
def test_draws_have_the_mean_and_the_covariance(rank: int, dense: bool):
    case = gaussian(2, 3, rank, dense=dense)
    num = 40_000
    moved = case.draw(SEED, num) - case.mean
    # An entry's standard error is at most sqrt(2 / num) of the largest variance; 5 of them, over 18 entries.
    scale = float(case.variance.amax()) + 1e-12
    empirical = torch.einsum("sbc,sbd->bcd", moved, moved) / num
    torch.testing.assert_close(empirical, case.covariance, rtol=0, atol=5 * scale * (2 / num) ** 0.5)
    torch.testing.assert_close(moved.mean(dim=0), torch.zeros_like(case.mean), rtol=0, atol=5 * (scale / num) ** 0.5)


def test_a_draw_is_the_same_function_for_every_example():
    case = gaussian(2, 3, 2)
    twins = Gaussian(case.mean[:1].expand(2, -1), case.low_rank_root[:1].expand(2, -1, -1))
    first, second = twins.draw(SEED, 5).unbind(dim=1)
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("dense", [False, True])
def test_draws_do_not_depend_on_how_examples_are_batched(dense: bool):
    case = gaussian(5, 3, 4, dense=dense)
    whole = case.draw(SEED, 6)
    parts = [case.examples(slice(0, 2)).draw(SEED, 6), case.examples(slice(2, 5)).draw(SEED, 6)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_the_noise_of_the_dense_part_is_named_by_the_example():
    case = gaussian(2, 3, 0, dense=True)
    twins = Gaussian(
        case.mean[:1].expand(2, -1),
        case.low_rank_root,
        case.dense[:1].expand(2, -1, -1),
        indexes=case.indexes,
    )
    first, second = twins.draw(SEED, 5).unbind(dim=1)
    assert not torch.allclose(first, second)


def test_parts_of_a_sampler_are_the_draws_in_order():
    case = gaussian(2, 3, 2, dense=True)
    draws = case.sampler(SEED, 7)
    torch.testing.assert_close(torch.cat([draws(0, 3), draws(3, 7)]), case.draw(SEED, 7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_result_has_the_dtype_of_the_mean(dtype: torch.dtype):
    case = gaussian(2, 3, 2, dense=True, dtype=dtype)
    assert {case.draw(SEED, 2).dtype, case.variance.dtype, case.covariance.dtype} == {dtype}


def test_without_covariance_draws_are_the_mean():
    case = Gaussian(torch.ones(2, 3), torch.zeros(2, 3, 4), torch.zeros(2, 3, 3), indexes=torch.arange(2))
    assert torch.equal(case.draw(SEED, 4), torch.ones(4, 2, 3))


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(0, 8), st.integers(0, 10_000))
def test_covariances_are_positive_semi_definite(outputs: int, rank: int, number: int):
    root = normals(Seed(number), 2, outputs, rank)
    covariance = Gaussian(torch.zeros(2, outputs, dtype=torch.float64), root).covariance
    # Rounding moves an eigenvalue by at most about C eps of the largest.
    assert float(torch.linalg.eigvalsh(covariance).amin()) >= -1e-14 * float(covariance.abs().amax() + 1) * outputs


def test_the_root_of_a_matrix_negative_by_rounding_is_that_of_the_nearest_one():
    vectors = torch.linalg.qr(normals(SEED, 3, 3)).Q
    values = torch.tensor([2.0, 0.5, -1e-9], dtype=torch.float64)
    root = psd_root((vectors * values @ vectors.mT)[None])
    nearest = vectors * values.clamp_min(0) @ vectors.mT
    torch.testing.assert_close(root @ root.mT, nearest[None], rtol=0, atol=1e-14)


def test_a_dense_part_that_is_not_finite_is_refused():
    with pytest.raises(NumericalError, match="not finite"):
        psd_root(torch.full((1, 2, 2), torch.nan))


def test_draws_with_a_dense_part_ask_for_indexes():
    case = Gaussian(torch.zeros(1, 2), torch.zeros(1, 2, 0), torch.eye(2)[None])
    with pytest.raises(ConfigError, match="indexes"):
        case.draw(SEED, 1)


@pytest.mark.parametrize(
    ("root", "dense", "indexes"),
    [
        (torch.zeros(2, 4, 1), None, None),
        (torch.zeros(2, 3, 1), torch.zeros(2, 3, 4), None),
        (torch.zeros(2, 3, 1), None, torch.arange(3)),
    ],
)
def test_parts_that_do_not_fit_the_mean_are_refused(root, dense, indexes):
    with pytest.raises(ConfigError):
        Gaussian(torch.zeros(2, 3), root, dense, indexes=indexes)
