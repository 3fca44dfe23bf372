"""A run from its configuration to its scores. Prints nothing: commands and jobs show what this gives."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from afterfit.engine import EngineName, Event, Kind, open_engine
from afterfit.engine.shortage import check_gpu, memory_here
from afterfit.plan.config import RunConfig
from afterfit.plan.cost import Cost, check_fits, costs
from afterfit.plan.execute import Ran, Status, execute, status_at, status_of
from afterfit.plan.fitted import FitRecord
from afterfit.plan.log import Display, Silent, StageLog, figures_of
from afterfit.plan.posterior import posterior_plan
from afterfit.plan.record import RunRecord, read_record
from afterfit.plan.request import FitRequest, Method
from afterfit.plan.resolve import request_of
from afterfit.plan.shortage import Asker, Shortage, opening, shortages, within_memory
from afterfit.plan.stage import Stage
from afterfit.resources import Memory, Resources
from afterfit.store.artifact import StoredArtifact
from afterfit.store.directory import Store, open_store

WORSE_ACCURACY = 0.005
"""Loss of accuracy that is worth a warning: Monte Carlo draws alone flip a few examples in a thousand."""
DIGITS = 4
"""Of an NLL, in nats, as tables print it; what looks equal is not called worse."""


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where a run is computed; never part of a key."""

    engine: EngineName = "inprocess"
    address: str | None = None  # of a Ray cluster
    workers: int | None = None
    gpus: float = 0.0  # of each Ray worker
    threads: int | None = None  # of torch in each worker


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that could begin: everything opened, measured and counted."""

    config: RunConfig
    store: Store
    request: FitRequest
    plan: Sequence[Stage]
    statuses: Mapping[str, Status]
    costs: Mapping[str, Cost | None]
    shortages: Sequence[Shortage] = ()  # of memory, that earlier runs met with no more of it than there is

    @property
    def remaining(self) -> dict[str, Cost | None]:
        """Costs of the stages that are not done."""
        return {name: cost for name, cost in self.costs.items() if self.statuses[name] != Status.DONE}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to."""

    store: Store
    ran: Mapping[str, Ran]
    scores: pa.Table | None  # predictor, dataset, metric, value
    stages: pa.Table  # stage, seconds, peak_mb, state
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def did_nothing(self) -> bool:
        """Whether all had been finished before."""
        return all(ran.was_done for ran in self.ran.values())


def prepare(config: RunConfig, store_uri: str | None = None, where: Where | None = None) -> Prepared:
    """Open the store, the network and the data, make the plan and count what it costs.

    Args:
        config: of the run.
        store_uri: instead of the configuration's own.
        where: it would be computed.

    Raises:
        ConfigError, DataError, NetworkError: for what cannot be fitted; one sentence with the remedy.
        StoreError: if the store cannot be opened.
    """
    store = open_store(store_uri or config.where)
    with opening():
        request = request_of(config, store)
    return _counted(config, store, request, where or Where())


def _counted(config: RunConfig, store: Store, request: FitRequest, where: Where) -> Prepared:
    plan = posterior_plan(request)
    return Prepared(
        config=config,
        store=store,
        request=request,
        plan=plan,
        statuses={stage.name: status_of(stage, store) for stage in plan},
        costs=costs(plan, request),
        shortages=list(shortages(plan, request, store, _memory(where))),
    )


def run(
    prepared: Prepared,
    *,
    where: Where | None = None,
    display: Display | None = None,
    fit_memory: bool = False,
    asker: Asker = "command",
) -> Outcome:
    """Finish every stage of a prepared run, and remember the run in its store.

    Args:
        prepared: the run.
        where: where to compute.
        display: shows progress.
        fit_memory: whether to go on with the budget that would fit when memory runs out; the store remembers it.
        asker: who is told what would fit.

    Raises:
        ResourceError: before anything runs, if a stage cannot fit.
        OutOfMemoryError: with the value of `memory_gb` that would fit.
        AfterfitError: of a stage; what is finished is kept, and the same call goes on.
    """
    where = where or Where()

    def tell(note: str) -> None:
        (display or Silent()).hear(Event(kind=Kind.NOTE, place="", name="memory", note=note))

    def attempt(request: FitRequest) -> Outcome:
        config = prepared.config.model_copy(update={"memory_gb": request.memory_gb})
        lowered = prepared if request is prepared.request else _counted(config, prepared.store, request, where)
        return _attempt(lowered, where, display)

    has = _memory(where)
    return within_memory(prepared.request, prepared.store, attempt, asker=asker, lowers=fit_memory, has=has, tell=tell)


def _attempt(prepared: Prepared, where: Where, display: Display | None) -> Outcome:
    """With the budget as it is."""
    store, has = prepared.store, _memory(where)
    if prepared.remaining:
        _check_gpu(where)
    check_fits(prepared.remaining, prepared.config.memory_gb, has.machine_gb, _free_bytes(store), has.gpu_gb)
    RunRecord.of(prepared.config, prepared.request, prepared.plan).write(store)
    ran, notes = finish(prepared.plan, prepared.request, store, where=where, display=display)
    FitRecord.of(prepared.request, prepared.plan).write(store)
    scores = ran["scores"].artifact.table("scores") if "scores" in ran else None
    return Outcome(
        store=store,
        ran=ran,
        scores=scores,
        stages=stages_table(store, {name: one.stage.place for name, one in ran.items()}, ran),
        notes=[
            *notes,
            *(note for one in ran.values() for note in notes_of(one.artifact)),
            *warnings_of(scores, prepared.request.method),
        ],
    )


def finish(
    plan: Sequence[Stage],
    request: FitRequest,
    store: Store,
    *,
    where: Where | None = None,
    display: Display | None = None,
) -> tuple[Mapping[str, Ran], list[str]]:
    """Execute a plan, keeping seconds and peak memory of each stage as records of the store.

    Returns:
        What became of each stage, and what the engine had to say.

    Raises:
        ConfigError: if something is to be done on a GPU of this machine, and there is none.
    """
    done = {stage.name: Ran(stage, found, True, 0.0) for stage in plan if (found := store.find(stage.place))}
    if len(done) == len(plan):  # no engine is opened, so that a second run needs no cluster
        return done, []
    where = where or Where()
    _check_gpu(where)
    if where.gpus:
        request = replace(request, device="cuda")
    log = StageLog(store, display or Silent())
    ended = "partial"
    try:
        with open_engine(
            where.engine,
            store,
            address=where.address,
            workers=where.workers,
            resources=Resources(num_gpus=where.gpus),
            threads=where.threads,
            events=log.tell,
        ) as engine:
            ran = execute(plan, request, engine, store, log.watch)
        ended = "done"
    finally:
        log.close(ended)
    return ran, log.notes


def status(store: Store) -> tuple[RunRecord, pa.Table]:
    """The run that a store remembers, and the state of its stages, from markers and records alone.

    Returns:
        The record, and a table: stage, place, state, seconds, peak_mb, num_bytes; null where not known.
    """
    record = read_record(store)
    rows = []
    for name, place in record.stages.items():
        found = store.find(place)
        state = status_at(place, found, store)
        stored = found.num_bytes if found else None
        rows.append(
            {
                "stage": name,
                "place": place,
                "state": state.value,
                "num_bytes": stored,
                **_figures(store, place),
            }
        )
    return record, pa.Table.from_pylist(rows)


def stages_table(store: Store, places: Mapping[str, str], ran: Mapping[str, Ran]) -> pa.Table:
    """Seconds and peak memory of the run that computed each stage: stage, seconds, peak_mb, state.

    The state is "computed" where this run did it and "skipped" where it was there.
    """
    rows = [
        {
            "stage": name,
            **_figures(store, place),
            "state": "skipped" if ran[name].was_done else "computed",
        }
        for name, place in places.items()
    ]
    kinds = {"stage": pa.string(), "seconds": pa.float64(), "peak_mb": pa.float64(), "state": pa.string()}
    return pa.Table.from_pylist(rows, schema=pa.schema(list(kinds.items())))


def _figures(store: Store, place: str) -> dict[str, Any]:
    known = figures_of(store, place)
    peak = known.get("peak_bytes")
    return {"seconds": known.get("seconds"), "peak_mb": peak / 1e6 if peak else None}


def notes_of(artifact: StoredArtifact) -> Sequence[str]:
    """What a stage wants people to know."""
    return artifact.facts.get("notes", ())


def warnings_of(scores: pa.Table | None, method: Method) -> Iterator[str]:
    """A sentence for each data set on which the posterior is worse than the network alone."""
    if scores is None:
        return
    of = {(row["dataset"], row["metric"], row["predictor"]): row["value"] for row in scores.to_pylist()}
    for dataset, metric, predictor in of:
        if predictor != "map" or (dataset, metric, "posterior") not in of:
            continue
        before, after = of[dataset, metric, "map"], of[dataset, metric, "posterior"]
        if metric == "accuracy" and after < before - WORSE_ACCURACY:
            yield (
                f"On {dataset} the posterior lowers the accuracy from {before:.4f} to {after:.4f}: {method.narrower}."
            )
        if metric == "nll" and round(after, DIGITS) > round(before, DIGITS):
            yield (
                f"On {dataset} the posterior's NLL is {after:.4f} nats, and the network's {before:.4f}: "
                f"check that the validation data are like these, or {method.narrower}."
            )


def _check_gpu(where: Where) -> None:
    """Of this process; Ray gives its workers theirs."""
    if where.gpus and where.engine == "inprocess":
        check_gpu()


def _memory(where: Where) -> Memory:
    """Of this machine and its GPU, where these do the work; a cluster's is not known here."""
    return memory_here(has_gpu=where.gpus > 0) if where.engine == "inprocess" else Memory()


def _free_bytes(store: Store) -> float | None:
    """Of the disk that a local store is on."""
    return None if "://" in store.uri else float(shutil.disk_usage(Path(store.uri)).free)
