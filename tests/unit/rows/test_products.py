"""Curvature in one call, against dense matrices."""

import pytest
import torch

from afterfit.errors import ConfigError
from afterfit.rows import ggn_diagonal, ggn_times, ntk
from cases import NETWORK_CASES, assert_near, case_named, dense_ggn, dense_jacobian
from row_checks import numbers

on_every_network = pytest.mark.parametrize("case", NETWORK_CASES, ids=str)


@on_every_network
def test_the_product_and_the_diagonal_are_those_of_the_dense_ggn(case):
    inputs = [batch.inputs for batch in case.batches]
    columns_Pk = numbers("columns", case.num_weights, 3)
    settings = {"likelihood": case.likelihood, "output": case.output}
    product_Pk = ggn_times(case.module(), inputs, columns_Pk, **settings)
    assert_near(product_Pk, dense_ggn(case) @ columns_Pk, case.rtol)
    assert_near(ggn_diagonal(case.module(), inputs, **settings), dense_ggn(case).diagonal(), case.rtol)


@on_every_network
@pytest.mark.parametrize("memory_gb", [2.0, 1e-5])
def test_the_kernel_is_the_product_of_jacobians(case, memory_gb):
    first, second = case.batches[0], case.fresh.batch(range(3))
    left, right = (dense_jacobian(case.network(), batch).flatten(0, 1) for batch in (first, second))
    made = ntk(case.module(), first.inputs, second.inputs, output=case.output, memory_gb=memory_gb)
    assert_near(made, left @ right.T, case.rtol)
    assert_near(ntk(case.module(), first.inputs, output=case.output), left @ left.T, case.rtol)


def test_samples_are_unbiased_and_named_by_the_seed():
    case = case_named("mlp")
    inputs = [batch.inputs for batch in case.batches]
    one, same, other = (ggn_diagonal(case.module(), inputs, num_samples=1, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    many = ggn_diagonal(case.module(), inputs, num_samples=3000)
    assert_near(many, dense_ggn(case).diagonal(), 0.1)  # 14 examples: a standard error of about 2 % of the largest


def test_samples_do_not_depend_on_the_micro_batches():
    case = case_named("mlp")
    whole = [case.examples.batch(range(case.num_examples)).inputs]
    parts = [batch.inputs for batch in case.batches]
    made, again = (ggn_diagonal(case.module(), inputs, num_samples=2) for inputs in (whole, parts))
    assert_near(made, again, 1e-12)


def test_columns_of_another_length_are_refused():
    case = case_named("mlp")
    with pytest.raises(ConfigError, match=r"need \(124, k\)"):
        ggn_times(case.module(), [case.batches[0].inputs], torch.ones(5, 2))


def test_a_gaussian_without_its_noise_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match=r"give `likelihood=Gaussian\(variance\)`"):
        ggn_diagonal(torch.nn.Linear(2, 1).eval(), [{"input": torch.ones(3, 2)}], likelihood="gaussian")
