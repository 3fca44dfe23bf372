"""Ray actors that do jobs: handed out one at a time, done again elsewhere when a worker is lost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError as EndedByMonitor
from ray.exceptions import RayError, RayTaskError

from afterfit.engine.bench import Bench, Job, Settings
from afterfit.engine.events import Event, Kind, Outbox, Tell
from afterfit.engine.protocol import Work
from afterfit.errors import EngineError, OutOfMemoryError

ATTEMPTS = 4  # of one job, each on another worker, before it is given up
LISTEN_S = 0.5  # between two reports of one worker
PATIENCE_S = 60.0  # without any worker before the user is told what the engine waits for


class Seat:
    """The actor: one bench, for the stage at hand."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._outbox = Outbox()
        self._stage = ""
        self._bench: Bench | None = None

    def do(self, stage: str, work: Work, job: Job) -> list[Event]:
        """Do a job; `stage` tells apart stages whose benches must not be shared."""
        if self._bench is None or stage != self._stage:
            self._bench = None  # frees the last stage's network before the next one is loaded
            self._bench, self._stage = Bench(self._settings, work, self._outbox.put), stage
        self._bench.do(job)
        return self._outbox.take()

    @ray.method(concurrency_group="listen")
    def listen(self, seconds: float) -> list[Event]:
        """What happened meanwhile."""
        time.sleep(seconds)
        return self._outbox.take()


class RayCrew:
    """Actors that outlive a stage; a lost one is replaced, its job done again elsewhere."""

    def __init__(self, settings: Settings, workers: int, tell: Tell) -> None:
        self._settings = settings
        self._workers = workers
        self._tell = tell
        options = {"num_cpus": settings.resources.num_cpus, "num_gpus": settings.resources.num_gpus}
        remote: Any = ray.remote
        # A group of its own, so that reports do not wait for the job at hand.
        self._seat = remote(concurrency_groups={"listen": 1}, **options)(Seat)
        self._listening: dict[ray.ObjectRef, Any] = {}  # one pending report for each actor
        self._up: list[Any] = []  # actors that have reported
        self._running: dict[ray.ObjectRef, tuple[Any, Job]] = {}

    def run(self, stage: str, work: Work, jobs: Sequence[Job]) -> None:
        """Do all jobs. After a failure or an interruption all workers end, and the store can be resumed."""
        pending = list(jobs)
        losses: Counter[str] = Counter()
        heard = time.monotonic()
        handed = ray.put(work)
        try:
            while pending or self._running:
                while len(self._listening) < min(self._workers, len(pending) + len(self._running)):
                    self._listen(self._seat.remote(self._settings), 0.0)
                self._hand_out(stage, handed, pending)
                done, _ = ray.wait([*self._running, *self._listening], num_returns=1, timeout=5.0)
                for ref in done:
                    actor, job = self._running.pop(ref, (self._listening.pop(ref, None), None))
                    try:
                        for event in ray.get(ref):
                            self._tell(event)
                        if job is None:
                            self._up += [actor] if actor not in self._up else []
                            self._listen(actor, LISTEN_S)
                        else:
                            losses["start"] = 0  # only losses without any progress count
                    except RayTaskError as error:
                        raise original(error) from None
                    except RayError as error:
                        self._lost(actor)
                        name = job.name if job else "start"
                        losses[name] += 1
                        pending[:0] = [job] if job else []
                        if losses[name] >= ATTEMPTS * (1 if job else self._workers):
                            raise _given_up(work, name, losses[name], error) from error
                        self._tell(Event(kind=Kind.NOTE, place=work.place, name=name, note=_lost_words(name)))
                heard = time.monotonic() if self._up else heard
                if time.monotonic() - heard > PATIENCE_S:
                    heard = time.monotonic()
                    self._tell(Event(kind=Kind.NOTE, place=work.place, name="start", note=self._waiting()))
        except BaseException:
            self.dismiss()
            raise

    def dismiss(self) -> None:
        """End all workers."""
        for actor in [*self._listening.values(), *(actor for actor, _ in self._running.values())]:
            ray.kill(actor)
        self._listening, self._running, self._up = {}, {}, []

    def _listen(self, actor: Any, seconds: float) -> None:
        self._listening[actor.listen.remote(seconds)] = actor

    def _hand_out(self, stage: str, work: ray.ObjectRef, pending: list[Job]) -> None:
        """Give every idle worker the first job whose needs are met."""
        busy = [actor for actor, _ in self._running.values()]
        waiting = {job.place for job in pending} | {job.place for _, job in self._running.values()}
        for actor in [actor for actor in self._up if actor not in busy]:
            ready = next((job for job in pending if waiting.isdisjoint(job.needs)), None)
            if ready is None:
                return
            pending.remove(ready)
            self._running[actor.do.remote(stage, work, ready)] = (actor, ready)

    def _lost(self, actor: Any) -> None:
        """Forget it. A job that it still ran reports by itself."""
        self._up = [other for other in self._up if other != actor]
        self._listening = {ref: other for ref, other in self._listening.items() if other != actor}
        ray.kill(actor)

    def _waiting(self) -> str:
        needs = self._settings.resources
        return f"Waiting for {needs.num_cpus:g} CPUs and {needs.num_gpus:g} GPUs to be free in the cluster."


def original(error: RayTaskError) -> BaseException:
    """The error that the work raised, with the worker's traceback as a note."""
    cause = error.cause
    if isinstance(cause, RayError):  # it could not be sent
        return EngineError(f"A worker failed with an error that cannot be sent: {cause}")
    cause.add_note(str(error))
    return cause


def _given_up(work: Work, name: str, times: int, error: RayError) -> EngineError | OutOfMemoryError:
    """Ray's memory monitor says that it was memory; the kernel does not, so there the sentence leaves it open."""
    if isinstance(error, EndedByMonitor):
        return OutOfMemoryError(f"Ray ended the worker of {name!r} of {work.place} for lack of memory {times} times.")
    reason = str(error).strip().splitlines()[0]
    return EngineError(
        f"{name!r} of {work.place} lost its worker {times} times: {reason} Look for lack of memory in the "
        "workers' logs, give each worker more or lower `memory_gb`, then run the same command again."
    )


def _lost_words(name: str) -> str:
    return f"The worker of {name!r} was lost; another goes on from the last save."
