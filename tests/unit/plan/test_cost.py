"""Costs are counted before anything runs; here they are held against a run of the same plan."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from afterfit.data.settings import DataSettings
from afterfit.engine import open_engine
from afterfit.errors import ConfigError, OutOfMemoryError, ResourceError
from afterfit.methods.ella import Ella
from afterfit.methods.ggn_nystrom import GgnNystrom
from afterfit.network.likelihoods import Categorical
from afterfit.plan.cost import COSTS, Cost, check_fits, costs
from afterfit.plan.execute import execute
from afterfit.plan.posterior import posterior_plan
from afterfit.plan.request import FitRequest
from afterfit.plan.resolve import request_from_objects
from afterfit.plan.stage import Stage
from afterfit.resources import GB
from afterfit.seeds import Seed, normals
from afterfit.store.directory import open_store

NUM_INPUTS, NUM_HIDDEN, NUM_OUTPUTS = 24, 40, 3
METHODS: dict[str, Callable[[], Any]] = {
    "ella": lambda: Ella(num_landmarks=30, num_features=8),
    "ella_kernel": lambda: Ella(num_landmarks=30, num_features=2, complement="prior"),
    "ggn_nystrom": lambda: GgnNystrom(num_probes=12, rank=6),
}


class Mlp(torch.nn.Sequential):
    """A classifier of rows `x`."""

    def __init__(self) -> None:
        super().__init__(
            torch.nn.Linear(NUM_INPUTS, NUM_HIDDEN), torch.nn.Tanh(), torch.nn.Linear(NUM_HIDDEN, NUM_OUTPUTS)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x)


def rows(name: str, count: int) -> list[dict[str, Any]]:
    x = normals(Seed(7, (name,)), count, NUM_INPUTS)
    return [{"x": x[number], "label": number % NUM_OUTPUTS} for number in range(count)]


def requested(name: str, **options: Any) -> FitRequest:
    torch.manual_seed(0)
    network = Mlp().eval()
    data = {"train": rows("train", 64), "validation": rows("validation", 32), "test": rows("test", 32)}
    request = request_from_objects(
        network,
        data,
        METHODS[name](),
        Categorical(),
        num_shards=4,
        tile_weights=256,
        in_distribution=("test",),
        **options,
    )
    return replace(request, out_of_distribution=())


@dataclass
class Seen:
    """What running a plan told."""

    units: dict[str, int]
    flops: dict[str, float]
    stored: dict[str, int]


@pytest.fixture(params=list(METHODS))
def ran(request, tmp_path):
    asked = requested(request.param)
    plan = posterior_plan(asked)
    store = open_store(str(tmp_path))
    seen = Seen({}, {}, {})
    with open_engine("inprocess", store) as engine:
        for number, stage in enumerate(plan):
            with FlopCounterMode(display=False) as counter:
                watch = lambda one, work: work and seen.units.update({one.name: len(work.units)})  # noqa: E731
                artifact = execute(plan[: number + 1], asked, engine, store, watch)[stage.name].artifact
            seen.flops[stage.name] = float(counter.get_total_flops())
            seen.stored[stage.name] = artifact.num_bytes
    return request.param, costs(plan, asked), seen


def test_units_bytes_and_work_are_those_of_a_run(ran):
    name, counted, seen = ran
    assert set(counted) == set(seen.units)
    for stage, cost in counted.items():
        assert cost is not None, stage
        assert cost.num_units == seen.units[stage], stage
    # Files have headers and padding: at most 4 kB for each unit's files here.
    for stage in ("basis", "curvature", "features-test", "predictions-test"):
        cost = counted[stage]
        assert cost.stored_bytes <= seen.stored[stage] <= 1.1 * cost.stored_bytes + 4096 * seen.units[stage], stage
    # Counted by rule, two backward-equivalents a cotangent; the first layer needs no gradient of its input.
    heavy = ("gram", "basis", "curvature", "features-test") if name != "ggn_nystrom" else ("sketch", "features-test")
    for stage in heavy:
        assert 0.4 < counted[stage].flops / seen.flops[stage] < 2.5, stage


def test_more_landmarks_than_rows_are_refused_before_anything_is_counted():
    asked = replace(requested("ella"), method=Ella(num_landmarks=64 * NUM_OUTPUTS + 1, num_features=8))
    with pytest.raises(ConfigError, match=f"only {64 * NUM_OUTPUTS} rows"):
        posterior_plan(asked)


def test_what_is_explicit_stays_within_memory_when_there_is_little():
    asked = requested("ella", memory_gb=1e-4)
    counted = costs(posterior_plan(asked), asked)
    assert counted["gram"].num_units > 1
    check_fits(counted, 1e-4, None, None)
    assert max(cost.memory_gb for cost in counted.values() if cost.is_budgeted) > 0.2e-4


def with_texts(asked: FitRequest, pad_to: str) -> FitRequest:
    """The same sizes, with data that say they are texts."""
    column = {"kind": "text", "column": "text", "tokenizer": "none", "max_length": 512, "pad_to": pad_to}
    settings = DataSettings.model_validate({"path": "none", "columns": {"inputs": {"x": column}}})
    return replace(asked, data={role: replace(source, settings=settings) for role, source in asked.data.items()})


@pytest.mark.parametrize(
    ("name", "stage"), [("ella", "curvature"), ("ella", "features-test"), ("ggn_nystrom", "sketch")]
)
def test_short_texts_hold_the_rows_of_as_many_as_are_taken_together(name, stage):
    asked = requested(name, micro_batch=1)
    full, ragged, wide = (
        costs(posterior_plan(each), each)[stage]
        for each in (with_texts(asked, "max_length"), with_texts(asked, "longest"), replace(asked, micro_batch=32))
    )
    assert full == costs(posterior_plan(asked), asked)[stage]
    rows_gb = NUM_OUTPUTS * asked.layout.num_weights * asked.state_bytes / GB
    assert ragged.memory_gb - full.memory_gb == pytest.approx(31 * rows_gb, rel=0.01)
    assert ragged.device_gb < wide.device_gb  # gradients are those of as many tokens, whatever the number of texts
    assert (ragged.flops, ragged.stored_bytes) == (full.flops, full.stored_bytes)


@pytest.mark.parametrize("memory_gb", [1e-3, 1e-4, 3e-5])
def test_with_little_memory_short_texts_hold_no_more_than_the_budget(memory_gb):
    asked = with_texts(requested("ella", memory_gb=memory_gb, micro_batch=1), "longest")
    check_fits(costs(posterior_plan(asked), asked), memory_gb, None, None)


@dataclass(frozen=True)
class Unheard:
    """A recipe that the table of costs does not have."""

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"


def test_a_recipe_that_is_not_in_the_table_has_no_cost_and_stops_nothing():
    assert "Unheard" not in COSTS
    counted = costs([Stage("unheard", Unheard())], requested("ella"))
    assert counted == {"unheard": None}
    check_fits(counted, 1.0, 1.0, 0.0)


def cost(memory_gb: float = 0.0, stored_gb: float = 0.0, is_budgeted: bool = True, device_gb: float = 0.0) -> Cost:
    known = {"flops": 1.0, "num_units": 1, "is_budgeted": is_budgeted}
    return Cost(memory_gb=memory_gb, stored_bytes=stored_gb * GB, device_gb=device_gb, **known)


def test_a_stage_above_the_budget_is_refused_with_the_value_that_would_fit():
    with pytest.raises(ResourceError, match=r"gram holds 3.13 GB at once.*`memory_gb: 2`; set `memory_gb` to 3.2"):
        check_fits({"gram": cost(memory_gb=3.13)}, 2.0, 64.0, None)
    check_fits({"gram": cost(memory_gb=3.13)}, 3.2, 64.0, None)


def test_a_stage_that_the_budget_does_not_bound_is_refused_by_the_machine_only():
    training = {"point_estimate": cost(memory_gb=20.0, is_budgeted=False)}
    check_fits(training, 2.0, 32.0, None)
    check_fits(training, 2.0, None, None)
    with pytest.raises(ResourceError, match=r"holds 20 GB at once, but this machine has 16 GB"):
        check_fits(training, 2.0, 16.0, None)


def test_a_gpu_bounds_what_is_beside_the_network_and_the_machine_bounds_the_rest():
    needed = {"gram": cost(memory_gb=100.0), "curvature": cost(memory_gb=70.0, device_gb=40.0)}
    check_fits(needed, 120.0, 512.0, None, 80.0)
    check_fits({"curvature": needed["curvature"]}, 120.0, 30.0, None, 40.0)
    with pytest.raises(OutOfMemoryError, match=r"curvature holds 40 GB at once .*, but the GPU has 39 GB\.$") as told:
        check_fits(needed, 120.0, 512.0, None, 39.0)
    assert (told.value.stage, told.value.has_gb, told.value.on_gpu) == ("curvature", 39.0, True)
    with pytest.raises(OutOfMemoryError, match=r"gram holds 100 GB at once .*, but this machine has 64 GB\.$") as told:
        check_fits(needed, 120.0, 64.0, None, 80.0)
    assert not told.value.on_gpu
    with pytest.raises(OutOfMemoryError, match=r"curvature holds 70 GB at once .*, but this machine has 64 GB\.$"):
        check_fits({"curvature": needed["curvature"]}, 120.0, 64.0, None)  # without a GPU all is on the host


@pytest.mark.parametrize("name", METHODS)
def test_only_rows_of_micro_batches_lie_beside_the_network(name):
    asked = requested(name)
    counted = costs(posterior_plan(asked), asked)
    held = {stage for stage, cost in counted.items() if cost is not None and cost.device_gb}
    sums = "sketch" if name == "ggn_nystrom" else "curvature"
    assert held == {sums, "features-test"} | ({"features-validation"} & set(counted))
    assert all(cost.device_gb < cost.memory_gb for cost in counted.values() if cost is not None and cost.device_gb)


def test_a_disk_without_room_is_refused():
    needed = {"basis": cost(stored_gb=3.0), "features": cost(stored_gb=2.0)}
    check_fits(needed, 2.0, None, 5.1 * GB)
    with pytest.raises(ResourceError, match=r"will store 5 GB, but the store's disk has 4 GB free.*--store"):
        check_fits(needed, 2.0, None, 4.0 * GB)


def test_time_is_counted_at_the_reference_rate():
    assert replace(cost(), flops=6e10).seconds == pytest.approx(2.0)
