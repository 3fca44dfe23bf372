"""The value of `memory_gb` that would fit, from counts alone."""

from dataclasses import replace

import pytest
import torch

from afterfit.errors import OutOfMemoryError
from afterfit.methods.ella import Ella
from afterfit.methods.ggn_nystrom import GgnNystrom
from afterfit.network.likelihoods import Categorical
from afterfit.plan.cost import check_fits, cost_of, costs
from afterfit.plan.memory import memory_that_fits, one_digit_below, remedy_without
from afterfit.plan.posterior import posterior_plan
from afterfit.plan.request import FitRequest
from afterfit.plan.resolve import request_from_objects
from afterfit.seeds import Seed, normals
from tiny_networks import mlp

METHODS = {"ella": Ella(num_landmarks=30, num_features=8), "ggn_nystrom": GgnNystrom(num_probes=12, rank=6)}
BOUNDED = [("ella", "gram"), ("ella", "curvature"), ("ella", "features-test"), ("ggn_nystrom", "sketch")]
UNBOUNDED = ["point_estimate", "tuning", "predictions-test", "scores"]


def requested(name: str = "ella", num_hidden: int = 40, **options) -> FitRequest:
    torch.manual_seed(0)
    x_ND = normals(Seed(7), 64, 24)
    items = [{"input": x_D, "label": number % 3} for number, x_D in enumerate(x_ND)]
    data = {"train": items, "validation": items[:32], "test": items[:32]}
    network = mlp(24, num_hidden, 3).eval()
    sizes = {"tile_weights": 256, "in_distribution": ("test",), "num_shards": 2}
    return request_from_objects(network, data, METHODS[name], Categorical(), **sizes, **options)


@pytest.mark.parametrize(("value", "below"), [(1.5, 1), (0.25, 0.2), (0.05, 0.05), (8, 8), (39.5, 30), (9.99e-4, 9e-4)])
def test_values_are_rounded_down_to_one_digit(value, below):
    assert one_digit_below(value) == below


@pytest.mark.parametrize(("method", "stage"), BOUNDED)
@pytest.mark.parametrize("memory_gb", [3e-2, 4e-3, 1e-3])
def test_the_value_is_at_most_half_makes_the_stage_smaller_and_is_not_refused(method, stage, memory_gb):
    present = requested(method, memory_gb=memory_gb)
    value = memory_that_fits(present, stage)
    assert value is not None
    assert value <= memory_gb / 2
    assert value == one_digit_below(value)
    lowered = present.with_memory(value)
    before, after = (cost_of(posterior_plan(request), request, stage) for request in (present, lowered))
    assert before is not None
    assert after is not None
    assert lowered.micro_batch < present.micro_batch or after.memory_gb <= before.memory_gb / 2
    assert lowered.micro_batch <= present.micro_batch
    known = {name: cost for name, cost in costs(posterior_plan(lowered), lowered).items() if cost is not None}
    check_fits(known, value, None, None)
    # It is the budget and the micro-batch that a run which begins with the value has.
    assert lowered.micro_batch == requested(method, memory_gb=value).micro_batch


def test_it_begins_with_what_the_device_has():
    present = requested(memory_gb=64.0)
    unknown, known = memory_that_fits(present, "features-test"), memory_that_fits(present, "features-test", 1e-3)
    assert unknown is not None
    assert known is not None
    assert known <= 5e-4 < unknown


@pytest.mark.parametrize("stage", UNBOUNDED)
def test_no_value_helps_what_the_budget_does_not_bound(stage):
    assert memory_that_fits(requested(memory_gb=1e-3), stage) is None
    assert remedy_without(requested(memory_gb=1e-3), stage).startswith("which does not bound it: ")


def test_a_given_micro_batch_is_kept_and_the_remedy_names_a_smaller_one():
    present = requested(memory_gb=64.0, micro_batch=32)
    assert present.with_memory(1e-4).micro_batch == 32
    assert "set `micro_batch` to 16" in remedy_without(present, "features-test")


def test_one_example_at_a_time_is_told_other_remedies():
    alone = replace(requested(memory_gb=64.0), micro_batch=1)
    assert "choose fewer weights, ask the method for fewer features" in remedy_without(alone, "curvature")


def test_the_plan_refuses_with_the_same_kind_of_error_beforehand():
    present = requested(memory_gb=64.0, num_hidden=400)
    counted = cost_of(posterior_plan(present), present, "gram")
    assert counted is not None
    has_gb = counted.memory_gb / 8  # to ask for half as much would not do
    with pytest.raises(OutOfMemoryError, match=r"at once with `memory_gb: 64`, but this machine has") as told:
        check_fits({"gram": counted}, 64.0, has_gb, None)
    assert told.value.is_counted
    value = memory_that_fits(present, told.value.stage, told.value.has_gb)
    assert value is not None
    lowered = present.with_memory(value)
    check_fits({"gram": cost_of(posterior_plan(lowered), lowered, "gram")}, value, has_gb, None)
