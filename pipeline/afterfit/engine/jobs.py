"""The jobs that stages are cut into. Each reads places and leaves one; both engines run the same ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from afterfit.algebra import Result, State, Unit
from afterfit.engine.bench import Bench
from afterfit.engine.cursor import arithmetic, words
from afterfit.engine.events import Kind
from afterfit.engine.progress import appended
from afterfit.engine.tree import Union, merged

if TYPE_CHECKING:
    from afterfit.store.directory import Store


@dataclass(frozen=True, kw_only=True)
class RunUnit:
    """One unit of a map."""

    place: str
    unit: Unit
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The unit's."""
        return self.unit.name

    def run(self, bench: Bench) -> None:
        """The task's result."""
        bench.with_cursor(bench.work.place, self.unit, lambda cursor: bench.bound.run(self.unit, cursor), self.place)


@dataclass(frozen=True, kw_only=True)
class SumUnit:
    """The leaf of one unit, of a reduction or of one round."""

    place: str
    below: str  # what its saves are below
    unit: Unit
    broadcast: str | None = None  # place of the state that the round was given
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The unit's."""
        return self.unit.name

    def run(self, bench: Bench) -> None:
        """The unit's sum."""
        given = () if self.broadcast is None else (bench.broadcast(self.broadcast),)
        bench.with_cursor(
            self.below,
            self.unit,
            lambda cursor: Result.of_state(bench.bound.leaf(*given, self.unit, cursor)),
            self.place,
        )


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Two nodes into their parent, tile by tile; then the two are dropped."""

    place: str
    name: str
    needs: tuple[str, ...]  # left, right

    def run(self, bench: Bench) -> None:
        """The parent."""
        left, right = (bench.store.read(place).state() for place in self.needs)
        bench.keep(self.place, merged(bench.bound.merge, left, right))
        for child in self.needs:
            bench.store.drop(child)


@dataclass(frozen=True, kw_only=True)
class Finalise:
    """From the roots of a reduction to the stage's result."""

    place: str
    needs: tuple[str, ...]  # the roots
    name: str = "finalise"

    def run(self, bench: Bench) -> None:
        """The total is read lazily."""
        bench.conclude(bench.bound.finalise(total(bench.store, self.needs)))


@dataclass(frozen=True, kw_only=True)
class Begin:
    """The state before the first round."""

    place: str
    name: str = "begin"
    needs: tuple[str, ...] = ()

    def run(self, bench: Bench) -> None:
        """Round 0."""
        result = Result.of_state(bench.bound.init(), {"stop": None})
        bench.keep(self.place, replace(result, tables={"progress": appended(None, "round", [])}))


@dataclass(frozen=True, kw_only=True)
class Advance:
    """From a round's sum to the next state."""

    place: str
    number: int
    before: str  # place of the state that the round was given
    needs: tuple[str, ...]  # the roots
    name: str = "advance"

    def run(self, bench: Bench) -> None:
        """The state, beside the figures of all rounds so far."""
        before = bench.store.read(self.before)
        state, progress = bench.bound.advance(before.state(), total(bench.store, self.needs))
        table = appended(before.table("progress"), "round", [(self.number, progress.figures)])
        stop = None if progress.stop is None else progress.stop.name.lower()
        bench.keep(self.place, replace(Result.of_state(state, {"stop": stop}), tables={"progress": table}))


@dataclass(frozen=True, kw_only=True)
class Conclude:
    """From the last round's state to the stage's result."""

    place: str
    last: str  # place of the last round
    number: int
    name: str = "finalise"
    needs: tuple[str, ...] = ()

    def run(self, bench: Bench) -> None:
        """The method's result and the figures of all rounds."""
        last = bench.store.read(self.last)
        result = bench.bound.finalise(last.state())
        whole = replace(result, tables={"progress": last.table("progress"), **result.tables})
        bench.conclude(whole, {"stop": last.facts["stop"], "num_rounds": self.number})


@dataclass(frozen=True, kw_only=True)
class Settle:
    """Drops the rounds that cannot be gone on from. Without any, the parts of later rounds go too."""

    place: str  # of the rounds; never an artifact itself
    sums: str  # what the rounds' sums are below
    name: str = "resume"
    needs: tuple[str, ...] = ()

    def run(self, bench: Bench) -> None:
        """Leaves the newest usable round as the newest."""
        if bench.trail(self.place).last() is None:
            bench.store.drop(self.sums)


@dataclass(frozen=True, kw_only=True)
class Sift:
    """Drops the finished pieces of an unfinished stage that another arithmetic made: they would show in the bits."""

    place: str  # what the pieces are below; never an artifact itself
    name: str = "resume"
    needs: tuple[str, ...] = ()

    def run(self, bench: Bench) -> None:
        """Leaves what this worker could have made, bit for bit."""
        bench.wake()
        here, dropped = arithmetic(), []
        for place in bench.store.places(self.place):
            made_on = bench.store.read(place).about.get("arithmetic")
            if made_on != here:
                bench.store.drop(place)
                dropped.append(words(made_on))
        if dropped:
            told = f"{len(dropped)} finished pieces were made on {dropped[0]}; on {words(here)} they are made again."
            bench.tell(Kind.NOTE, note=told)


def total(store: Store, roots: tuple[str, ...]) -> State:
    """The roots of all trees as one lazy state."""
    return Union([store.read(root).state() for root in roots])
