"""The embedded engine: plain loops in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from afterfit.engine.bench import Bench, Job, Settings
from afterfit.engine.events import Tell, ignore
from afterfit.engine.gang import Alone, march
from afterfit.engine.protocol import Work
from afterfit.engine.shortage import told_shortage
from afterfit.engine.stage import StagedEngine


class Here:
    """A crew of one, in this process."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def run(self, jobs: Sequence[Job]) -> None:
        """One after another, in the order given."""
        for job in jobs:
            self._bench.do(job)

    def march(self) -> None:
        """All slices here."""
        with told_shortage():
            march(self._bench, Alone())


@contextmanager
def here(settings: Settings, tell: Tell, work: Work) -> Iterator[Here]:
    """The crew of one stage; the caller's number of threads is put back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        yield Here(Bench(settings, work, tell))
    finally:
        torch.set_num_threads(threads)


def inprocess_engine(settings: Settings, tell: Tell = ignore) -> StagedEngine:
    """An engine that computes in this process."""
    return StagedEngine(settings.store, partial(here, settings, tell))
