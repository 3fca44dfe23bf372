"""Variances by refits and by conjugate gradients, against dense inverses of the GGN and of the exact Hessian."""

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from afterfit import HessianFree, ImplicitHessian, fit
from afterfit.algebra import Unsaved
from afterfit.errors import ConfigError, NumericalError
from afterfit.methods.queries.chosen import _through, known
from afterfit.methods.queries.refits import influence, told
from cases import NETWORK_CASES, case_named
from dense_queries import Dense, answer_of, columns_of

GRID = (1e-1, 1e-2, 1e-3, 1e-4)


def relative(found: Tensor, right: Tensor) -> float:
    return float(((found - right).abs() / right.diagonal().abs().max()).max())


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
@pytest.mark.parametrize("case", NETWORK_CASES, ids=str)
def test_conjugate_gradients_give_the_dense_inverse(case, kind):
    dense = Dense(case)
    solver = dense.solver(kind, 1e-7)
    batch = case.examples.batch(range(2))
    columns = columns_of(solver, batch)
    found = influence(solver, columns, "one", 1.0, Unsaved())
    covariance = found.moved(solver, batch).flatten(0, 1)
    assert relative(covariance, dense.covariance(kind, 2)) < max(
        1e-5, 100 * case.eager_rtol if case.has_attention else 0
    )


@pytest.mark.parametrize("name", ["mlp", "regression", "vit", "bert"])
@pytest.mark.parametrize("kind", ["linearised", "exact"])
def test_refits_give_the_dense_inverse_over_two_decades_of_lambda(kind, name):
    dense = Dense(case_named(name))
    solver = dense.solver(kind, 3e-4)
    batch = dense.case.examples.batch(range(2))
    columns = columns_of(solver, batch)
    right = dense.covariance(kind, 2).diagonal()
    errors = {}
    for lambda_sd in GRID:
        found = influence(solver, columns, "two", lambda_sd, Unsaved())
        assert bool(found.is_positive_k.all()) or (kind == "exact" and lambda_sd > 1e-2)
        moved = found.moved(solver, batch).flatten(0, 1).diagonal()
        errors[lambda_sd] = float(((moved - right).abs() / right).max())
    assert max(errors[1e-2], errors[1e-3], errors[1e-4]) < 1e-2  # two decades
    assert min(errors.values()) < 1e-5


@pytest.mark.parametrize(("prior", "rank"), [(1e-2, 8), (1e-4, 40)])
def test_refits_of_a_weak_prior_end_and_are_right(prior, rank, monkeypatch):
    """Far steps: what is known of F is wrong at first, and is found out."""
    dense = Dense(case_named("mlp"))
    monkeypatch.setattr(dense, "prior", lambda _: prior)
    solver = replace(dense.solver("linearised", 3e-3, rank), max_passes=150)
    batch = dense.case.examples.batch(range(4))
    columns = columns_of(solver, batch)
    right = dense.covariance("linearised", 4).diagonal()
    for lambda_sd in (1e-6, 1e-4, 1e-2):
        found = influence(solver, columns, "two", lambda_sd, Unsaved())
        assert bool(found.is_positive_k.all())
        assert float(found.residual_k.max()) <= 3e-3
        moved = found.moved(solver, batch).flatten(0, 1).diagonal()
        assert float((moved / right - 1).abs().max()) < 5e-3


def test_queries_that_did_not_end_are_counted_and_told():
    dense = Dense(case_named("mlp"))
    solver = replace(dense.solver("ggn", 1e-9, rank=2), max_passes=2)
    answer = answer_of(dense, solver, dense.case.examples.batch(range(2)))
    short, lacking = told(answer.reached.residual_k, answer.reached.error_k, 1e-9)
    assert short.startswith("8 of 8 queries ended above `method.tolerance: 1e-09`")
    assert "more than 5% may be missing" in lacking


@pytest.mark.parametrize("prior", [1e-1, 1e-3])
@pytest.mark.parametrize("kind", ["ggn", "linearised"])
def test_what_a_variance_lacks_is_within_the_bound_that_is_told(kind, prior, monkeypatch):
    dense = Dense(case_named("mlp"))
    monkeypatch.setattr(dense, "prior", lambda _: prior)
    batch = dense.case.examples.batch(range(2))
    right = dense.covariance(kind, 2).diagonal()
    for max_passes in (2, 5, 9):
        solver = replace(dense.solver(kind, 1e-9, rank=6), max_passes=max_passes)
        answer = answer_of(dense, solver, batch)
        lacking = 1 - answer.covariance(solver, batch).diagonal(dim1=1, dim2=2).flatten() / right
        assert (lacking <= answer.reached.error_k + 1e-6).all()
        print(kind, prior, max_passes, float((answer.reached.error_k / lacking.clamp_min(1e-4)).max()))
        assert float(lacking.max()) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("prior", [1e-5, 3e-5])
def test_refits_of_very_weak_priors_are_right_in_either_precision(prior, dtype, monkeypatch):
    """Outputs move far; and the largest eigenvalue is ten million times the smallest."""
    case = case_named("conv_net")
    dense = Dense(case)
    monkeypatch.setattr(dense, "prior", lambda _: prior)
    right = dense.covariance("ggn", 4).diagonal()
    items = [{name: _as(value, dtype) for name, value in item.items()} for item in case.items]
    method = HessianFree(prior_precision=prior, rank=16, lambda_sd=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that float32 does not reach the tolerance
        posterior = fit(case.module(dtype=dtype), items, method=method)
        found = posterior.predict(
            {name: _as(value, dtype) for name, value in case.examples.batch(range(4)).inputs.items()}
        )
    variance = found.covariance.diagonal(dim1=1, dim2=2).flatten()
    assert float((variance / right - 1).abs().max()) < 1e-2


def test_lambdas_over_which_the_network_bends_are_made_smaller():
    """Where the Hessian is positive, curvature that is not so is lambda's fault."""
    dense = Dense(case_named("conv_net"))
    least = float(torch.linalg.eigvalsh(dense.curvature["hessian"])[0])
    dense.prior = lambda _: -1.1 * least
    solver, batch = dense.solver("exact", 3e-3), dense.case.examples.batch(range(4))
    found = influence(solver, columns_of(solver, batch), "two", 1e-2, Unsaved()).checked()
    assert len({float(weight) for weight in found.weights_k[0]}) > 1
    shrunk_k = found.weights_k[0] / found.weights_k[1].neg()
    torch.testing.assert_close(shrunk_k, torch.ones_like(shrunk_k))  # both sides, so that what is odd cancels
    moved = found.moved(solver, batch).flatten(0, 1).diagonal()
    assert float((moved / dense.covariance("exact", 4).diagonal() - 1).abs().max()) < 1e-3


def test_a_query_takes_as_many_passes_as_alone_whatever_is_solved_beside_it(monkeypatch):
    dense = Dense(case_named("conv_net"))
    monkeypatch.setattr(dense, "prior", lambda _: 1e-4)
    solver, batch = dense.solver("linearised", 3e-3, rank=8), dense.case.examples.batch(range(2))
    columns = columns_of(solver, batch)
    together = influence(solver, columns, "two", 1e-2, Unsaved())
    alone = [
        influence(solver, {name: tile[:, k : k + 1] for name, tile in columns.items()}, "two", 1e-2, Unsaved())
        for k in range(len(together.residual_k))
    ]
    assert together.passes == max(one.passes for one in alone)
    assert min(one.passes for one in alone) < together.passes
    torch.testing.assert_close(together.residual_k, torch.cat([one.residual_k for one in alone]), rtol=1e-3, atol=0)


def test_columns_of_outputs_with_units_of_their_own_are_told_from_rounding():
    torch.manual_seed(0)
    root = torch.randn(1, 4, 6, dtype=torch.float64) * torch.tensor([1.0, 1e-4, 1e3, 1.0], dtype=torch.float64)[:, None]
    whole, places = root @ root.mT, torch.tensor([[1, 2]])
    through = _through(whole[:, :, [1, 2]], places)
    torch.testing.assert_close(through[:, :, [1, 2]], whole[:, :, [1, 2]])
    assert float(torch.linalg.eigvalsh(whole - through).min()) > -1e-9 * float(whole.amax())


def _as(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def test_a_saturated_network_has_the_variance_of_the_prior():
    case = case_named("mlp")
    solver = Dense(case).solver("ggn", 1e-6)
    none = replace(
        solver.preconditioner, basis={name: tile[:, :0] for name, tile in solver.preconditioner.basis.items()}
    )
    none = replace(none, values_K=none.values_K[:0], last=0.0)
    columns = columns_of(solver, case.examples.batch(range(1)))
    for name, tile in none(columns).items():
        torch.testing.assert_close(tile, columns[name] / none.prior_precision)


@pytest.mark.parametrize("outputs", [(3, 1), 2])
@pytest.mark.parametrize("kind", ["ggn", "linearised"])
def test_what_is_asked_about_is_right_and_the_rest_near(kind, outputs, monkeypatch):
    dense = Dense(case_named("mlp"))
    monkeypatch.setattr(dense, "prior", lambda _: 0.1)
    num, width = 3, dense.case.num_outputs
    solver, batch = dense.solver(kind, 1e-7), dense.case.examples.batch(range(num))
    answer = answer_of(dense, solver, batch, outputs)
    found_BCC = answer.covariance(solver, batch)
    every = dense.covariance(kind, num).unflatten(0, (num, width)).unflatten(2, (num, width))
    right_BCC = torch.stack([every[number, :, number] for number in range(num)])
    bound_BCC = torch.stack([known(solver, dense.case.examples.batch([number]))[0] for number in range(num)])
    if isinstance(outputs, int):
        largest = dense.network(batch.inputs).topk(outputs, dim=1).indices
        assert answer.places_BA.tolist() == largest.sort(dim=1).values.tolist()
    for right_CC, one_CC, bound_CC, places_A in zip(right_BCC, found_BCC, bound_BCC, answer.places_BA, strict=True):
        torch.testing.assert_close(one_CC[:, places_A], right_CC[:, places_A], rtol=1e-4, atol=1e-6)
        assert float(torch.linalg.eigvalsh(one_CC).min()) > -1e-9 * float(one_CC.trace())
        assert float(torch.linalg.eigvalsh(bound_CC - one_CC).min()) > -1e-9
        others = [number for number in range(width) if number not in places_A.tolist()]
        ratios = (one_CC / right_CC).diagonal()[others]
        assert ((ratios > 0.5) & (ratios < 2)).all()
        assert float((ratios - 1).abs().sum()) < float(((bound_CC / right_CC).diagonal()[others] - 1).abs().sum())
    if isinstance(outputs, tuple):
        torch.testing.assert_close(answer.of(outputs), right_BCC[:, [3, 1]][:, :, [3, 1]], rtol=1e-4, atol=1e-6)


def test_outputs_of_which_no_bound_is_known_are_refused():
    with pytest.raises(ConfigError, match="estimated by the GGN"):
        HessianFree(network="exact", outputs=2).check(10, 4)
    with pytest.raises(ConfigError, match="were chosen of 4"):
        ImplicitHessian(outputs=(1, 4)).check(10, 4)
    with pytest.raises(ConfigError, match="all outputs together"):
        HessianFree(amortised="hutchinson", outputs=2).check(10, 4)


def test_one_side_has_a_bias_of_first_order_and_two_sides_have_none():
    dense = Dense(case_named("mlp"))
    solver = dense.solver("linearised", 1e-6)
    batch = dense.case.examples.batch(range(2))
    columns = columns_of(solver, batch)
    right = dense.covariance("linearised", 2).diagonal()

    def error(sides: Any, lambda_sd: float) -> float:
        moved = influence(solver, columns, sides, lambda_sd, Unsaved()).moved(solver, batch)
        return float((moved.flatten(0, 1).diagonal() / right - 1).abs().max())

    assert error("one", 1e-1) / error("one", 1e-2) == pytest.approx(10, rel=0.2)
    assert error("two", 1e-1) / error("two", 1e-2) == pytest.approx(100, rel=0.2)


def test_a_gaussian_likelihood_gives_the_closed_form_to_rounding_at_any_lambda():
    dense = Dense(case_named("regression"))
    solver = dense.solver("linearised", 1e-10)
    batch = dense.case.examples.batch(range(2))
    right = dense.covariance("linearised", 2)
    for lambda_sd in (1.0, 1e-3):
        columns = columns_of(solver, batch)
        found = influence(solver, columns, "two", lambda_sd, Unsaved()).moved(solver, batch).flatten(0, 1)
        assert relative(found, right) < 1e-8


def test_an_indefinite_hessian_is_found_and_refused():
    dense = Dense(case_named("mlp"))
    assert float(torch.linalg.eigvalsh(dense.curvature["hessian"])[0]) < -1
    batch = dense.case.examples.batch(range(4))
    for kind in ("hessian", "exact"):
        solver = dense.solver(kind, 1e-4)
        weak = replace(solver.preconditioner, prior_precision=0.1)
        solver = replace(solver, preconditioner=weak, max_passes=100)
        with pytest.raises(NumericalError, match="negative curvature along"):
            answer_of(dense, solver, batch)


def test_no_error_is_raised_for_outputs_that_no_weight_moves():
    dense = Dense(case_named("mlp"))
    solver = dense.solver("ggn", 1e-6)
    columns = columns_of(solver, dense.case.examples.batch(range(1)))
    columns = {name: torch.cat([tile, torch.zeros_like(tile[:, :1])], dim=1) for name, tile in columns.items()}
    found = influence(solver, columns, "one", 1.0, Unsaved())
    assert all(bool((tile[:, -1] == 0).all()) for tile in found.refits[0].values())
