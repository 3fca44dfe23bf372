"""Errors of memory, from wherever they come, are one kind; what else goes wrong stays what it is."""

import pickle

import pytest
import torch

from afterfit.engine.protocol import Work
from afterfit.engine.shortage import told_shortage
from afterfit.errors import ConfigError, EngineError, OutOfMemoryError
from afterfit.network.functional import Network
from afterfit.resources import is_out_of_memory
from afterfit.rows import forward_mode
from tiny_networks import mlp


def failing(kind: str) -> None:
    if kind == "cuda":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if kind == "cpu":
        torch.empty(1 << 60, dtype=torch.uint8)
    if kind == "python":
        bytearray(1 << 60)
    if kind == "library":
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize("kind", ["cuda", "cpu", "python", "library"])
def test_every_error_of_memory_is_recognised_and_becomes_one_kind(kind):
    with pytest.raises(OutOfMemoryError) as told, told_shortage():
        failing(kind)
    assert is_out_of_memory(told.value.__cause__ or ValueError())
    assert told.value.has_gb
    assert told.value.has_gb > 0.1


@pytest.mark.parametrize("other", [RuntimeError("shapes differ"), ValueError("out of memory"), ConfigError("no")])
def test_other_errors_pass_as_they_are(other):
    with pytest.raises(type(other)) as told, told_shortage():
        raise other
    assert told.value is other


def test_what_the_device_has_survives_the_way_from_a_worker():
    with pytest.raises(OutOfMemoryError) as told, told_shortage():
        failing("cuda")
    assert pickle.loads(pickle.dumps(told.value)).has_gb == told.value.has_gb


def test_a_worker_ended_by_the_memory_monitor_is_a_lack_of_memory_and_another_may_be():
    from ray.exceptions import ActorDiedError
    from ray.exceptions import OutOfMemoryError as EndedByMonitor

    from afterfit.engine.ray_crew import _given_up

    work = Work(make=object, place="gram/0")
    assert isinstance(
        _given_up(work, "unit", 4, EndedByMonitor("Task was killed: the node runs low.")), OutOfMemoryError
    )
    assert isinstance(_given_up(work, "unit", 4, ActorDiedError()), EngineError)


def test_a_lack_of_memory_does_not_decide_against_forward_mode(monkeypatch):
    def short(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    network = Network(mlp(2, 3, 2).eval())
    monkeypatch.setattr(forward_mode, "push_forward", short)
    with pytest.raises(torch.OutOfMemoryError):
        forward_mode.forward_mode_agrees(network, {"input": torch.ones(1, 2)}, torch.ones(1, 1, 2), {})
