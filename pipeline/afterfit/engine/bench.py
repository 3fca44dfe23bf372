"""The worker's side of a stage: the bound object, its way to the store, and what it tells about each job."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch

from afterfit.algebra import Result, State, Unit
from afterfit.engine.cursor import StoredCursor, Trail, arithmetic
from afterfit.engine.events import Event, Kind, PeakMemory, Tell
from afterfit.engine.protocol import Work
from afterfit.engine.shortage import told_shortage
from afterfit.errors import AfterfitError
from afterfit.resources import Resources

if TYPE_CHECKING:
    from afterfit.store.artifact import StoredArtifact
    from afterfit.store.directory import Store


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all workers of an engine share. Picklable."""

    store: Store
    threads: int = 1  # of torch, in each worker
    checkpoint_s: float = 60.0  # seconds between saves of unfinished work; 0 saves at every position
    resources: Resources = field(default_factory=Resources)  # of one worker


class Job(Protocol):
    """A piece of a stage that one worker does without asking anybody. Picklable and small."""

    @property
    def place(self) -> str:
        """Of the artifact that it leaves; where that exists, there is nothing to do."""
        ...

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Places that have to be there first."""
        ...

    def run(self, bench: Bench) -> None:
        """Do it and write the artifact."""
        ...


class Bench:
    """Where the jobs of one stage are done, in one process.

    Args:
        settings: of the engine.
        work: the stage.
        tell: gets the events.
    """

    def __init__(self, settings: Settings, work: Work, tell: Tell) -> None:
        self.settings = settings
        self.store = settings.store
        self.work = work
        self._tell = tell
        self._name = ""
        self._started = 0.0
        self._peak = PeakMemory()
        self._broadcast: tuple[str, State] = ("", {})

    @cached_property
    def bound(self) -> Any:
        """What the work's `make` builds, built at the first use."""
        return self.work.make()

    def do(self, job: Job) -> None:
        """Do a job unless it is done.

        Another live copy of the same job may finish first and drop what this one reads: then its artifact is
        the result, and the trouble is none.
        """
        torch.set_num_threads(self.settings.threads)
        if self.store.find(job.place) is not None:
            return
        with self.doing(job.name):
            try:
                with told_shortage():
                    job.run(self)
            except AfterfitError:
                if self.store.find(job.place) is None:
                    raise
            done = self.store.find(job.place)
            self.tell(Kind.FINISHED, stored=done.num_bytes if done else 0)

    def doing(self, name: str) -> PeakMemory:
        """Start telling about a piece of work; memory is watched while the block runs."""
        self._name, self._started, self._peak = name, time.monotonic(), PeakMemory(self._peak)
        self.tell(Kind.STARTED)
        return self._peak

    def tell(self, kind: Kind, *, position: int = 0, total: int = 0, stored: int = 0, note: str = "") -> None:
        """Tell about the piece of work at hand."""
        self._tell(
            Event(
                kind=kind,
                place=self.work.place,
                name=self._name,
                position=position,
                total=total,
                seconds=time.monotonic() - self._started,
                bytes=stored,
                peak_bytes=self._peak.bytes,
                note=note,
            )
        )

    def wake(self) -> None:
        """Build the bound object, which may wake the device: the arithmetic is known only then."""
        _ = self.bound

    def trail(self, place: str) -> Trail:
        """The saves below `place`."""
        self.wake()
        return Trail(self.store, place, self.settings.checkpoint_s, lambda text: self.tell(Kind.NOTE, note=text))

    def broadcast(self, place: str) -> State:
        """The state at `place`, one object for all units; tiles are read as they are asked for, and not kept."""
        if self._broadcast[0] != place:
            self._broadcast = (place, self.store.read(place).state())
        return self._broadcast[1]

    def with_cursor(self, place: str, unit: Unit, run: Callable[[StoredCursor], Result], into: str) -> None:
        """Run a resumable piece, keep its result at `into`, then forget its saves."""
        trail = self.trail(f"{place}/unit/{unit.name}/at")

        def advanced(position: int, total: int) -> None:
            self.tell(Kind.ADVANCED, position=position, total=total)

        self.keep(into, run(StoredCursor(trail, advanced)))
        trail.clear()

    def keep(self, place: str, result: Result) -> StoredArtifact:
        """Commit a part of the stage."""
        return self.store.write(place, result, about={"arithmetic": arithmetic()})

    def conclude(self, result: Result, facts: Mapping[str, Any] | None = None) -> None:
        """Commit the result of the whole stage."""
        whole = replace(result, facts={**self.work.facts, **(facts or {}), **result.facts})
        self.store.write(self.work.place, whole, about={"arithmetic": arithmetic(), **self.work.about})
