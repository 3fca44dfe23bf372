"""Steps made by a gang: the loop that all its members run, and the gang of one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Protocol

import pyarrow as pa

from afterfit.algebra import Gang, State, Steps, Stop, add
from afterfit.engine.bench import Bench
from afterfit.engine.events import Kind
from afterfit.engine.progress import appended
from afterfit.engine.saves import saves_of


class Assembly(Protocol):
    """The members of a gang, seen from one of them."""

    is_leader: bool

    def gang(self, num_slices: int) -> Gang:
        """What the steps get."""
        ...

    def agree(self, position: int | None) -> int | None:
        """The leader's value, on every member."""
        ...

    def wait(self) -> None:
        """Until every member is here."""
        ...


class LoneGang:
    """Runs all slices, one after another."""

    def __init__(self, num_slices: int) -> None:
        self.num_slices = num_slices
        self.mine: Sequence[int] = range(num_slices)

    def sum(self, parts: Sequence[State]) -> State:
        """Added in slice order."""
        return reduce(add, parts)

    def gather(self, parts: Sequence[State]) -> list[State]:
        """They are here already."""
        return list(parts)

    def exchange(self, parts: Sequence[Sequence[State]]) -> list[list[State]]:
        """They are here already, and are handed on as they are."""
        return [list(given) for given in zip(*parts, strict=True)]


class Alone:
    """An assembly of one."""

    is_leader = True

    def gang(self, num_slices: int) -> Gang:
        """All slices are this member's."""
        return LoneGang(num_slices)

    def agree(self, position: int | None) -> int | None:
        """With itself."""
        return position

    def wait(self) -> None:
        """For nobody."""


def march(bench: Bench, assembly: Assembly) -> None:
    """Make the steps that are left, from the newest save; the leader tells, and writes the result."""
    steps: Steps = bench.bound
    with bench.doing("steps"):
        gang = assembly.gang(steps.num_slices)
        saves = saves_of(bench, assembly, steps, gang)
        start, state, before = saves.newest()
        rows: list[tuple[int, Mapping[str, float]]] = []

        def table() -> pa.Table:
            return appended(before, "step", rows)

        stop = Stop.FINISHED
        number = start
        for number in range(start + 1, steps.num_steps + 1):
            state, progress = steps.step(state, number - 1, gang)
            rows.append((number, progress.figures))
            if progress.stop is not None:
                stop = progress.stop
                break
            saves.offer(number, state, table)
            if assembly.is_leader:
                bench.tell(Kind.ADVANCED, position=number, total=steps.num_steps)
        state = saves.whole(number, state, table)
        if assembly.is_leader:
            result = steps.finalise(state, table())
            whole = replace(result, tables={"progress": table(), **result.tables})
            bench.conclude(whole, {"stop": stop.name.lower(), "num_steps": number})
            bench.tell(Kind.FINISHED, position=number, total=steps.num_steps)
