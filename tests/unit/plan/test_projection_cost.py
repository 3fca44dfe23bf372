"""Costs of the stages of a null-space posterior, counted before anything runs, held against a run of the same plan."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from afterfit.engine import open_engine
from afterfit.errors import OutOfMemoryError, ResourceError
from afterfit.methods.ella import Ella
from afterfit.methods.null_space import NullSpace
from afterfit.network.likelihoods import Categorical
from afterfit.plan.bench import Bench
from afterfit.plan.cost import check_fits, costs
from afterfit.plan.execute import execute
from afterfit.plan.memory import memory_that_fits
from afterfit.plan.posterior import posterior_plan
from afterfit.plan.request import FitRequest, Telling
from afterfit.plan.resolve import request_from_objects
from afterfit.seeds import Seed, normals
from afterfit.store.directory import open_store

NUM_INPUTS, NUM_HIDDEN, NUM_OUTPUTS, NUM_EXAMPLES = 24, 40, 3, 48


class Mlp(torch.nn.Sequential):
    """A classifier of rows `x`."""

    def __init__(self) -> None:
        super().__init__(
            torch.nn.Linear(NUM_INPUTS, NUM_HIDDEN), torch.nn.Tanh(), torch.nn.Linear(NUM_HIDDEN, NUM_OUTPUTS)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x)


def rows(count: int) -> list[dict[str, Any]]:
    x = normals(Seed(7, ("rows",)), count, NUM_INPUTS)
    return [{"x": x[number], "label": number % NUM_OUTPUTS} for number in range(count)]


def requested(memory_gb: float = 2.0, **choices: Any) -> FitRequest:
    torch.manual_seed(0)
    method = NullSpace.model_validate({"num_draws": 6, "draws_at_once": 4, "block_size": 10, **choices})
    cuts = {"num_shards": 4, "tile_weights": 256, "memory_gb": memory_gb}
    return request_from_objects(Mlp().eval(), {"train": rows(NUM_EXAMPLES)}, method, Categorical(), **cuts)


CASES: dict[str, dict[str, Any]] = {
    "exact": {"solver": "exact"},
    "per_layer": {"kernel": "per_layer", "solver": "exact"},
    "loss": {"kernel": "loss", "solver": "exact"},
    "cholesky": {"solver": "cg", "preconditioner": "cholesky"},
    "nystrom": {"solver": "cg", "preconditioner": "nystrom", "global_basis": 8, "max_passes": 12},
    "alternating": {"solver": "alternating", "max_passes": 4},
    "global_basis": {"kernel": "global_basis", "global_basis": 8},
}


COMPARED = ("lengths", "gram", "image", "certificate-00000", "scale")
"""Stages whose work is compared in every case that has them."""
DIRECT = ("exact", "loss")
"""Cases in which that of the draws is."""


@pytest.fixture(params=list(CASES))
def ran(request, tmp_path):
    asked = requested(**CASES[request.param])
    plan = posterior_plan(asked)
    store, flops, stored, units = open_store(str(tmp_path)), {}, {}, {}
    with open_engine("inprocess", store) as engine:
        for number, stage in enumerate(plan):
            # Counting takes longer than the work, and that of solvers that stop when they are done is not compared.
            is_compared = stage.name in COMPARED or (stage.name == "draws-00000" and request.param in DIRECT)
            with FlopCounterMode(display=False) if is_compared else nullcontext() as counter:
                watch = lambda one, work: work and units.update({one.name: len(work.units)})  # noqa: E731
                artifact = execute(plan[: number + 1], asked, engine, store, watch)[stage.name].artifact
            if counter is not None:
                flops[stage.name] = float(counter.get_total_flops())
            stored[stage.name] = artifact.num_bytes
    return request.param, costs(plan, asked), flops, stored, units


def test_units_bytes_and_work_are_those_of_a_run(ran):
    name, counted, flops, stored, units = ran
    for stage, cost in counted.items():
        assert cost is not None, stage
        assert cost.num_units == units[stage], stage
    bulky = {stage for stage in counted if stage.startswith(("draws-", "gram", "blocks", "image", "lengths", "factor"))}
    for stage in bulky:
        cost = counted[stage]
        # Beside headers and padding of files, and rows of a layer that depend on others, which a factor leaves out.
        least = 0.6 if (name, stage) == ("per_layer", "factor") else 1.0
        assert least * cost.stored_bytes <= stored[stage] <= 1.05 * cost.stored_bytes + 4096 * units[stage], stage
    assert 0.5 < counted["lengths"].flops / flops["lengths"] < 2.5  # squares of explicit rows are not seen
    assert 0.8 < counted["certificate-00000"].flops / flops["certificate-00000"] < 1.1
    assert 0.3 < counted["scale"].flops / flops["scale"] < 4
    if "gram" in counted:
        # What is in float64 counts twice.
        width = 1 if name == "cholesky" else 2
        assert counted["gram"].flops / flops["gram"] == pytest.approx(width, rel=0.05)
    if "image" in counted:
        assert 0.4 < counted["image"].flops / flops["image"] < 2.5
    if name in DIRECT:
        assert 0.4 < counted["draws-00000"].flops / flops["draws-00000"] < 2.5


def test_a_solver_is_counted_for_no_more_passes_than_it_is_allowed():
    few, many = (
        costs(posterior_plan(asked), asked)["draws-00000"]
        for asked in (requested(solver="alternating", max_passes=most) for most in (10, 100))
    )
    assert few is not None
    assert many is not None
    assert many.flops == pytest.approx(10 * few.flops)


def test_conjugate_gradients_hold_the_directions_that_they_keep():
    asked = requested(solver="cg", preconditioner="none", draws_at_once=1)
    counted = costs(posterior_plan(asked), asked)["draws-00000"]
    assert counted is not None
    assert counted.memory_gb * 1e9 > 2 * 8 * 3 * NUM_EXAMPLES * 100


def test_what_auto_says_fits_is_within_the_budget_that_is_checked():
    for memory_gb in (1e-3, 2e-3, 5e-3, 2e-2):
        asked = requested(memory_gb, tolerance=1e-2, draws_at_once="auto")
        check_fits(costs(posterior_plan(asked), asked), memory_gb, None, None)


def test_a_machine_or_a_disk_that_is_too_small_is_named_with_the_stage():
    asked = requested()
    counted = costs(posterior_plan(asked), asked)
    held = {"factor": counted["factor"]}
    with pytest.raises(OutOfMemoryError, match=r"^The stage factor holds .* GB at once with `memory_gb: 2`, but this"):
        check_fits(held, 2.0, 1e-6, None)
    with pytest.raises(ResourceError, match=r"^The stage factor holds .*set `memory_gb` to 0\.00034, "):
        check_fits(held, 1e-4, None, None)
    with pytest.raises(ResourceError, match=r"^The stage scale holds .*choose fewer weights with `network.choose`"):
        check_fits({"scale": counted["scale"]}, 2.0, 1e-6, None)
    with pytest.raises(ResourceError, match=r"will store .* free some space"):
        check_fits(counted, 2.0, None, 1e4)


def test_a_budget_in_which_no_solver_will_do_is_not_what_would_fit():
    asked = requested(draws_at_once="auto")
    for stage in ("gram", "draws-00000", "certificate-00000"):
        fits_gb = memory_that_fits(asked, stage)
        if fits_gb is not None:
            posterior_plan(asked.with_memory(fits_gb))


def test_a_method_that_has_something_to_say_says_it_under_the_plan():
    asked = requested()
    assert isinstance(asked.method, Telling)
    said = asked.method.sentence(asked.likelihood, Bench(asked.bench("", {})))
    assert said.startswith(f"Projection by exact: {3 * NUM_EXAMPLES} rows, 4 draws together, expected to reach 1e-08, ")
    assert not isinstance(Ella(num_landmarks=8, num_features=2), Telling)
    basis = replace(asked, method=NullSpace(kernel="global_basis", global_basis=4)).method
    assert isinstance(basis, Telling)
    assert basis.sentence(asked.likelihood, Bench(asked.bench("", {}))) == ""
