"""Progress of a run for people: bars on a terminal, a plain line every few seconds elsewhere."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from afterfit.engine.events import Event, Kind
from afterfit.engine.protocol import Work
from afterfit.plan.stage import Stage

LINE_SECONDS = 10.0
LEAST_SECONDS = 0.5
"""Before a rate is believed."""


@dataclass
class Tracker:
    """How far one stage is, from what its engine tells."""

    work: Work
    clock: Callable[[], float] = time.monotonic
    _started: float = field(init=False)
    _first: float | None = None  # of what is done, when the first news came: done before, not by this run
    _parts: dict[str, float] = field(default_factory=dict)  # unit -> share done, 0 to 1
    _steps: tuple[int, int] = (0, 0)
    _doing: str = ""

    def __post_init__(self) -> None:
        self._started = self.clock()
        self._costs = {unit.name: unit.cost for unit in self.work.units}

    def hear(self, event: Event) -> None:
        """Take in an event of this stage."""
        share = {Kind.STARTED: 0.0, Kind.FINISHED: 1.0}.get(event.kind, event.position / max(event.total, 1))
        if event.kind == Kind.NOTE:
            return
        if event.name in self._costs:
            self._parts[event.name] = share
            self._doing = ""
        elif event.total:
            self._steps = (event.position, event.total)
            self._first = event.position if self._first is None else self._first
        else:
            self._doing = event.name.partition(" ")[0] if event.kind == Kind.STARTED else ""

    @property
    def done(self) -> float:
        """In units of cost, or steps."""
        if self._steps[1]:
            return float(self._steps[0])
        return sum(self._costs[name] * share for name, share in self._parts.items())

    @property
    def total(self) -> float:
        """The same of the whole stage."""
        return float(self._steps[1]) if self._steps[1] else max(sum(self._costs.values()), 1e-9)

    @property
    def fraction(self) -> float:
        """0 to 1."""
        return min(self.done / self.total, 1.0)

    @property
    def count(self) -> str:
        """Shards or other units, or steps, done of all."""
        if self._steps[1]:
            return f"{self._steps[0]}/{self._steps[1]} steps"
        shards = any(name.startswith("shard") or "-shard-" in name for name in self._costs)
        finished = sum(share >= 1 for share in self._parts.values())
        text = f"{finished}/{len(self._costs)} {'shards' if shards else 'units'}"
        return f"{text}, {self._doing}" if self._doing else text

    @property
    def rate(self) -> str:
        """Examples, units or steps in a second; empty until it can be told."""
        speed = self._speed
        if speed is None:
            return ""
        what = "steps" if self._steps[1] else "examples" if max(self._costs.values(), default=1) > 1 else "units"
        return f"{speed:.3g} {what}/s"

    @property
    def eta(self) -> str:
        """Time left, as a person says it; empty until it can be told."""
        speed = self._speed
        return "" if speed is None else f"{duration((self.total - self.done) / speed)} left"

    @property
    def _speed(self) -> float | None:
        elapsed = self.clock() - self._started
        made = self.done - (self._first or 0.0)
        return made / elapsed if elapsed > LEAST_SECONDS and made > 0 else None


def duration(seconds: float) -> str:
    """42 s, 3.5 min, 2.1 h or 4.0 days."""
    for limit, size, unit in ((99.5, 1.0, "s"), (5940.0, 60.0, "min"), (172800.0, 3600.0, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}" if unit == "s" else f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


class Bars:
    """One line a stage, drawn again as it moves."""

    def __init__(self, console: Console):
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[eta]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._console = console
        self._task: TaskID | None = None
        self._tracker: Tracker | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, stage: Stage, work: Work) -> None:
        """A new line."""
        self._tracker = Tracker(work)
        self._task = self._progress.add_task(stage.name, total=1.0, count="", rate="", eta="")

    def hear(self, event: Event) -> None:
        """Move it."""
        if event.kind == Kind.NOTE:
            self._console.print(f"note: {event.note}", style="yellow")
        if self._tracker is None or self._task is None or event.place != self._tracker.work.place:
            return
        self._tracker.hear(event)
        tracker = self._tracker
        self._progress.update(
            self._task, completed=tracker.fraction, count=tracker.count, rate=tracker.rate, eta=tracker.eta
        )

    def end(self) -> None:
        """Full."""
        if self._task is not None:
            self._progress.update(self._task, completed=1.0, eta="")
            self._progress.stop_task(self._task)
        self._task = self._tracker = None


class Lines:
    """A line when a stage begins, every ten seconds, and when it ends."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        self._console = console
        self._clock = clock
        self._name = ""
        self._tracker: Tracker | None = None
        self._begun = self._told = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def begin(self, stage: Stage, work: Work) -> None:
        """Name it."""
        self._name, self._tracker = stage.name, Tracker(work, self._clock)
        self._begun = self._told = self._clock()
        self._say(f"{stage.name}: begins")

    def hear(self, event: Event) -> None:
        """A line if one is due."""
        if event.kind == Kind.NOTE:
            self._say(f"note: {event.note}")
        if self._tracker is None or event.place != self._tracker.work.place:
            return
        self._tracker.hear(event)
        if self._clock() - self._told >= LINE_SECONDS:
            self._told = self._clock()
            tracker = self._tracker
            facts = [f"{100 * tracker.fraction:.0f} %", tracker.count, tracker.rate, tracker.eta]
            self._say(f"{self._name}: {', '.join(fact for fact in facts if fact)}")

    def end(self) -> None:
        """How long it took."""
        if self._tracker is not None:
            self._say(f"{self._name}: done in {duration(self._clock() - self._begun)}")
        self._tracker = None

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
