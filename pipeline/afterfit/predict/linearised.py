"""What a linearised posterior needs of each example: its outputs, its features J V, and its own kernel J J^T."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from afterfit.algebra import Batch, Cursor, Result, State, Unit, fold_examples, in_data_order
from afterfit.network.workbench import Outline, Workbench, shard_units
from afterfit.precision import state_dtype
from afterfit.rows import row_backend
from afterfit.rows.columns import held_columns
from afterfit.rows.protocol import RowBackend, unit_cotangents


class Linearised(NamedTuple):
    """Of one micro-batch."""

    mean_BC: Tensor  # outputs of the trained network
    features_BCK: Tensor  # J V
    kernel_BCC: Tensor | None  # J J^T, where it was asked for


def linearise(
    backend: RowBackend,
    batch: Batch,
    basis: Mapping[str, Tensor],
    *,
    with_kernel: bool,
    outputs: Sequence[int] | None = None,
) -> Linearised:
    """Outputs, features and kernel of a micro-batch, in the dtype that sums are kept in; of all outputs, or of some."""
    rows = backend.rows(batch, partial(unit_cotangents, chosen=outputs))
    mean_BC = rows.outputs_BC if outputs is None else rows.outputs_BC[:, list(outputs)]
    dtype = state_dtype(mean_BC.dtype)
    features_BCK = rows.times(basis).to(dtype)
    kernel_BCC = rows.gram().to(dtype) if with_kernel else None
    return Linearised(mean_BC.to(dtype), features_BCK, kernel_BCC)


@dataclass(frozen=True)
class OutputFeatures:
    """Cache outputs, features and targets of a data set, so that tuning and predicting need no other pass.

    Leaves behind, one tile a shard: `mean` (n, C), `features` (n, C, K), `target`, `index`, and `kernel` (n, C, C)
    if asked for. Cost: one pass of rows over the data; K C numbers stored for each example.
    """

    VERSION: ClassVar[int] = 3
    verb: ClassVar[str] = "map"
    columns: ClassVar[str] = "basis"  # the input that has V, and V's name there

    role: str
    with_kernel: bool

    def units(self, outline: Outline) -> Sequence[Unit]:
        """Shards of the data set."""
        return shard_units(outline, self.role)

    def on(self, bench: Workbench) -> "_FeaturesTask":
        """Needs the network, the data set and the columns."""
        return _FeaturesTask(self, bench)


@dataclass(frozen=True)
class DrawFeatures(OutputFeatures):
    """The same for a chunk of k stored draws d: `features` (n, C, k) is J d, before any scale."""

    columns: ClassVar[str] = "draws"


@dataclass(frozen=True)
class _FeaturesTask:
    recipe: OutputFeatures
    bench: Workbench

    @cached_property
    def basis(self) -> Mapping[str, Tensor]:
        """V by tiles."""
        columns = self.recipe.columns
        tiles = self.bench.input(columns).tiles(columns)
        return held_columns(tiles, self.bench.network.layout, self.bench.memory_gb)

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        start, stop = unit.details["start"], unit.details["stop"]
        data = self.bench.data(self.recipe.role)
        state = fold_examples(_Collect(self), data, range(start, stop), self.bench.micro_batch, cursor)
        families = dict.fromkeys(name.partition("/")[0] for name in state)
        whole = {
            family: torch.cat([state[name] for name in state if name.startswith(f"{family}/")]) for family in families
        }
        return Result(tensors={family: [(unit.name, values)] for family, values in in_data_order(whole).items()})


@dataclass(frozen=True)
class _Collect:
    """Keeps what each micro-batch gave, in order."""

    task: _FeaturesTask

    @cached_property
    def backend(self) -> RowBackend:
        bench = self.task.bench
        return row_backend(bench.network, bench.memory_gb, bench.arithmetic)

    def init(self) -> State:
        return {}

    def accumulate(self, state: State, batch: Batch) -> State:
        made = linearise(self.backend, batch, self.task.basis, with_kernel=self.task.recipe.with_kernel)
        place = f"{int(batch.indexes[0]):012d}"
        new = dict(state)
        new[f"mean/{place}"] = made.mean_BC.cpu()
        new[f"features/{place}"] = made.features_BCK.cpu()
        new[f"index/{place}"] = batch.indexes
        if made.kernel_BCC is not None:
            new[f"kernel/{place}"] = made.kernel_BCC.cpu()
        if batch.targets is not None:
            new[f"target/{place}"] = batch.targets
        return new

    def merge(self, left: State, right: State) -> State:
        return {**left, **right}
