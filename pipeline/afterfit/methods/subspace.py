"""Curvature of the data in a subspace: G = sum_i Psi_i^T Lambda_i Psi_i with Psi = J V. Every V (P, K) fits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from afterfit.algebra import Batch, Cursor, Result, State, Unit, add, batches, fold, micro_batches
from afterfit.network.likelihoods import Likelihood
from afterfit.network.workbench import Outline, Workbench, bound_likelihood, shard_units
from afterfit.precision import CORE
from afterfit.rows import row_backend
from afterfit.rows.columns import held_columns
from afterfit.rows.protocol import RowBackend

NUM_CHUNKS = 8
"""Prefixes of a shard whose curvature is kept apart, so that an early stop can be chosen without another pass."""


@dataclass(frozen=True)
class SubspaceCurvature:
    """The data's curvature in a basis, kept by chunks of shards in their fixed order.

    Leaves behind, one tile a chunk: `curvature` (1, K, K) in float64, `log_density` (1,) in nats and `count` (1,).
    Cost: one pass of rows over the data. Holds K^2 numbers for each chunk.
    """

    VERSION: ClassVar[int] = 3
    verb: ClassVar[str] = "map"

    likelihood: Likelihood

    def units(self, outline: Outline) -> Sequence[Unit]:
        """Shards of the training data."""
        return shard_units(outline, "train")

    def on(self, bench: Workbench) -> "_CurvatureTask":
        """Needs the network, the training data and the basis."""
        return _CurvatureTask(bound_likelihood(self.likelihood, bench), bench)


@dataclass(frozen=True)
class _CurvatureTask:
    likelihood: Likelihood
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        start, stop = unit.details["start"], unit.details["stop"]
        data = self.bench.data("train")
        planned = micro_batches(data, range(start, stop), self.bench.micro_batch)
        accumulator = CurvatureSum(self.likelihood, self.bench, len(planned))

        def items(position: int) -> Iterable[tuple[int, Batch]]:
            return enumerate(batches(data, planned[position:]), position)

        state = fold(accumulator, items, len(planned), cursor)
        families: dict[str, list] = {"curvature": [], "log_density": [], "count": []}
        for name, tensor in state.items():
            family, _, chunk = name.partition("/")
            families[family].append((f"{unit.name}-{chunk}", tensor))
        return Result(tensors=families)


@dataclass(frozen=True)
class CurvatureSum:
    """Accumulates (position, batch) into the chunk that the position lies in."""

    likelihood: Likelihood
    bench: Workbench
    num_positions: int

    @cached_property
    def basis(self) -> Mapping[str, Tensor]:
        """V by tiles."""
        tiles = self.bench.input("basis").tiles("basis")
        return held_columns(tiles, self.bench.network.layout, self.bench.memory_gb)

    def init(self) -> State:
        """No data: all zeros."""
        num_features = next(iter(self.basis.values())).shape[1]
        chunks = [f"{chunk:02d}" for chunk in range(min(NUM_CHUNKS, self.num_positions))]
        return (
            {f"curvature/{chunk}": torch.zeros(1, num_features, num_features, dtype=CORE) for chunk in chunks}
            | {f"log_density/{chunk}": torch.zeros(1, dtype=CORE) for chunk in chunks}
            | {f"count/{chunk}": torch.zeros(1, dtype=torch.int64) for chunk in chunks}
        )

    def accumulate(self, state: State, batch: tuple[int, Batch]) -> State:
        """Add one micro-batch: (root of Lambda) J V, then its Gram."""
        position, examples = batch
        chunk = f"{position * min(NUM_CHUNKS, self.num_positions) // self.num_positions:02d}"
        rows = self._backend.rows(examples, self.likelihood.root)
        features_RK = rows.times(self.basis).flatten(0, 1).to(CORE)
        curvature_KK = (features_RK.T @ features_RK).cpu()
        new = dict(state)
        new[f"curvature/{chunk}"] = state[f"curvature/{chunk}"] + curvature_KK
        if examples.targets is not None:
            density_B = self.likelihood.log_density(rows.outputs_BC, examples.targets.to(rows.outputs_BC.device))
            new[f"log_density/{chunk}"] = state[f"log_density/{chunk}"] + density_B.double().sum().cpu()
        new[f"count/{chunk}"] = state[f"count/{chunk}"] + len(examples)
        return new

    @cached_property
    def _backend(self) -> RowBackend:
        return row_backend(self.bench.network, self.bench.memory_gb, self.bench.arithmetic)

    def merge(self, left: State, right: State) -> State:
        """Chunk by chunk."""
        return add(left, right)
