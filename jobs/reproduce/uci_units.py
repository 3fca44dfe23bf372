"""The two stages of the regression table: choosing noise and prior on training rows, then the fits that are scored.

A unit is a data set; its replicas are all splits, or splits x folds x settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from afterfit.algebra import Cursor, Result, Unit
from afterfit.seeds import Seed
from afterfit.store.directory import open_store
from gradient_columns import OneHidden
from paper_splits import Splits, Standardised, read_splits
from regression_scores import joint, log_densities, pointwise, rmse
from replica_likelihoods import Gaussian
from replicas import Replicas
from replicated_slang import Posterior, Slang
from uci_table import BATCH_SIZE, BIAS_PRECISION, DATA_SETS, EPOCHS, NUM_HIDDEN, DataSet

VERSION = 1
"""Of the numbers that both stages make."""
NUM_DRAWS = 100
"""Predictions are means over these."""
FINER = torch.logspace(-0.6, 0.6, 25, dtype=torch.float64)
"""Factors of a noise precision that is tried, for which its held-out predictions are scored too."""


class Setting(NamedTuple):
    """What is chosen for a split."""

    noise_precision: float
    prior_precision: float


class Fold(NamedTuple):
    """Part of a split's training rows."""

    split: int
    number: int
    kept: Tensor
    held_out: Tensor


def units(names: Sequence[str]) -> tuple[Unit, ...]:
    """One for each data set, the longest first."""
    sizes = {name: len(read_splits(DATA_SETS[name].folder).train[0]) for name in names}
    return tuple(Unit(name, cost=float(sizes[name])) for name in sorted(names, key=lambda name: -sizes[name]))


def folds(data: DataSet, splits: Splits) -> Iterator[Fold]:
    """Of every split, those that are tried."""
    for split, rows in enumerate(splits.train):
        order = torch.randperm(len(rows), generator=Seed(0, ("folds", data.name, str(split))).generator())
        parts = rows[order].tensor_split(data.chosen.folds)
        for number in range(data.chosen.tried):
            kept = torch.cat([part for other, part in enumerate(parts) if other != number])
            yield Fold(split, number, kept, parts[number])


class Fits:
    """Replicas of one data set, each with its rows and setting."""

    def __init__(
        self,
        data: DataSet,
        standard: Standardised,
        epochs: int,
        names: Sequence[str],
        splits: Sequence[int],
        rows: Sequence[Tensor],
        settings: Sequence[Setting],
    ) -> None:
        self._standard = standard
        self._splits, self._names = splits, names
        network = OneHidden(standard.inputs_DNI.shape[-1], NUM_HIDDEN)
        replicas = Replicas(
            names=tuple(names),
            inputs_DNI=standard.inputs_DNI,
            targets_DN=standard.targets_DN,
            version_R=torch.tensor(splits),
            rows=tuple(rows),
            batch_size=BATCH_SIZE,
        )
        noise_R = torch.tensor([setting.noise_precision for setting in settings])
        prior_R1 = torch.tensor([[setting.prior_precision] for setting in settings])
        prior_RP = torch.where(network.is_bias(), BIAS_PRECISION, prior_R1)
        self.slang = Slang(
            network, Gaussian(noise_R, data.first_noise_precision), replicas, prior_RP, data.choices(epochs)
        )

    def outputs(self, posterior: Posterior, replica: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs under draws (S, n), and targets (n,), standardised."""
        seed = Seed(0, ("prediction", self._names[replica]))
        noise = torch.randn(1, self.slang.network.num_weights, NUM_DRAWS, generator=seed.generator())
        version = self._splits[replica]
        inputs_1nI = self._standard.inputs_DNI[version, rows][None]
        outputs_SN = self.slang.network.passed(posterior.one(replica).draws(noise), inputs_1nI).outputs_RSM[0]
        return outputs_SN, self._standard.targets_DN[version, rows]


class Choose:
    """Cross-validation: the setting with the highest held-out log density, for each split."""

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        """Of one data set; table "choices"."""
        data = DATA_SETS[unit.name]
        splits = read_splits(data.folder)
        grid = [Setting(*pair) for pair in product(data.chosen.noise_precisions, data.chosen.prior_precisions)]
        tried = [(fold, setting) for fold in folds(data, splits) for setting in grid]
        fits = Fits(
            data,
            splits.standardised(),
            data.chosen.epochs,
            # Settings are compared under the same noise and order of examples.
            [f"{data.name}/choose/{fold.split}/{fold.number}" for fold, _ in tried],
            [fold.split for fold, _ in tried],
            [fold.kept for fold, _ in tried],
            [setting for _, setting in tried],
        )
        posterior = fits.slang.fit(cursor)
        scores = torch.zeros(len(splits), len(grid), len(FINER), dtype=torch.float64)
        for number, (fold, setting) in enumerate(tried):
            outputs_SN, targets_N = fits.outputs(posterior, number, fold.held_out)
            finer = (FINER * setting.noise_precision)[:, None, None]
            densities = pointwise(log_densities(outputs_SN, targets_N, finer)) * len(fold.held_out)
            scores[fold.split, grid.index(setting)] += densities.nan_to_num(nan=-torch.inf)
        return Result(tables={"choices": pa.Table.from_pylist(list(_best(data.name, grid, scores)))})


def _best(name: str, grid: Sequence[Setting], scores: Tensor) -> Iterator[dict[str, object]]:
    for split, of_split in enumerate(scores):
        which, finer = divmod(int(of_split.argmax()), len(FINER))
        yield {
            "set": name,
            "split": split,
            "noise_precision": grid[which].noise_precision * float(FINER[finer]),
            "prior_precision": grid[which].prior_precision,
            "tried_noise_precision": grid[which].noise_precision,
        }


@dataclass(frozen=True)
class Fit:
    """The fits on all training rows of each split, scored on its test rows."""

    uri: str  # of the store
    choices: str  # place of the first stage

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        """Of one data set; table "scores", in the units of the targets."""
        data = DATA_SETS[unit.name]
        splits = read_splits(data.folder)
        standard = splits.standardised()
        chosen = self._chosen(data.name)
        every = range(len(splits))
        names = [f"{data.name}/fit/{split}" for split in every]
        fits = Fits(data, standard, EPOCHS, names, every, splits.train, chosen)
        posterior = fits.slang.fit(cursor)
        rows = []
        for split, setting in enumerate(chosen):
            outputs_SN, targets_N = fits.outputs(posterior, split, splits.test[split])
            scale = standard.scale_D[split]
            densities_SN = log_densities(outputs_SN, targets_N, setting.noise_precision) - scale.log()
            rows.append(
                {
                    "set": data.name,
                    "split": split,
                    **setting._asdict(),
                    "rmse": rmse(outputs_SN, targets_N) * float(scale),
                    "ll": float(pointwise(densities_SN)),
                    "ll_joint": float(joint(densities_SN)),
                    "smallest_diagonal": float(posterior.diagonal_RP[split].min()),
                }
            )
        return Result(tables={"scores": pa.Table.from_pylist(rows)})

    def _chosen(self, name: str) -> list[Setting]:
        table = open_store(self.uri).read(self.choices).table("choices")
        mine = table.filter(pc.field("set") == name).sort_by("split")
        pairs = zip(mine["noise_precision"].to_pylist(), mine["prior_precision"].to_pylist(), strict=True)
        return [Setting(*pair) for pair in pairs]
