"""Prior precision, temperature and data fraction from cached features."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import afterfit
from afterfit.errors import NumericalError
from afterfit.network.likelihoods import Bernoulli, Categorical, Gaussian
from afterfit.plan.tuning import (
    AUTO_PRIORS,
    AUTO_TEMPERATURES,
    NUM_PREFIXES,
    Choice,
    Curvature,
    Features,
    Tuning,
    _notes,
    _prefixes,
    posterior_at,
    search,
    validation_objective,
)
from afterfit.seeds import Seed, normals
from cases import case_named, dense_evidence

AUTO = Tuning(Categorical(), "auto", "auto", "auto", "none", "validation", "probit")
FIXED = replace(AUTO, prior_precision=1.0, temperature=1.0, data_fraction=1.0)
NUM_FEATURES = 3


def curvature(counts: list[int]) -> Curvature:
    """Chunks of so many examples, each of which adds a curvature of about one."""
    roots = normals(Seed(1), len(counts), NUM_FEATURES, NUM_FEATURES, dtype=torch.float64)
    chunks = torch.stack([count * root @ root.T / NUM_FEATURES for count, root in zip(counts, roots, strict=True)])
    return Curvature(chunks, -torch.tensor(counts, dtype=torch.float64), torch.tensor(counts))


def bowl(prior: float, temperature: float, num_chunks: int):
    """Smallest at one point, in decades away from it."""

    def objective(choice: Choice) -> float:
        return (
            math.log10(choice.prior_precision / prior) ** 2
            + math.log10(choice.temperature / temperature) ** 2
            + (choice.num_chunks - num_chunks) ** 2
        )

    return objective


def test_the_best_point_is_the_least_of_all_that_were_tried_and_lies_near_the_true_one():
    best, grid = search(AUTO, curvature([5] * 6), bowl(3.7e-2, 21.0, 4))
    least = min(grid, key=lambda row: row["objective_nats"])
    assert least == {
        "num_chunks": best.num_chunks,
        "temperature": best.temperature,
        "prior_precision": best.prior_precision,
        "objective_nats": bowl(3.7e-2, 21.0, 4)(best),
    }
    assert best.num_chunks == 4
    # The finest step is an eighth of a decade, and rounding goes half a step each way.
    assert abs(math.log10(best.prior_precision / 3.7e-2)) <= 1 / 16
    assert abs(math.log10(best.temperature / 21.0)) <= 1 / 16


def test_every_point_of_the_coarse_grid_is_tried_once_and_what_is_given_is_not_moved():
    _, grid = search(AUTO, curvature([5] * 3), bowl(1.0, 1.0, 3))
    points = [(row["num_chunks"], row["temperature"], row["prior_precision"]) for row in grid]
    assert len(set(points)) == len(points)
    coarse = {(n, t, p) for n in (1.0, 2.0, 3.0) for t in AUTO_TEMPERATURES for p in AUTO_PRIORS}
    assert coarse <= set(points)
    best, grid = search(FIXED, curvature([5] * 3), bowl(7.0, 7.0, 1))
    assert best == Choice(3, 1.0, 1.0)
    assert len(grid) == 1
    some = replace(FIXED, prior_precision="auto")
    best, grid = search(some, curvature([5] * 3), bowl(7.0, 7.0, 1))
    assert {(row["num_chunks"], row["temperature"]) for row in grid} == {(3.0, 1.0)}
    assert abs(math.log10(best.prior_precision / 7.0)) <= 1 / 16


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_point_that_is_not_finite_is_never_chosen(wrong):
    def objective(choice: Choice) -> float:
        return wrong if choice.prior_precision < 1.0 else choice.prior_precision

    best, grid = search(replace(FIXED, prior_precision="auto"), curvature([5] * 3), objective)
    assert best.prior_precision == 1.0
    assert {row["objective_nats"] for row in grid if row["prior_precision"] < 1.0} == {math.inf}
    with pytest.raises(NumericalError, match="No prior precision gave finite predictions"):
        search(FIXED, curvature([5] * 3), lambda _: wrong)


@pytest.mark.parametrize(
    ("fraction", "expected"), [(1.0, 5), (0.99, 5), (0.5, 3), (0.2, 1), (0.24, 2), (0.001, 1), (0.7, 4)]
)
def test_a_fraction_takes_the_nearest_chunk(fraction, expected):
    # After 1 to 5 chunks 14, 28, 48, 68 and 100 percent are seen.
    assert _prefixes(replace(AUTO, data_fraction=fraction), curvature([14, 14, 20, 20, 32])) == [expected]


def test_the_ladder_of_prefixes_is_geometric_and_holds_both_ends():
    few = _prefixes(AUTO, curvature([5] * 4))
    assert few == [1, 2, 3, 4]
    many = _prefixes(AUTO, curvature([1] * 512))
    assert len(many) == NUM_PREFIXES
    assert many[0] == 1
    assert many[-1] == 512
    ratio = 512 ** (1 / (NUM_PREFIXES - 1))
    assert all(round(ratio**rung) == prefix for rung, prefix in enumerate(many))
    assert _prefixes(AUTO, curvature([9])) == [1]


def test_a_prefix_is_the_sum_of_its_chunks():
    chunks = curvature([3, 4, 5])
    assert torch.equal(chunks.prefix(2), chunks.chunks_nKK[0] + chunks.chunks_nKK[1])
    assert chunks.log_density(2) == -7.0


@pytest.mark.parametrize("at", [AUTO_PRIORS[0], AUTO_PRIORS[-1], AUTO_PRIORS[-1] * 3])
def test_a_choice_at_the_end_of_the_range_is_noted(at):
    auto = replace(FIXED, prior_precision="auto")
    (note,) = _notes(auto, Choice(1, 1.0, at))
    assert "lies at the end of the range tried (1e-04 to 1e+08)" in note
    assert list(_notes(auto, Choice(1, 1.0, 1.0))) == []
    assert list(_notes(FIXED, Choice(1, 1.0, at))) == []


def features(likelihood: str, num_outputs: int) -> Features:
    place, num = Seed(4), 40
    mean = 2 * normals(place.child("mean"), num, num_outputs, dtype=torch.float64)
    psi = normals(place.child("features"), num, num_outputs, NUM_FEATURES, dtype=torch.float64)
    if likelihood == "gaussian":
        targets = mean + normals(place.child("noise"), num, num_outputs, dtype=torch.float64)
    else:
        targets = torch.arange(num) % max(num_outputs, 2)
    return Features(mean, psi, None, targets, torch.arange(num))


def dense_covariance(chunks: Curvature, choice: Choice, psi: Tensor) -> Tensor:
    inside = chunks.prefix(choice.num_chunks) / choice.temperature
    precision = inside + choice.prior_precision * torch.eye(NUM_FEATURES, dtype=torch.float64)
    return psi @ torch.linalg.solve(precision, psi.mT)


CHOICE = Choice(2, 3.0, 0.4)


def test_the_objective_of_a_regression_is_the_gaussian_density_of_the_validation_targets():
    chunks, cached = curvature([3, 4, 5]), features("gaussian", 2)
    recipe = replace(FIXED, likelihood=Gaussian(0.3))
    variance = dense_covariance(chunks, CHOICE, cached.features_NCK).diagonal(dim1=1, dim2=2) + 0.3
    density = torch.distributions.Normal(cached.mean_NC, variance.sqrt()).log_prob(cached.targets).sum(1)
    # float64, sums of 40 terms
    assert validation_objective(recipe, chunks, cached)(CHOICE) == pytest.approx(-density.mean().item(), rel=1e-10)


def test_the_objective_of_classes_is_the_nll_of_the_link():
    chunks, cached = curvature([3, 4, 5]), features("categorical", 3)
    variance = dense_covariance(chunks, CHOICE, cached.features_NCK).diagonal(dim1=1, dim2=2)
    scaled = cached.mean_NC / (1 + math.pi / 8 * variance).sqrt()
    expected = torch.nn.functional.cross_entropy(scaled, cached.targets).item()
    assert validation_objective(AUTO, chunks, cached)(CHOICE) == pytest.approx(expected, rel=1e-10)


def test_the_objective_of_yes_or_no_is_the_nll_of_the_link():
    chunks, cached = curvature([3, 4, 5]), features("bernoulli", 1)
    variance = dense_covariance(chunks, CHOICE, cached.features_NCK).diagonal(dim1=1, dim2=2)
    scaled = cached.mean_NC / (1 + math.pi / 8 * variance).sqrt()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(scaled[:, 0], cached.targets.double()).item()
    recipe = replace(AUTO, likelihood=Bernoulli())
    assert validation_objective(recipe, chunks, cached)(CHOICE) == pytest.approx(expected, rel=1e-10)


def test_validation_data_without_answers_are_an_error():
    with pytest.raises(NumericalError, match="name their `label` or `target` column"):
        validation_objective(AUTO, curvature([3]), features("categorical", 3)._replace(targets=None))


@pytest.mark.parametrize("name", ["mlp", "regression"])
def test_the_marginal_likelihood_chooses_where_the_dense_evidence_is_largest(name):
    case = case_named(name)
    examples = case.examples
    key = "target" if name == "regression" else "label"
    items = [
        {**{role: value[i] for role, value in examples.inputs.items()}, key: examples.labels[i]}
        for i in range(case.num_examples)
    ]
    rows = case.num_examples * case.num_outputs
    method = afterfit.Ella(num_landmarks=rows, num_features=rows, tuning="marginal_likelihood")
    posterior = afterfit.fit(case.module(), items, method=method, likelihood=case.likelihood)
    chosen = posterior.facts["prior_precision"]
    # All rows span all of the curvature: the evidence is that of dense Laplace.
    assert posterior.facts["log_evidence_nats"] == pytest.approx(dense_evidence(case, chosen), rel=1e-8)
    grid = posterior.store.read(posterior.record.stages["tuning"]).table("grid").to_pylist()
    assert {row["temperature"] for row in grid} == {1.0}
    for row in grid:
        evidence = dense_evidence(case, row["prior_precision"])
        assert -row["objective_nats"] * case.num_examples == pytest.approx(evidence, rel=1e-8)
    tried = [chosen * 10 ** (step / 50) for step in range(-100, 101)]
    truly = max(tried, key=lambda prior: dense_evidence(case, prior))
    assert abs(math.log10(chosen / truly)) <= 1 / 16 + 1 / 50


def test_posterior_at_a_choice_has_the_curvature_of_its_prefix_over_its_temperature():
    chunks = curvature([3, 4, 5])
    posterior = posterior_at(chunks, CHOICE, "none")
    root = posterior.root_KK
    expected = chunks.prefix(2) / 3.0 + 0.4 * torch.eye(NUM_FEATURES, dtype=torch.float64)
    assert torch.allclose(torch.linalg.inv(root @ root.T), expected, rtol=1e-10)
