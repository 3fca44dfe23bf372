"""Estimates of variances by refits with signs, from the whole covariance of the queries, which is known here."""

import math
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from afterfit.algebra import Unsaved
from afterfit.methods.queries.amortised import Queries, estimated, hadamard_signs
from afterfit.methods.queries.chosen import gradients_of, places_of
from afterfit.methods.queries.refits import influence
from afterfit.methods.queries.solving import Solver
from afterfit.plan.bench import Bench
from afterfit.plan.record import read_record
from afterfit.plan.run import Outcome
from afterfit.precision import CORE
from afterfit.seeds import Seed

NUM_REFITS, SEEDS = (8, 16, 32, 64), 200


def rank_correlation(left: Tensor, right: Tensor) -> float:
    """Spearman's."""
    found: Any = spearmanr(left, right)
    return float(found.statistic)


def sign_figures(outcome: Outcome) -> dict[str, float]:
    """Of the queries of a run by conjugate gradients."""
    stage = outcome.ran["covariance-test"].stage
    request = read_record(outcome.store).request()
    recipe: Any = stage.recipe
    bench = Bench(request.bench(outcome.store.uri, {role: one.place for role, one in stage.inputs.items()}))
    solver: Solver = recipe.solver(bench)
    queries = Queries(solver, "test", recipe.num_examples)
    batch = bench.data("test").batch(list(range(recipe.num_examples)))
    columns, _ = gradients_of(solver, batch, places_of(solver, batch, None))
    moved = influence(solver, columns, "one", 1.0, Unsaved()).moved(solver, batch).flatten(0, 1).to(CORE)
    known = solver.response.times(batch, solver.preconditioner.low_rank()(columns)).flatten(0, 1).to(CORE)
    covariance_QQ = (moved + moved.T) / 2
    return _figures(covariance_QQ, (known + known.T) / 2, queries.known())


def _figures(covariance_QQ: Tensor, known_QQ: Tensor, known_Q: Tensor) -> dict[str, float]:
    right_Q = covariance_QQ.diagonal()
    figures = {"hutchinson_known_error": float((known_QQ.diagonal() / known_Q - 1).abs().max())}
    ratios = []
    for num in NUM_REFITS:
        plain, deflated, squared, stated = [], [], 0.0, 0.0
        for seed in range(SEEDS):
            signs_QR = hadamard_signs(len(right_Q), range(num), Seed(seed))
            raw = estimated(torch.zeros_like(right_Q), signs_QR * (covariance_QQ @ signs_QR))
            left = estimated(known_Q, signs_QR * ((covariance_QQ - known_QQ) @ signs_QR))
            plain.append(rank_correlation(raw.variance_Q, right_Q))
            deflated.append(rank_correlation(left.variance_Q, right_Q))
            squared += float((left.variance_Q - right_Q).square().mean())
            stated += float(left.error_Q.square().mean())
        figures[f"hutchinson_plain_rank_correlation_r{num}"] = sum(plain) / SEEDS
        figures[f"hutchinson_rank_correlation_r{num}"] = sum(deflated) / SEEDS
        figures[f"hutchinson_error_r{num}"] = math.sqrt(squared / SEEDS / float(right_Q.square().mean()))
        if stated > 0:
            ratios.append(math.sqrt(squared / stated))
            figures[f"hutchinson_error_over_stated_r{num}"] = ratios[-1]
    worst = max(ratios, key=lambda ratio: abs(ratio - 1))
    return {**figures, "hutchinson_error_over_stated": worst, "hutchinson_error_below_stated": abs(worst - 1)}
