"""Run a plan: stage after stage, what is finished is not repeated, what is partial goes on."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from afterfit.engine.protocol import Engine, Work
from afterfit.errors import OutOfMemoryError
from afterfit.plan.bench import Bench, Bind
from afterfit.plan.request import FitRequest
from afterfit.plan.stage import Stage
from afterfit.store.artifact import StoredArtifact
from afterfit.store.directory import Store


class Status(StrEnum):
    """Of a stage in a store."""

    DONE = "done"
    PARTIAL = "partial"
    MISSING = "missing"


def status_of(stage: Stage, store: Store) -> Status:
    """From markers only: its own, or any of its pieces'."""
    return status_at(stage.place, store.find(stage.place), store)


def status_at(place: str, found: StoredArtifact | None, store: Store) -> Status:
    """The same of a place that was looked up already."""
    if found is not None:
        return Status.DONE
    return Status.PARTIAL if store.places(place) else Status.MISSING


@dataclass(frozen=True)
class Ran:
    """What became of one stage."""

    stage: Stage
    artifact: StoredArtifact
    was_done: bool
    seconds: float


Watch = Callable[[Stage, Work | None], None]
"""Told before each stage runs: the stage and its work, None where it is finished already."""


def execute(
    plan: Sequence[Stage], request: FitRequest, engine: Engine, store: Store, watch: Watch = lambda _s, _w: None
) -> Mapping[str, Ran]:
    """Finish every stage.

    Returns:
        Stage name -> what became of it, in the order of the plan.

    Raises:
        OutOfMemoryError: naming the stage and the budget that it had.
    """
    ran: dict[str, Ran] = {}
    for stage in plan:
        found = store.find(stage.place)
        if found is not None:
            watch(stage, None)
            ran[stage.name] = Ran(stage, found, was_done=True, seconds=0.0)
            continue
        started = time.monotonic()
        spec = request.bench(store.uri, {role: upstream.place for role, upstream in stage.inputs.items()}, stage.roles)
        about = {"stage": stage.name, "key": stage.key, "layout": request.layout.fingerprint}
        units = stage.recipe.units(Bench(spec))
        work = Work(make=Bind(stage.recipe, spec), place=stage.place, units=units, about=about)
        watch(stage, work)
        verbs = {"map": engine.map, "reduce": engine.reduce, "iterate": engine.iterate}
        try:
            artifact = verbs[stage.recipe.verb](work)
        except OutOfMemoryError as error:
            said = f"The stage {stage.name} ran out of memory with `memory_gb: {request.memory_gb:g}`."
            raise OutOfMemoryError(said, stage=stage.name, has_gb=error.has_gb, on_gpu=error.on_gpu) from error
        ran[stage.name] = Ran(stage, artifact, was_done=False, seconds=time.monotonic() - started)
    return ran
