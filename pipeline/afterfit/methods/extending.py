"""Sums over data that grew: what was summed before, and the sum over the new data, without doing the first again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from afterfit.algebra import Cursor, Result, State, Unit, add
from afterfit.network.workbench import Outline, Workbench


@dataclass(frozen=True)
class UnionOfChunks:
    """For sums that are kept by chunks: the chunks of each input, one input after the other."""

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    roles: tuple[str, ...]

    def units(self, outline: Outline) -> Sequence[Unit]:
        """One for each input."""
        return [Unit(role) for role in self.roles]

    def on(self, bench: Workbench) -> "_UnionTask":
        """Needs the inputs only."""
        return _UnionTask(bench)


@dataclass(frozen=True)
class _UnionTask:
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        artifact = self.bench.input(unit.name)

        def renamed(family: str) -> Iterator[tuple[str, Tensor]]:
            for tile, tensor in artifact.tiles(family).items():
                yield f"{unit.name}-{tile}", tensor

        return Result(tensors={family: renamed(family) for family in artifact.families})


@dataclass(frozen=True)
class SumOfTotals:
    """For sums that are kept whole: the inputs added tile by tile, in their order."""

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    roles: tuple[str, ...]

    def units(self, outline: Outline) -> Sequence[Unit]:
        """One: it reads and writes tile by tile."""
        return [Unit("all")]

    def on(self, bench: Workbench) -> "_SumTask":
        """Needs the inputs only."""
        return _SumTask(self, bench)


@dataclass(frozen=True)
class _SumTask:
    recipe: SumOfTotals
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        states = [self.bench.input(role).state() for role in self.recipe.roles]

        def totals(family: str) -> Iterator[tuple[str, Tensor]]:
            for name in states[0]:
                if name.startswith(f"{family}/"):
                    yield name.removeprefix(f"{family}/"), _total(name, states)

        families = self.bench.input(self.recipe.roles[0]).families
        return Result(tensors={family: totals(family) for family in families})


def _total(name: str, states: Sequence[State]) -> Tensor:
    total: State = {name: states[0][name]}
    for state in states[1:]:
        total = add(total, {name: state[name]})
    return total[name]
