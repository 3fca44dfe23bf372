"""What a gang saves between steps: the leader all of it, or every member what it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from afterfit.algebra import Gang, Result, Sharded, State, Steps
from afterfit.engine.bench import Bench
from afterfit.engine.cursor import Saved, arithmetic

if TYPE_CHECKING:
    from afterfit.engine.gang import Assembly

COMMON = "common"


class Saves(Protocol):
    """Of one member. All members call the same methods in the same order."""

    def newest(self) -> Saved:
        """The newest usable save, the same on every member, or the beginning; what this member holds of it."""
        ...

    def offer(self, number: int, state: State, table: Callable[[], pa.Table]) -> None:
        """Save the state after a step, with the figures so far, if a save is due."""
        ...

    def whole(self, number: int, state: State, table: Callable[[], pa.Table]) -> State:
        """The whole state after the last step, on the leader; it may be lazy."""
        ...


def saves_of(bench: Bench, assembly: Assembly, steps: Steps, gang: Gang) -> Saves:
    """As the steps' state asks for."""
    if isinstance(steps, Sharded):
        return InParts(bench, assembly, steps, gang)
    return ByLeader(bench, assembly, steps)


class ByLeader:
    """The state after a step is the same on every member, so that one copy is enough to go on from."""

    def __init__(self, bench: Bench, assembly: Assembly, steps: Steps) -> None:
        self.steps = steps
        self.assembly = assembly
        self.trail = bench.trail(f"{bench.work.place}/step")

    def newest(self) -> Saved:
        """See `Saves.newest`."""
        return _agreed(self, lambda _: True) or Saved(0, dict(self.steps.init()), None)

    def offer(self, number: int, state: State, table: Callable[[], pa.Table]) -> None:
        """See `Saves.offer`."""
        if self.assembly.is_leader:
            self.trail.offer(number, lambda: _with(state, table()))

    def whole(self, number: int, state: State, table: Callable[[], pa.Table]) -> State:
        """It is here."""
        return state


class InParts:
    """Each member saves what its slices hold, at a place of each slice; the leader then joins them to one save.

    The last state is saved too, whatever the time: from there the leader reads what others hold.
    """

    def __init__(self, bench: Bench, assembly: Assembly, steps: Steps, gang: Gang) -> None:
        self.steps = steps
        self.gang = gang
        self.assembly = assembly
        self.store = bench.store
        self.place = f"{bench.work.place}/step"
        self.trail = bench.trail(self.place)

    def newest(self) -> Saved:
        """See `Saves.newest`. What was saved of a step that not all members got to is dropped first."""
        if self.assembly.is_leader:
            there = self.store.places(self.place)
            joined = {place for place in there if place.count("/") == self.place.count("/") + 1}
            parts = {place.rpartition("/")[0] for place in there} - {self.place}
            for place in sorted(parts - joined):
                self.store.drop(place)
        self.assembly.wait()
        found = _agreed(self, self._holds)
        if found is not None:
            return found
        state = self.steps.init()
        return Saved(0, {name: state[name] for name in state if self._holds(name)}, None)

    def offer(self, number: int, state: State, table: Callable[[], pa.Table]) -> None:
        """See `Saves.offer`."""
        is_due = self.assembly.is_leader and self.trail.is_due
        if self.assembly.agree(number if is_due else None) is not None:
            self._save(number, state, table())

    def whole(self, number: int, state: State, table: Callable[[], pa.Table]) -> State:
        """From the store."""
        self._save(number, state, table())
        return self.store.read(self.trail.at(number)).state() if self.assembly.is_leader else {}

    def _save(self, number: int, state: State, table: pa.Table) -> None:
        place, about = self.trail.at(number), {"arithmetic": arithmetic()}
        for which in self.gang.mine:
            self.store.write(self._part(place, which), Result.of_state(self._of(state, which)), about)
        self.assembly.wait()
        if self.assembly.is_leader:
            self.store.write(f"{place}/{COMMON}", _with(self._of(state, None), table), about)
            parts = [self._part(place, which) for which in range(self.gang.num_slices)]
            self.store.adopt(place, [f"{place}/{COMMON}", *parts], about=about)
            self.trail.kept(number)
        self.assembly.wait()

    def _part(self, place: str, which: int) -> str:
        return f"{place}/slice-{which:03d}"

    def _of(self, state: State, which: int | None) -> State:
        return {name: state[name] for name in state if self._owner(name) == which}

    def _holds(self, name: str) -> bool:
        owner = self._owner(name)
        return owner is None or owner in self.gang.mine

    def _owner(self, name: str) -> int | None:
        assert isinstance(self.steps, Sharded)
        return self.steps.owner(name)


def _agreed(saves: ByLeader | InParts, holds: Callable[[str], bool]) -> Saved | None:
    """The newest usable save, the same on every member."""
    trail, assembly = saves.trail, saves.assembly
    mine = trail.last(holds) if assembly.is_leader else None
    position = assembly.agree(mine.position if mine else None)
    if position is None:
        return None
    saved = mine or trail.read(position, holds)
    assembly.agree(position)  # the leader saves, and drops this one, only once everybody has read it
    return saved


def _with(state: State, table: pa.Table) -> Result:
    return replace(Result.of_state(state), tables={"progress": table})
