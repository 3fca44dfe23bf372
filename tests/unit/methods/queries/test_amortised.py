"""Variances of all queries from a few refits with signs."""

import math

import pytest
import torch
from torch import Tensor

from afterfit.algebra import Unsaved
from afterfit.methods.queries.amortised import Answers, Estimate, Queries, estimated, hadamard_signs, needed
from afterfit.methods.queries.refits import influence
from afterfit.seeds import Seed
from cases import case_named
from dense_queries import Dense


def test_signs_of_all_columns_together_are_the_identity():
    signs_QR = hadamard_signs(11, range(16), Seed(3))
    torch.testing.assert_close(signs_QR @ signs_QR.T / 16, torch.eye(11, dtype=torch.float64))
    assert torch.equal(hadamard_signs(11, range(4, 9), Seed(3)), signs_QR[:, 4:9])


def test_estimates_by_signs_are_exact_with_all_of_them_and_their_error_is_as_stated():
    dense = Dense(case_named("mlp"))
    solver = dense.solver("ggn", 1e-9)
    num = 5
    queries = Queries(solver, "train", num)
    size = num * dense.case.num_outputs
    full = dense.covariance("ggn", num).diagonal()
    known_Q = queries.known()
    assert (known_Q > full).all()  # what is not among the eigenpairs only lowers variances

    def answers(chosen: range, seed: int) -> Tensor:
        signs_QR = hadamard_signs(size, chosen, Seed(seed))
        rhs = queries.summed(signs_QR)
        found = influence(solver, rhs, "one", 1.0, Unsaved())
        known = solver.preconditioner.low_rank()(rhs)
        moved = [found.moved(solver, batch) - solver.response.times(batch, known) for batch in queries]
        return signs_QR * torch.cat([part.flatten(0, 1) for part in moved])

    every = estimated(known_Q, answers(range(32), 0))
    torch.testing.assert_close(every.variance_Q, full, rtol=1e-6, atol=0)
    assert float(every.error_Q.max()) == 0
    found = [estimated(known_Q, answers(range(8), seed)) for seed in range(60)]
    errors = torch.stack([one.variance_Q - full for one in found])
    stated = torch.stack([one.error_Q for one in found])
    assert float(errors.square().mean().sqrt() / stated.square().mean().sqrt()) == pytest.approx(1, abs=0.15)
    assert (errors.mean(dim=0).abs() < 5 * errors.std(dim=0) / math.sqrt(len(found))).all()


def test_more_refits_are_needed_the_more_the_answers_vary():
    steady = torch.zeros(3, 4) + torch.tensor([0.01, -0.01, 0.01, -0.01])
    assert needed(Estimate(torch.ones(3), steady.std(dim=1) / 2), 4) == 4
    assert needed(Estimate(torch.ones(3), 200 * steady.std(dim=1) / 2), 4) > 50
    assert needed(Estimate(torch.tensor([-1.0, -1.0, 1.0]), torch.ones(3)), 2) == 3  # nothing is known yet


def test_what_is_known_is_taken_out_only_where_it_helps():
    noise = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    close = Answers(torch.tensor([2.0]), 2 + noise, 2 + 0.9 * noise, torch.zeros(4)).estimate()
    assert float(close.error_Q) < 0.2
    far = Answers(torch.tensor([9.0]), 2 + noise, 9 + 5 * noise, torch.zeros(4)).estimate()
    torch.testing.assert_close(far.variance_Q, torch.tensor([2.0]))
