"""What an engine tells while it works: progress, notes, time and memory. Never part of a result."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType

import psutil


class Kind(StrEnum):
    """What happened."""

    STARTED = "started"
    ADVANCED = "advanced"
    FINISHED = "finished"
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened to one piece of work."""

    kind: Kind
    place: str  # of the stage
    name: str  # of the unit, or what is done to the whole, e.g. "merge node/all/1-00000"
    position: int = 0  # what is done of `total`; 0 of 0 where the work does not count
    total: int = 0
    seconds: float = 0.0  # since the piece started
    bytes: int = 0  # stored by it, once finished
    peak_bytes: int = 0  # largest unique memory (USS) of its process so far
    note: str = ""  # a sentence, for notes
    pid: int = field(default_factory=os.getpid)


Tell = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Tell nobody."""


class Outbox:
    """Events that wait to be fetched. Of consecutive advances of one piece only the latest is kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        """Add one."""
        with self._lock:
            last = self._events[-1] if self._events else None
            if last and last.kind == event.kind == Kind.ADVANCED and last.name == event.name:
                self._events.pop()
            self._events.append(event)

    def take(self) -> list[Event]:
        """All that wait; they wait no longer."""
        with self._lock:
            events, self._events = self._events, []
            return events


REST = 30.0
"""Pauses between samples of memory, in units of what the last one took: reading a large process takes long."""


class PeakMemory:
    """Samples the unique memory (USS) of this process while the block runs: ten times a second, less if that costs.

    Many short pieces of work would spend most of their time on samples: one that follows another begins with its last
    sample, and takes one itself only when the pause is over.
    """

    def __init__(self, before: PeakMemory | None = None) -> None:
        self.bytes = 0
        self._process = psutil.Process()
        self._follows = before is not None
        if before is not None and before._is_young:
            self.bytes = self._last_bytes = before._last_bytes
            self._sampled, self._cost_s = before._sampled, before._cost_s
        else:
            self._sample()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._ended.wait(self._pause_s):
            self._sample()

    @property
    def _pause_s(self) -> float:
        return max(0.1, REST * self._cost_s)

    @property
    def _is_young(self) -> bool:
        return time.perf_counter() - self._sampled < self._pause_s

    def _sample(self) -> None:
        started = time.perf_counter()
        self._last_bytes = self._process.memory_full_info().uss
        self.bytes = max(self.bytes, self._last_bytes)
        self._sampled = time.perf_counter()
        self._cost_s = self._sampled - started

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if not (self._follows and self._is_young):
            self._sample()
