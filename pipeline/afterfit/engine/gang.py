"""Steps made by a gang: the loop that all its members run, and the gang of one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Protocol

import pyarrow as pa

from afterfit.algebra import Gang, Result, State, Steps, Stop, add
from afterfit.engine.bench import Bench
from afterfit.engine.cursor import Saved, Trail
from afterfit.engine.events import Kind
from afterfit.engine.progress import appended


class Assembly(Protocol):
    """The members of a gang, seen from one of them."""

    is_leader: bool

    def gang(self, num_slices: int) -> Gang:
        """What the steps get."""
        ...

    def agree(self, position: int | None) -> int | None:
        """The leader's value, on every member."""
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


class Alone:
    """An assembly of one."""

    is_leader = True

    def gang(self, num_slices: int) -> Gang:
        """All slices are this member's."""
        return LoneGang(num_slices)

    def agree(self, position: int | None) -> int | None:
        """With itself."""
        return position


def march(bench: Bench, assembly: Assembly) -> None:
    """Make the steps that are left, from the newest save; the leader saves, tells, and writes the result.

    The state after a step is the same on every member, so that one copy is enough to go on from.
    """
    steps: Steps = bench.bound
    trail = bench.trail(f"{bench.work.place}/step")
    with bench.doing("steps"):
        start, state, table = _newest(trail, assembly) or Saved(0, dict(steps.init()), None)
        gang = assembly.gang(steps.num_slices)
        rows: list[tuple[int, Mapping[str, float]]] = []
        stop = Stop.FINISHED
        number = start
        for number in range(start + 1, steps.num_steps + 1):
            state, progress = steps.step(state, number - 1, gang)
            rows.append((number, progress.figures))
            if progress.stop is not None:
                stop = progress.stop
                break
            if assembly.is_leader:
                trail.offer(number, partial(_save, state, table, rows))
                bench.tell(Kind.ADVANCED, position=number, total=steps.num_steps)
        if assembly.is_leader:
            figures = appended(table, "step", rows)
            result = steps.finalise(state, figures)
            whole = replace(result, tables={"progress": figures, **result.tables})
            bench.conclude(whole, {"stop": stop.name.lower(), "num_steps": number})
            bench.tell(Kind.FINISHED, position=number, total=steps.num_steps)


def _newest(trail: Trail, assembly: Assembly) -> Saved | None:
    """The newest usable save, the same on every member."""
    mine = trail.last() if assembly.is_leader else None
    position = assembly.agree(mine.position if mine else None)
    if position is None:
        return None
    saved = mine or trail.read(position)
    assembly.agree(position)  # the leader saves, and drops this one, only once everybody has read it
    return saved


def _save(state: State, table: pa.Table | None, rows: Sequence[tuple[int, Mapping[str, float]]]) -> Result:
    return replace(Result.of_state(state), tables={"progress": appended(table, "step", rows)})
