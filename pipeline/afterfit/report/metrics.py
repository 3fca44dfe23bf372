"""How scores, predictors and data sets are named to people, and which way is better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import pyarrow as pa

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One score as people read it."""

    title: str  # with its unit
    better: Better
    digits: int = 4


METRICS: Final[Mapping[str, Metric]] = {
    "accuracy": Metric("accuracy", "higher"),
    "nll": Metric("NLL (nats)", "lower"),
    "brier": Metric("Brier score", "lower"),
    "ece": Metric("ECE (15 bins)", "lower"),
    "max_probability": Metric("mean max probability", "neither"),
    "ood_auroc": Metric("OOD AUROC", "higher"),
    "ood_auroc_entropy": Metric("OOD AUROC (entropy)", "higher"),
    "ood_auroc_variance": Metric("OOD AUROC (variance)", "higher"),
    "ood_max_probability": Metric("mean max probability, OOD", "neither"),
    "rmse": Metric("RMSE", "lower"),
    "crps": Metric("CRPS", "lower"),
    "coverage_90": Metric("coverage of the 90 % interval", "neither"),
}

PREDICTORS: Final[Mapping[str, str]] = {"map": "MAP", "posterior": "posterior"}


def metric(name: str) -> Metric:
    """The metric of that name; one that is not in the table is shown under its own name."""
    return METRICS.get(name, Metric(name.replace("_", " "), "neither"))


def predictor_title(name: str) -> str:
    """How a predictor is shown."""
    return PREDICTORS.get(name, name.replace("_", " "))


@dataclass(frozen=True, slots=True)
class Line:
    """One score on one data set, for all predictors."""

    dataset: str
    metric: Metric
    values: Mapping[str, float]  # predictor -> value, in order

    @property
    def best(self) -> str | None:
        """The predictor that is strictly best as printed, or None where neither way is better."""
        if self.metric.better == "neither" or len(self.values) < 2:
            return None
        sign = 1 if self.metric.better == "higher" else -1
        shown = {name: sign * round(value, self.metric.digits) for name, value in self.values.items()}
        first = max(shown, key=lambda name: shown[name])
        return first if list(shown.values()).count(shown[first]) == 1 else None

    def show(self, predictor: str) -> str:
        """The value as printed, or a dash."""
        value = self.values.get(predictor)
        return "-" if value is None else f"{value:.{self.metric.digits}f}"


def predictors(scores: pa.Table) -> list[str]:
    """Names of the predictors, in order of appearance."""
    return list(dict.fromkeys(scores["predictor"].to_pylist()))


def lines(scores: pa.Table) -> list[Line]:
    """Scores (predictor, dataset, metric, value) side by side, in order of appearance."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in scores.to_pylist():
        found.setdefault((row["dataset"], row["metric"]), {})[row["predictor"]] = row["value"]
    return [Line(dataset, metric(name), values) for (dataset, name), values in found.items()]
