"""The three verbs, written once: which jobs a stage still needs, given what the store holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from afterfit.algebra import Unit
from afterfit.engine import jobs
from afterfit.engine.bench import Job
from afterfit.engine.cursor import arithmetic, positions
from afterfit.engine.protocol import Work
from afterfit.engine.tree import trees

if TYPE_CHECKING:
    from afterfit.store.artifact import StoredArtifact
    from afterfit.store.directory import Store


class Crew(Protocol):
    """Those who do the jobs of one stage."""

    def run(self, jobs: Sequence[Job]) -> None:
        """Do all of them, each after those it needs; the order given is a good one."""
        ...

    def march(self) -> None:
        """Make the steps of a gang, and finalise."""
        ...


class StagedEngine:
    """An `Engine` that cuts stages into jobs for a crew.

    Args:
        store: holds all that is finished.
        hire: gives the crew of one stage, for as long as the block runs.
    """

    def __init__(self, store: Store, hire: Callable[[Work], AbstractContextManager[Crew]]) -> None:
        self.store = store
        self._hire = hire

    def map(self, work: Work) -> StoredArtifact:
        """See `Engine.map`."""
        if found := self.store.find(work.place):
            return found
        places = [f"{work.place}/unit/{unit.name}" for unit in work.units]
        with self._hire(work) as crew:
            existing = self._pieces(f"{work.place}/unit", crew)
            pairs = zip(places, work.units, strict=True)
            crew.run([jobs.RunUnit(place=place, unit=unit) for place, unit in pairs if place not in existing])
        return self.store.adopt(work.place, places, work.facts, {"arithmetic": arithmetic(), **work.about})

    def reduce(self, work: Work) -> StoredArtifact:
        """See `Engine.reduce`."""
        if self.store.find(work.place) is None:
            with self._hire(work) as crew:
                roots, summing = self._sum(work.place, work.units, crew)
                crew.run([*summing, jobs.Finalise(place=work.place, needs=roots)])
        return self._concluded(work)

    def iterate(self, work: Work) -> StoredArtifact:
        """See `Engine.iterate`."""
        if self.store.find(work.place) is None:
            with self._hire(work) as crew:
                if work.units:
                    self._make_rounds(work, crew)
                else:
                    crew.march()
        return self._concluded(work)

    def _make_rounds(self, work: Work, crew: Crew) -> None:
        rounds = f"{work.place}/round"
        if self.store.places(rounds):
            crew.run([jobs.Settle(place=rounds, sums=f"{work.place}/sum")])
        number = max(positions(self.store, rounds), default=0)
        last = f"{rounds}/{number:08d}"
        crew.run([jobs.Begin(place=last)] if number == 0 else [])
        while self.store.read(last).facts["stop"] is None:
            number += 1
            sums, place = f"{work.place}/sum/{number:08d}", f"{rounds}/{number:08d}"
            roots, summing = self._sum(sums, work.units, crew, broadcast=last)
            crew.run([*summing, jobs.Advance(place=place, number=number, before=last, needs=roots)])
            self.store.drop(last)
            self.store.drop(sums)
            last = place
        crew.run([jobs.Conclude(place=work.place, last=last, number=number)])

    def _sum(
        self, place: str, units: Sequence[Unit], crew: Crew, broadcast: str | None = None
    ) -> tuple[tuple[str, ...], list[Job]]:
        """Places of the roots, and the jobs that lead there."""
        existing = self._pieces(f"{place}/node", crew)
        roots: list[str] = []
        summing: list[Job] = []
        for tree in trees(place, units):
            roots.append(tree.at(tree.root))
            for node in tree.remaining(existing):
                if children := tree.children(node):
                    needs = tuple(tree.at(child) for child in children)
                    name = f"merge {tree.at(node).removeprefix(f'{place}/node/')}"
                    summing.append(jobs.Merge(place=tree.at(node), name=name, needs=needs))
                else:
                    unit = tree.units[node.number]
                    summing.append(jobs.SumUnit(place=tree.at(node), below=place, unit=unit, broadcast=broadcast))
        return tuple(roots), summing

    def _pieces(self, place: str, crew: Crew) -> set[str]:
        """The finished pieces below `place` that this crew could have made."""
        if self.store.places(place):
            crew.run([jobs.Sift(place=place)])
        return set(self.store.places(place))

    def _concluded(self, work: Work) -> StoredArtifact:
        """The stage's artifact; what led there is dropped."""
        for below in ("unit", "node", "sum", "round", "step"):
            self.store.drop(f"{work.place}/{below}")
        return self.store.read(work.place)
