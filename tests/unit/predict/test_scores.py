import math

import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor

from afterfit.errors import DataError, NumericalError
from afterfit.predict import scores
from afterfit.seeds import Seed, normals

SEED = Seed(11, ("scores",))
PROBABILITIES = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.4, 0.1]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2])


def random_probabilities(num: int, classes: int, *names: str) -> Tensor:
    return normals(SEED.child(*names), num, classes, dtype=torch.float64).mul(2).softmax(dim=1)


def test_the_scores_of_three_examples_are_those_computed_by_hand():
    found = scores.score_table(PROBABILITIES, LABELS)
    expected = {
        "accuracy": 2 / 3,
        "nll": -(math.log(0.7) + math.log(0.6) + math.log(0.1)) / 3,
        "brier": ((0.09 + 0.04 + 0.01) + (0.01 + 0.16 + 0.09) + (0.25 + 0.16 + 0.81)) / 3,
        "ece": (0.3 + 0.4 + 0.5) / 3,  # three bins of one example each
        "max_probability": (0.7 + 0.6 + 0.5) / 3,
    }
    assert found == pytest.approx(expected, rel=1e-12)


def test_one_column_is_the_probability_of_class_one():
    column = torch.tensor([[0.9], [0.2]], dtype=torch.float64)
    both = torch.cat([1 - column, column], dim=1)
    labels = torch.tensor([1, 1])
    assert scores.score_table(column, labels) == scores.score_table(both, labels)
    assert scores.score_table(column[:, 0], labels) == scores.score_table(both, labels)


def test_uniform_probabilities_score_as_the_formulas_say():
    found = scores.score_table(torch.full((8, 4), 0.25), torch.arange(8) % 4)
    assert found["nll"] == pytest.approx(math.log(4))
    assert found["brier"] == pytest.approx(0.75)
    assert found["ece"] == pytest.approx(0.0)


def test_perfect_and_wholly_wrong_predictions_are_the_ends_of_the_scales():
    sure = torch.eye(3)
    right, wrong = (scores.score_table(sure, LABELS.roll(shift)) for shift in (0, 1))
    assert right == pytest.approx({"accuracy": 1, "nll": 0, "brier": 0, "ece": 0, "max_probability": 1})
    assert wrong["brier"] == 2
    assert wrong["ece"] == 1
    assert wrong["nll"] == pytest.approx(-math.log(torch.finfo(torch.float32).tiny))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_confidence_on_an_edge_belongs_to_the_bin_below(dtype: torch.dtype):
    on_edge = torch.tensor([[0.6, 0.4], [1.0, 0.0]], dtype=dtype)  # 0.6 = 9/15
    table = scores.reliability_table(on_edge, torch.tensor([0, 1]), "map")
    counts = table["count"].to_pylist()
    assert [number for number, count in enumerate(counts) if count] == [8, 14]


def test_examples_of_one_bin_are_averaged_before_they_are_compared():
    # Both fall in (9/15, 10/15]; one is right: |1/2 - 0.63| and not (0.38 + 0.64) / 2.
    pair = torch.tensor([[0.62, 0.38], [0.64, 0.36]], dtype=torch.float64)
    assert scores.calibration_error(pair, torch.tensor([0, 1])) == pytest.approx(0.13)


def test_the_reliability_table_holds_the_calibration_error():
    probabilities = random_probabilities(500, 5, "reliability")
    labels = torch.arange(500) % 5
    table = scores.reliability_table(probabilities, labels, "posterior")
    assert table.column_names == ["predictor", "bin_low", "bin_high", "confidence", "accuracy", "count"]
    rows = [row for row in table.to_pylist() if row["count"]]
    assert sum(row["count"] for row in rows) == 500
    assert all(row["bin_low"] < row["confidence"] <= row["bin_high"] for row in rows)
    gap = sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / 500
    assert gap == pytest.approx(scores.score_table(probabilities, labels)["ece"])
    assert table.filter(pc.equal(table["count"], 0))["accuracy"].null_count == 15 - len(rows)


def test_the_confidence_table_counts_every_example_once():
    probabilities = torch.tensor([[0.5, 0.5], [0.95, 0.05], [1.0, 0.0]], dtype=torch.float64)
    table = scores.confidence_table(probabilities, "map", "test", num_bins=10)
    assert table.column_names == ["predictor", "dataset", "bin_low", "bin_high", "count"]
    assert table["count"].to_pylist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 2]
    assert set(table["dataset"].to_pylist()) == {"test"}


@settings(max_examples=50)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_auroc_with_ties_is_scikit_learns(positive: list[int], negative: list[int]):
    found = scores.auroc(torch.tensor(positive), torch.tensor(negative))
    expected = roc_auc_score([1] * len(positive) + [0] * len(negative), positive + negative)
    assert found == pytest.approx(expected, rel=1e-12)


def test_scores_that_float32_cannot_tell_apart_are_ranked():
    outside = torch.tensor([20.0, 20.0 + 2e-9], dtype=torch.float64)
    assert scores.auroc(outside, outside - 1e-9) == 0.75


def test_less_certain_examples_are_found_to_be_from_elsewhere():
    inside = torch.tensor([[0.9, 0.1], [0.8, 0.2]], dtype=torch.float64)
    outside = torch.tensor([[0.6, 0.4], [0.85, 0.15]], dtype=torch.float64)
    found = scores.ood_table(inside, outside)
    assert found == pytest.approx(
        {"ood_auroc": 0.75, "ood_auroc_entropy": 0.75, "ood_max_probability": 0.725}, rel=1e-12
    )


def test_entropy_is_zero_when_sure_and_log_c_when_not():
    found = scores.entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    assert found.tolist() == pytest.approx([0.0, math.log(2)])


def test_regression_scores_of_one_number_are_those_computed_by_hand():
    found = scores.regression_table(torch.tensor([[1.0]]), torch.tensor([[4.0]]), torch.tensor([[3.0]]))
    density = math.exp(-0.5) / math.sqrt(2 * math.pi)
    crps = 2 * (math.erf(1 / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))
    expected = {
        "rmse": 2.0,
        "nll": 0.5 + 0.5 * math.log(8 * math.pi),
        "coverage_90": 1.0,
        "crps": crps,
    }
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_closed_form_of_the_crps_is_its_integral():
    grid = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    cumulative = torch.special.ndtr((grid - 0.5) / 1.5)
    integral = torch.trapezoid((cumulative - (grid >= 2.0).double()).square(), grid)
    found = scores.regression_table(torch.tensor([0.5]), torch.tensor([2.25]), torch.tensor([2.0]))
    assert found["crps"] == pytest.approx(float(integral), abs=1e-4)  # the step falls between grid points


def test_the_right_predictive_covers_its_share_of_targets():
    mean, variance = torch.zeros(20_000, 2), torch.full((20_000, 2), 9.0)
    found = scores.regression_table(mean, variance, 3 * normals(SEED, 20_000, 2))
    # Standard error of a share of 40 000: 0.0015; four of them.
    assert found["coverage_90"] == pytest.approx(0.9, abs=0.006)
    assert found["rmse"] == pytest.approx(3.0, rel=0.02)


def test_targets_of_a_single_output_may_be_flat():
    mean, variance = torch.tensor([[1.0], [2.0]]), torch.ones(2, 1)
    flat = scores.regression_table(mean, variance, torch.tensor([0.0, 2.0]))
    assert flat == scores.regression_table(mean, variance, torch.tensor([[0.0], [2.0]]))


def test_scores_become_rows():
    table = scores.scores_as_table("map", "test", {"accuracy": 0.5, "nll": 1.0})
    assert table.to_pylist() == [
        {"predictor": "map", "dataset": "test", "metric": "accuracy", "value": 0.5},
        {"predictor": "map", "dataset": "test", "metric": "nll", "value": 1.0},
    ]


def broken(row: list[float]) -> Tensor:
    return torch.tensor([[0.5, 0.5], row])


@pytest.mark.parametrize(
    ("probabilities", "labels", "error", "message"),
    [
        (broken([math.nan, 0.5]), [0, 1], NumericalError, "1 of 2 examples are not finite"),
        (broken([3.0, -1.0]), [0, 1], NumericalError, "not logits"),
        (broken([1.5, -0.5]), [0, 1], NumericalError, "not logits"),
        (broken([0.5, 0.5]), [0, 2], DataError, "classes from 0 to 1"),
        (broken([0.5, 0.5]), [-1, 0], DataError, "classes from 0 to 1"),
        (broken([0.5, 0.5]), [0], DataError, "1 labels for 2 examples"),
        (torch.zeros(0, 2), [], DataError, "no examples"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_a_sentence(probabilities, labels, error, message):
    with pytest.raises(error, match=message):
        scores.score_table(probabilities, torch.tensor(labels))


@pytest.mark.parametrize(
    ("mean", "variance", "targets", "error"),
    [
        ([math.nan], [1.0], [0.0], NumericalError),
        ([0.0], [0.0], [0.0], NumericalError),
        ([0.0], [1.0], [math.nan], DataError),
        ([0.0], [1.0], [0.0, 1.0], DataError),
        ([], [], [], DataError),
    ],
)
def test_moments_and_targets_that_do_not_fit_are_refused(mean, variance, targets, error):
    with pytest.raises(error):
        scores.regression_table(torch.tensor(mean), torch.tensor(variance), torch.tensor(targets))
