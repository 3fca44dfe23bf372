"""Gangs through Ray Train: the worker group is its, where to go on from is the store's."""

from __future__ import annotations

import os
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import ray
import torch
from accelerate import Accelerator
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from afterfit.engine.bench import Bench, Settings
from afterfit.engine.events import Event, Kind, Outbox, Tell
from afterfit.engine.gang import march
from afterfit.engine.protocol import Work
from afterfit.engine.shortage import told_shortage
from afterfit.engine.torch_gang import Group, PeerLostError
from afterfit.errors import EngineError

ATTEMPTS = 4
LISTEN_S = 0.5


class MemberFailedError(Exception):
    """The work itself failed on a member."""

    def __init__(self, cause: BaseException, trace: str) -> None:
        super().__init__(cause, trace)
        self.cause = cause
        self.trace = trace


class Sender:
    """Sends events; of mere progress no more than one each `LISTEN_S`."""

    def __init__(self, post: Any) -> None:
        self._post = post
        self._sent = 0.0

    def __call__(self, event: Event) -> None:
        """Send it, or leave it out."""
        if event.kind != Kind.ADVANCED or time.monotonic() - self._sent > LISTEN_S:
            self._sent = time.monotonic()
            self._post.put.remote(event)


class Trainer(TorchTrainer):
    """Leaves Ctrl-C to Python: Ray Train's handler swallows it, and stays when the run is over."""

    controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller

    def abort(self) -> None:
        """End the run and its workers."""
        if self.controller is not None:
            with suppress(RayError):
                ray.get(self.controller.abort.remote(), timeout=30)


def march_on_ray(settings: Settings, workers: int, tell: Tell, work: Work) -> None:
    """Make the steps in a gang of `workers`; after the loss of one, the gang goes on from the newest save.

    Raises:
        EngineError: after `ATTEMPTS` losses.
    """
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # paths in a recipe are relative to where we are
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    reason = ""
    for _ in range(ATTEMPTS):
        with tempfile.TemporaryDirectory() as folder, _posted(tell) as post:
            trainer = _trainer(partial(_member, settings, work, post), settings, workers, folder)
            try:
                trainer.fit()
            except TrainingFailedError as error:
                _raise_failure(error)
                reason = str(error).strip().splitlines()[-1]
                tell(
                    Event(
                        kind=Kind.NOTE,
                        place=work.place,
                        name="steps",
                        note=f"The gang lost a worker: {reason}",
                    )
                )
            except BaseException:
                trainer.abort()
                raise
        if settings.store.find(work.place) is not None:
            return
    raise EngineError(
        f"The gang of {work.place} lost a worker {ATTEMPTS} times: {reason} "
        "Give each worker more memory, then run the same command again."
    )


def _trainer(member: Any, settings: Settings, workers: int, folder: str) -> Trainer:
    gpus = settings.resources.num_gpus
    share = {"CPU": settings.resources.num_cpus, **({"GPU": gpus} if gpus else {})}
    return Trainer(
        member,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus > 0, resources_per_worker=share),
        run_config=RunConfig(
            name="gang",
            storage_path=folder,  # unused: the store's markers say where to go on
            failure_config=FailureConfig(max_failures=0),
        ),
    )


def _member(settings: Settings, work: Work, post: Any) -> None:
    """What each worker of the group runs. Failures of the work are told apart from lost peers."""
    torch.set_num_threads(settings.threads)
    try:
        accelerator = Accelerator(cpu=settings.resources.num_gpus == 0)
        with told_shortage():
            march(Bench(settings, work, Sender(post)), Group(accelerator))
    except PeerLostError:
        raise
    except Exception as error:
        raise MemberFailedError(error, traceback.format_exc()) from None


def _raise_failure(error: TrainingFailedError) -> None:
    """Raise what the work raised on the first member that failed, if one did."""
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    for _, failure in sorted(failures.items()):
        if isinstance(failure, MemberFailedError):
            failure.cause.add_note(failure.trace)
            raise failure.cause from None


@contextmanager
def _posted(tell: Tell) -> Iterator[Any]:
    """An actor for the leader's events, read by a thread until the block ends."""
    remote: Any = ray.remote(num_cpus=0)(Outbox)  # whose process need not import Ray Train
    post: Any = remote.remote()
    ended = threading.Event()

    def listen() -> None:
        while True:
            last = ended.wait(LISTEN_S)
            with suppress(RayError):
                for event in ray.get(post.take.remote()):
                    tell(event)
            if last:
                return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield post
    finally:
        ended.set()
        thread.join()
        ray.kill(post)
