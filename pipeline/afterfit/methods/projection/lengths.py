"""Lengths of the protected rows, from one pass over the protected examples."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from afterfit.algebra import Batch, Cursor, Result, State, Unit, add
from afterfit.errors import NumericalError
from afterfit.methods.projection.passes import fold_shard
from afterfit.methods.projection.protected import OverProtected
from afterfit.methods.projection.unit_rows import ProtectedRows
from afterfit.network.workbench import Workbench
from afterfit.precision import CORE


@dataclass(frozen=True)
class RowLengths(OverProtected):
    """|row| of each protected row: `lengths` by shards (n, R) in float64, examples ascending.

    Cost: one pass of rows over the protected examples.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    def on(self, bench: Workbench) -> "_LengthsTask":
        """Needs the network and the training data."""
        return _LengthsTask(ProtectedRows(self.protected, bench, has_lengths=False))


@dataclass(frozen=True)
class _LengthsTask:
    rows: ProtectedRows

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        lengths_NR = fold_shard(_Collected(self.rows, unit), self.rows, unit, cursor)["lengths/all"]
        if not bool(torch.isfinite(lengths_NR).all()):
            raise NumericalError(
                f"A row of the Jacobian in the examples {unit.details['start']} to {unit.details['stop'] - 1} is not "
                "finite; check the data, or compute in a wider dtype."
            )
        return Result(tensors={"lengths": [(unit.name, lengths_NR)]})


@dataclass(frozen=True)
class _Collected:
    """Puts what each micro-batch gave where its examples are."""

    rows: ProtectedRows
    unit: Unit

    def init(self) -> State:
        shape = (len(self.rows.indexes(self.unit)), self.rows.protected.rows_each(self.rows.bench))
        return {"lengths/all": torch.zeros(shape, dtype=CORE)}

    def accumulate(self, state: State, batch: Batch) -> State:
        squares_BR: Tensor = self.rows.rows(batch).squared_lengths()
        state["lengths/all"][self.rows.places(batch, self.unit.details["start"])] = squares_BR.clamp_min(0).sqrt()
        return state

    def merge(self, left: State, right: State) -> State:
        return add(left, right)
