"""The engine on Ray: actors do the jobs, the driver hands them out and keeps no data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from typing import Any
from uuid import uuid4

# Ray reads these as it is imported. What is started here stays on loopback; a cluster's own settings win.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

from afterfit.engine.bench import Job, Settings
from afterfit.engine.events import Tell
from afterfit.engine.protocol import Work
from afterfit.engine.ray_crew import RayCrew
from afterfit.engine.stage import StagedEngine
from afterfit.errors import EngineError


class StageOnRay:
    """The crew, for one stage."""

    def __init__(self, crew: RayCrew, settings: Settings, workers: int, tell: Tell, work: Work) -> None:
        self._crew = crew
        self._settings, self._workers, self._tell = settings, workers, tell
        self._work = replace(work, units=())  # each job carries its own
        self._stage = uuid4().hex

    def run(self, jobs: Sequence[Job]) -> None:
        """On the actors."""
        self._crew.run(self._stage, self._work, jobs)

    def march(self) -> None:
        """In a gang of Ray Train, which gets the resources of the actors."""
        from afterfit.engine.ray_gang import march_on_ray  # Ray Train takes seconds to import

        self._crew.dismiss()
        march_on_ray(self._settings, self._workers, self._tell, self._work)


@contextmanager
def ray_engine(settings: Settings, tell: Tell, *, address: str | None, workers: int | None) -> Iterator[StagedEngine]:
    """The engine on Ray; what is started here ends with the block."""
    started = not ray.is_initialized()
    if started:
        _start(address, settings, workers or 1)
    workers = workers or _capacity(settings)
    crew = RayCrew(settings, workers, tell)

    @contextmanager
    def hire(work: Work) -> Iterator[StageOnRay]:
        yield StageOnRay(crew, settings, workers, tell, work)

    try:
        yield StagedEngine(settings.store, hire)
    finally:
        crew.dismiss()
        if started:
            ray.shutdown()


def _start(address: str | None, settings: Settings, workers: int) -> None:
    """The one `ray.init`."""
    options: dict[str, Any] = {"address": address, "log_to_driver": False}
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # nobody but this machine can reach it
        cpus = max(os.cpu_count() or 1, ceil(workers * settings.resources.num_cpus))
        options = {"address": "local", "include_dashboard": False, "log_to_driver": False, "num_cpus": cpus}
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises bare ones, for instance when a node is too slow to start
        where = "on this machine" if address is None else f"at {address}"
        raise EngineError(f"Ray cannot be {'started' if address is None else 'reached'} {where}: {error}.") from error


def _capacity(settings: Settings) -> int:
    """How many workers the cluster can hold now."""
    have, needs = ray.cluster_resources(), settings.resources
    asked = {"CPU": needs.num_cpus, "GPU": needs.num_gpus}
    fits = (int(have.get(kind, 0) / amount) for kind, amount in asked.items() if amount)
    return max(1, min(fits, default=1))
