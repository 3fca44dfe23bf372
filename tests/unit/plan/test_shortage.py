"""A remembered lack of memory counts where there is no more memory than when it was met."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from afterfit.errors import OutOfMemoryError
from afterfit.methods.ella import Ella
from afterfit.network.likelihoods import Categorical
from afterfit.plan.posterior import posterior_plan
from afterfit.plan.request import FitRequest
from afterfit.plan.resolve import request_from_objects
from afterfit.plan.shortage import Shortage, shortages, within_memory
from afterfit.resources import Memory
from afterfit.store.directory import Store, open_store
from tiny_networks import mlp

PRESENT, FITS = 2.0, 0.0005
LACKED = 0.001
"""GB of the machine or the GPU that the stage `gram` ran out on."""


@pytest.fixture
def store(tmp_path) -> Store:
    return open_store(str(tmp_path))


@pytest.fixture
def asked(store) -> FitRequest:
    torch.manual_seed(0)
    items = [{"input": torch.full((24,), float(number)), "label": number % 3} for number in range(32)]
    method = Ella(num_landmarks=30, num_features=8)
    data = {"train": items, "validation": items}
    return request_from_objects(mlp(24, 40, 3).eval(), data, method, Categorical(), memory_gb=PRESENT)


def remember(store: Store, request: FitRequest, has_gb: float | None = LACKED, *, on_gpu: bool = False) -> None:
    error = OutOfMemoryError("The stage gram ran out of memory.", stage="gram", has_gb=has_gb, on_gpu=on_gpu)
    place = next(stage.place for stage in posterior_plan(request) if stage.name == "gram")
    Shortage.of(error, request).write(store, place)


def attempted(store: Store, request: FitRequest, has: Memory) -> float:
    """The budget of the first attempt, in GB."""
    options: dict[str, Any] = {"asker": "fit", "lowers": True, "has": has, "tell": str}
    return within_memory(request, store, lambda request: request.memory_gb, **options)


def told(store: Store, request: FitRequest, has: Memory) -> list[str]:
    return [one.sentence() for one in shortages(posterior_plan(request), request, store, has)]


@pytest.mark.parametrize("on_gpu", [False, True])
def test_no_more_memory_than_then_lowers_the_budget_beforehand(store, asked, on_gpu):
    remember(store, asked, on_gpu=on_gpu)
    for has_gb in (LACKED, LACKED / 2):
        has = Memory(gpu_gb=has_gb, machine_gb=512.0) if on_gpu else Memory(machine_gb=has_gb, gpu_gb=512.0)
        assert attempted(store, asked, has) == FITS
        assert len(told(store, asked, has)) == 1


@pytest.mark.parametrize("on_gpu", [False, True])
def test_with_more_memory_the_budget_is_tried_and_nothing_is_told(store, asked, on_gpu):
    remember(store, asked, on_gpu=on_gpu)
    more = Memory(gpu_gb=80.0, machine_gb=LACKED) if on_gpu else Memory(machine_gb=64.0, gpu_gb=LACKED)
    assert attempted(store, asked, more) == PRESENT
    assert told(store, asked, more) == []


@pytest.mark.parametrize(("then", "now"), [(LACKED, Memory()), (None, Memory(machine_gb=LACKED))])
def test_where_one_of_both_is_unknown_the_budget_is_tried_but_the_plan_tells(store, asked, then, now):
    remember(store, asked, then)
    assert attempted(store, asked, now) == PRESENT
    assert len(told(store, asked, now)) == 1


def test_a_lack_on_a_larger_machine_is_remembered_in_place_of_that_on_a_smaller_one(store, asked):
    remember(store, asked)

    def attempt(request: FitRequest) -> float:
        if request.memory_gb == PRESENT:
            raise OutOfMemoryError("Again.", stage="gram", has_gb=1.0)
        return request.memory_gb

    run = partial(within_memory, asked, store, asker="fit", lowers=True, tell=str)
    lowered = run(attempt, has=Memory(machine_gb=1.0))
    assert FITS < lowered < PRESENT
    assert [attempted(store, asked, Memory(machine_gb=has_gb)) for has_gb in (1.0, LACKED)] == [lowered, lowered]


def test_what_is_remembered_is_of_the_budget_alone(store, asked):
    remember(store, asked)
    assert attempted(store, replace(asked, memory_gb=1.0), Memory(machine_gb=LACKED)) == 1.0
