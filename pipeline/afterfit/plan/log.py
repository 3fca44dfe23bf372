"""Seconds and peak memory of each stage, kept under `events/` by the run that computed it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from afterfit.engine.events import Event, Kind
from afterfit.engine.protocol import Work
from afterfit.plan.stage import Stage
from afterfit.store.directory import Store


class Display(Protocol):
    """Shows a run to people while it happens."""

    def begin(self, stage: Stage, work: Work) -> None:
        """A stage is about to run."""
        ...

    def hear(self, event: Event) -> None:
        """Something happened to a piece of it."""
        ...

    def end(self) -> None:
        """It is finished."""
        ...


class Silent:
    """Shows nothing."""

    def begin(self, stage: Stage, work: Work) -> None:
        """Nothing."""

    def hear(self, event: Event) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


def record_name(place: str) -> str:
    """Where the figures of a stage are kept; its place is "<name>/<key>"."""
    return f"events/{place.replace('/', '-')}.json"


def figures_of(store: Store, place: str) -> Mapping[str, Any]:
    """Seconds, peak_bytes, state and notes of a stage; empty where no run left them."""
    return store.get_record(record_name(place)) or {}


@dataclass
class StageLog:
    """Listens to a run and writes the figures of each stage, adding to those of an interrupted attempt."""

    store: Store
    display: Display = field(default_factory=Silent)
    notes: list[str] = field(default_factory=list)
    _place: str | None = None
    _started: float = 0.0
    _peak_bytes: int = 0
    _stage_notes: list[str] = field(default_factory=list)

    def watch(self, stage: Stage, work: Work | None) -> None:
        """A stage begins, or is found finished; the one before it has ended."""
        self.close("done")
        if work is not None:
            self._place, self._started, self._peak_bytes = stage.place, time.monotonic(), 0
            self._stage_notes = []
            self.display.begin(stage, work)

    def tell(self, event: Event) -> None:
        """Of the engine."""
        self._peak_bytes = max(self._peak_bytes, event.peak_bytes)
        if event.kind == Kind.NOTE and event.note not in self._stage_notes:
            self._stage_notes.append(event.note)
            self.notes.append(event.note)
        self.display.hear(event)

    def close(self, state: str) -> None:
        """The stage at hand has ended, "done" or "partial"."""
        if self._place is None:
            return
        before = figures_of(self.store, self._place)
        carried = before if before.get("state") == "partial" else {}
        self.store.put_record(
            record_name(self._place),
            {
                "state": state,
                "seconds": carried.get("seconds", 0.0) + time.monotonic() - self._started,
                "peak_bytes": max(carried.get("peak_bytes", 0), self._peak_bytes),
                "notes": list(dict.fromkeys([*carried.get("notes", []), *self._stage_notes])),
            },
        )
        self._place = None
        if state == "done":
            self.display.end()
