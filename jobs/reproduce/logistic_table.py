"""The logistic regression table of the SLANG paper: data sets, settings, and what was printed.

Source: Mishkin, Kunstner, Nielsen, Schmidt, Khan (2018), arXiv:1811.04504, tables 1, 6 and 7; prior precisions, batch
sizes and standard errors from the authors' repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from record import Budget
from replicated_slang import Choices

RANKS: Final = (1, 5, 10)
NUM_DRAWS = 12
STEP = 0.05  # of mean and precision
DECAY = 0.51
EPOCHS = 10_000
BIAS_PRECISION = 1e-5  # of the prior
NUM_SEEDS = 20
"""Fits of a data set that has one split only."""


@dataclass(frozen=True)
class Printed:
    """Means over splits, nats per training example or test example; KL in nats."""

    neg_elbo: float
    neg_elbo_error: float
    kl: float
    nll: float


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set, and the rows of the table that tell of it."""

    name: str
    folder: str
    prior_precision: float  # of all weights but the bias
    batch_size: int
    epochs_in_an_hour: int
    printed: Mapping[int | None, Printed]  # by rank; None: the full Gaussian

    def choices(self, rank: int, budget: Budget) -> Choices:
        """Of a fit."""
        return Choices(
            rank=rank,
            num_draws=NUM_DRAWS,
            epochs=EPOCHS if budget == "full" else self.epochs_in_an_hour,
            mean_step=STEP,
            precision_step=STEP,
            decay=DECAY,
        )


DATA_SETS: Final[Mapping[str, DataSet]] = {
    found.name: found
    for found in (
        DataSet(
            name="australian",
            folder="libsvm_australian",
            prior_precision=1e-5,
            batch_size=32,
            epochs_in_an_hour=2000,
            printed={
                1: Printed(0.5744, 0.0055, 331.8, 0.3415),
                5: Printed(0.5690, 0.0056, 83.93, 0.3392),
                10: Printed(0.5659, 0.0058, 17.26, 0.3382),
                None: Printed(0.5583, 0.0059, 0.0, 0.3387),
            },
        ),
        DataSet(
            name="breast_cancer",
            folder="libsvm_breast_cancer",
            prior_precision=1.0,
            batch_size=32,
            epochs_in_an_hour=2000,
            printed={
                1: Printed(0.1117, 0.0029, 0.911, 0.0921),
                5: Printed(0.1114, 0.0028, 0.842, 0.0919),
                10: Printed(0.1107, 0.0028, 0.638, 0.0920),
                None: Printed(0.1086, 0.0029, 0.0, 0.0912),
            },
        ),
        DataSet(
            name="usps_3v5",
            folder="usps_3v5",
            prior_precision=25.0,
            batch_size=64,
            epochs_in_an_hour=400,
            printed={
                1: Printed(0.2096, 0.0025, 14.92, 0.1325),
                5: Printed(0.1979, 0.0024, 7.547, 0.1317),
                10: Printed(0.1929, 0.0023, 4.481, 0.1314),
                None: Printed(0.1860, 0.0022, 0.0, 0.1300),
            },
        ),
        DataSet(
            name="a1a",
            folder="libsvm_a1a",
            prior_precision=2.8072,
            batch_size=128,
            epochs_in_an_hour=300,
            printed={
                1: Printed(0.3766, 0.0, 30.51, 0.3386),
                5: Printed(0.3744, 0.0, 17.31, 0.3386),
                10: Printed(0.3732, 0.0, 11.79, 0.3386),
                None: Printed(0.3678, 0.0, 0.0, 0.3385),
            },
        ),
    )
}
