"""The protected rows times a global basis: what a Nystrom preconditioner is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from afterfit.algebra import Cursor, Result, Unit
from afterfit.methods.projection.passes import Times, fold_shard
from afterfit.methods.projection.protected import OverProtected
from afterfit.methods.projection.unit_rows import ProtectedRows
from afterfit.network.workbench import Workbench
from afterfit.rows.columns import held_columns


@dataclass(frozen=True)
class BasisImage(OverProtected):
    """R U by shards: `image` (n, R, K) in float64. Cost: one pass over the protected examples."""

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    def on(self, bench: Workbench) -> "_ImageTask":
        """Needs the network, the training data, the lengths and the basis."""
        return _ImageTask(ProtectedRows(self.protected, bench))


@dataclass(frozen=True)
class _ImageTask:
    rows: ProtectedRows

    @cached_property
    def basis(self) -> Mapping[str, Tensor]:
        bench = self.rows.bench
        return held_columns(bench.input("basis").tiles("basis"), bench.layout, bench.memory_gb)

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        state = fold_shard(Times(self.rows, unit, self.basis), self.rows, unit, cursor)
        return Result(tensors={"image": [(unit.name, state["rows/all"])]})
