"""Gangs through Ray Train: accelerate names the device, torch.distributed carries the parts."""

from __future__ import annotations

import os
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial, reduce
from math import prod
from typing import Any, NamedTuple

import ray
import torch
import torch.distributed as dist
from accelerate import Accelerator
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from afterfit.algebra import Gang, State, add
from afterfit.engine.bench import Bench, Settings
from afterfit.engine.events import Event, Kind, Outbox, Tell
from afterfit.engine.gang import march
from afterfit.engine.protocol import Work
from afterfit.errors import EngineError

ATTEMPTS = 4
LISTEN_S = 0.5


class PeerLostError(Exception):
    """Another member of the gang went away in the middle of a collective."""


class MemberFailedError(Exception):
    """The work itself failed on a member."""

    def __init__(self, cause: BaseException, trace: str) -> None:
        super().__init__(cause, trace)
        self.cause = cause
        self.trace = trace


class Form(NamedTuple):
    """What a state looks like, so that others can make room for it."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    device: str  # kind

    @classmethod
    def of(cls, state: State) -> Form:
        """Of a state whose tensors are on one device."""
        tensors = list(state.values())
        device = tensors[0].device.type if tensors else "cpu"
        return cls(tuple(state), tuple(t.shape for t in tensors), tuple(t.dtype for t in tensors), device)

    @property
    def sizes(self) -> list[int]:
        """Bytes of each tensor."""
        return [prod(shape) * dtype.itemsize for shape, dtype in zip(self.shapes, self.dtypes, strict=True)]

    def unpack(self, flat: torch.Tensor) -> State:
        """The state from its bytes, each tensor in memory of its own."""
        pieces = flat.to(self.device).split(self.sizes)
        kinds = zip(self.names, pieces, self.dtypes, self.shapes, strict=True)
        return {name: piece.clone().view(dtype).reshape(shape) for name, piece, dtype, shape in kinds}


class TorchGang:
    """Member r of W runs slices r n / W to (r + 1) n / W - 1. Bytes are sent, so no bit depends on W."""

    def __init__(self, num_slices: int, accelerator: Accelerator) -> None:
        rank, self._world = accelerator.process_index, accelerator.num_processes
        self.num_slices = num_slices
        self.mine: Sequence[int] = range(rank * num_slices // self._world, (rank + 1) * num_slices // self._world)
        self._rank = rank
        self._device = accelerator.device

    def sum(self, parts: Sequence[State]) -> State:
        """Added in slice order, two states in memory at a time."""
        return reduce(add, self._in_order(parts))

    def gather(self, parts: Sequence[State]) -> list[State]:
        """All slices' parts, on every member."""
        return list(self._in_order(parts))

    def _in_order(self, parts: Sequence[State]) -> Iterator[State]:
        if self._world == 1:
            yield from parts
            return
        forms: list[Any] = [None] * self._world
        with _peers():
            dist.all_gather_object(forms, [Form.of(part) for part in parts])
        for rank, theirs in enumerate(forms):
            for number, form in enumerate(theirs):
                mine = parts[number] if rank == self._rank else None
                flat = torch.empty(sum(form.sizes), dtype=torch.uint8) if mine is None else _flat(mine)
                flat = flat.to(self._device)
                with _peers():
                    dist.broadcast(flat, src=rank)
                yield form.unpack(flat) if mine is None else mine


class Group:
    """The assembly of a Ray Train worker group."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.is_leader = accelerator.is_main_process
        self._accelerator = accelerator

    def gang(self, num_slices: int) -> Gang:
        """This member's share."""
        return TorchGang(num_slices, self._accelerator)

    def agree(self, position: int | None) -> int | None:
        """Broadcast by the leader."""
        box = [position]
        if self._accelerator.num_processes > 1:
            with _peers():
                dist.broadcast_object_list(box, src=0)
        return box[0]


class Post(Outbox):
    """The actor that the leader's events wait in."""


class Sender:
    """Sends events in bundles, at most one bundle each `LISTEN_S` save for what is not mere progress."""

    def __init__(self, post: Any) -> None:
        self._post = post
        self._sent = 0.0

    def __call__(self, event: Event) -> None:
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
                tell(Event(kind=Kind.NOTE, place=work.place, name="steps", note=f"The gang lost a worker: {reason}"))
            except BaseException:
                trainer.abort()
                raise
        if settings.store.find(work.place) is not None:
            return
    raise EngineError(
        f"The gang of {work.place} lost a worker {ATTEMPTS} times: {reason} Give each worker more memory, then run "
        "the same command again."
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
    post = ray.remote(num_cpus=0)(Post).remote()
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


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(str(error)) from None


def _flat(state: State) -> torch.Tensor:
    pieces = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in state.values()]
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.uint8)
