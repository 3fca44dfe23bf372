"""The two stages of the logistic regression table: the full Gaussians, then SLANG beside them.

A unit is a data set, or a data set and a rank; its replicas are all splits, or all seeds where there is one split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from afterfit.algebra import Cursor, Result, Unit
from afterfit.store.directory import open_store
from full_gaussian import FullGaussian, Problem, negative_log_likelihood, symmetric_divergence
from gradient_columns import Linear
from logistic_table import BIAS_PRECISION, DATA_SETS, NUM_SEEDS, RANKS, DataSet
from paper_splits import Splits, read_splits
from record import Budget
from replica_likelihoods import Bernoulli
from replicas import Replicas
from replicated_slang import Posterior, Slang

VERSION = 1
"""Of the numbers that both stages make."""


def full_units(names: Sequence[str]) -> tuple[Unit, ...]:
    """One for each data set."""
    return tuple(Unit(name, {"set": name}) for name in names)


def slang_units(names: Sequence[str]) -> tuple[Unit, ...]:
    """One for each data set and rank; those that take longest first."""
    return tuple(
        Unit(f"{name}-L{rank}", {"set": name, "rank": rank})
        for name in sorted(names, key=list(DATA_SETS).index, reverse=True)
        for rank in sorted(RANKS, reverse=True)
    )


class FullFits:
    """The best full Gaussian of each split."""

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        """Of one data set; table "scores", and its Gaussians."""
        table = Table(DATA_SETS[unit.details["set"]])
        best, rows = [], []
        for split in range(len(table.splits)):
            best.append(table.problem(split).best())
            rows.append(table.scores(split, split, None, best[-1], best[-1]))
        means, precisions = (torch.stack(parts) for parts in zip(*best, strict=True))
        name = table.data.name
        tensors = {"mean": [(name, means)], "precision": [(name, precisions)]}
        return Result(tensors=tensors, tables={"scores": pa.Table.from_pylist(rows, SCHEMA)})


@dataclass(frozen=True)
class SlangFits:
    """SLANG of each split, or of each seed."""

    uri: str  # of the store
    full: str  # place of the first stage
    budget: Budget

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        """Of one data set and rank; table "scores"."""
        data, rank = DATA_SETS[unit.details["set"]], int(unit.details["rank"])
        table = Table(data)
        posterior = self._slang(table, rank).fit(cursor)
        full = open_store(self.uri).read(self.full)
        means, precisions = (full.tiles(family)[data.name] for family in ("mean", "precision"))
        rows = []
        for number, split in enumerate(table.versions):
            best = FullGaussian(means[split], precisions[split])
            rows.append(table.scores(number, split, rank, dense(posterior, number), best))
        return Result(tables={"scores": pa.Table.from_pylist(rows, SCHEMA)})

    def _slang(self, table: Table, rank: int) -> Slang:
        inputs_1NI = table.splits.with_ones()
        replicas = Replicas(
            names=tuple(f"{table.data.name}/{number}" for number in range(len(table.versions))),
            inputs_DNI=inputs_1NI,
            targets_DN=table.splits.targets_N[None],
            version_R=torch.zeros(len(table.versions), dtype=torch.int64),
            rows=tuple(table.splits.train[split] for split in table.versions),
            batch_size=table.data.batch_size,
        )
        prior_RP = table.prior_P.expand(len(table.versions), -1)
        network = Linear(inputs_1NI.shape[-1])
        return Slang(network, Bernoulli(), replicas, prior_RP, table.data.choices(rank, self.budget))


SCHEMA = pa.schema(
    [
        ("set", pa.string()),
        ("rank", pa.int32()),  # null: the full Gaussian
        ("replica", pa.int32()),
        ("neg_elbo_whole", pa.float64()),
        ("neg_elbo", pa.float64()),
        ("kl", pa.float64()),
        ("nll", pa.float64()),
    ]
)


class Table:
    """A data set, and what is measured of each Gaussian."""

    def __init__(self, data: DataSet) -> None:
        self.data = data
        self.splits: Splits = read_splits(data.folder)
        self._inputs_NP = self.splits.with_ones()[0]

    @property
    def versions(self) -> Sequence[int]:
        """The split of each fit of SLANG."""
        return range(len(self.splits)) if len(self.splits) > 1 else [0] * NUM_SEEDS

    @property
    def prior_P(self) -> Tensor:
        """Its precisions."""
        precisions = torch.full((self.splits.num_inputs,), self.data.prior_precision, dtype=torch.float64)
        return torch.where(Linear(self.splits.num_inputs).is_bias(), BIAS_PRECISION, precisions)

    def problem(self, split: int) -> Problem:
        """Its training rows."""
        rows = self.splits.train[split]
        return Problem(self._inputs_NP[rows], self.splits.targets_N[rows], self.prior_P)

    def scores(
        self, replica: int, split: int, rank: int | None, posterior: FullGaussian, best: FullGaussian
    ) -> dict[str, object]:
        """A row of the table.

        The authors' ELBO leaves out the log of the prior precision of the bias: so does `neg_elbo`.
        """
        problem, test = self.problem(split), self.splits.test[split]
        whole = problem.negative_elbo(posterior)
        return {
            "set": self.data.name,
            "rank": rank,
            "replica": replica,
            "neg_elbo_whole": whole / len(problem.targets_N),
            "neg_elbo": (whole + math.log(BIAS_PRECISION) / 2) / len(problem.targets_N),
            "kl": symmetric_divergence(posterior, best),
            "nll": negative_log_likelihood(posterior, self._inputs_NP[test], self.splits.targets_N[test]),
        }


def dense(posterior: Posterior, replica: int) -> FullGaussian:
    """U U^T + D of one replica."""
    factor_PL = posterior.factor_RPL[replica]
    return FullGaussian(posterior.mean_RP[replica], factor_PL @ factor_PL.mT + posterior.diagonal_RP[replica].diag())
