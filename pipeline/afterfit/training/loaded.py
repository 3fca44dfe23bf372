"""The point estimate of a network that was trained elsewhere: its weights stay where they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from afterfit.algebra import Cursor, Result, Unit
from afterfit.network.functional import check_usable
from afterfit.network.workbench import Outline, Workbench


@dataclass(frozen=True)
class LoadedWeights:
    """Checks that the weights load and are finite. Leaves behind facts only; workers load from the origin."""

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    def units(self, outline: Outline) -> Sequence[Unit]:
        """One."""
        return [Unit("all")]

    def on(self, bench: Workbench) -> "_Check":
        """Needs the network."""
        return _Check(bench)


@dataclass(frozen=True)
class _Check:
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        check_usable(self.bench.network.module)
        return Result(facts={"is_loaded": True})
