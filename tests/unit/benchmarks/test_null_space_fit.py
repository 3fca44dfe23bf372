"""What the null-space benchmark reads of a finished fit."""

from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch

from afterfit.algebra import Result
from afterfit.store.directory import open_store
from null_space import METRICS, TARGETS, comparisons
from null_space_tasks import TASKS, Fit

SECONDS = {
    "point_estimate": 100.0,
    "lengths": 1.0,
    "gram": 2.0,
    "factor": 4.0,
    "draws-00000": 8.0,
    "draws-00002": 16.0,
    "certificate-00000": 200.0,
    "certificate-00002": 200.0,
    "scale": 200.0,
    "posterior": 200.0,
}


@pytest.fixture
def fit(tmp_path):
    """Three draws of five weights in two tiles and two chunks."""
    store = open_store(str(tmp_path))
    all_PS = torch.arange(15.0).reshape(5, 3)
    made = {
        "scale": Result(facts={"scale": 0.25}),
        "certificate-00000": Result(facts={"residual": 1e-9}),
        "certificate-00002": Result(facts={"residual": 3e-9}),
    }
    for first, last in ((0, 2), (2, 3)):
        tiles = [("00000", all_PS[:3, first:last].clone()), ("00001", all_PS[3:, first:last].clone())]
        facts = {"first": first, "num": last - first, "passes": 1.5}
        made[f"draws-{first:05d}"] = Result(tensors={"draws": tiles}, facts=facts)
    ran = {name: SimpleNamespace(artifact=store.write(name, result)) for name, result in reversed(made.items())}
    stages = pa.Table.from_pylist([{"stage": stage, "seconds": seconds} for stage, seconds in SECONDS.items()])
    return Fit(SimpleNamespace(ran=ran, stages=stages), None)


def test_draws_of_all_chunks_are_put_together_in_their_order(fit):
    assert torch.equal(torch.cat(list(fit.draws.values())), torch.arange(15.0).reshape(5, 3))
    assert fit.num_draws == 3


def test_the_residual_is_the_largest_of_the_certificates_and_passes_add_up(fit):
    assert (fit.residual, fit.passes, fit.scale) == (3e-9, 3.0, 0.25)


def test_the_time_of_the_projection_is_that_of_its_factors_and_draws(fit):
    assert fit.projection_seconds == 31.0
    assert fit.seconds("draws") == 24.0


def test_every_comparison_that_has_a_target_is_made():
    methods = ("map", "ella", "isotropic", "null_space_predictive", "null_space_loss")
    for task in TASKS:
        figures = {f"{task.name}_{method}_{metric}": 0.5 for method in methods for metric in METRICS}
        made = comparisons(task, {**figures, f"{task.name}_isotropic_train_accuracy": 0.2})
        assert made[f"{task.name}_isotropic_train_accuracy_lost"] == pytest.approx(0.3)
        wanted = [name for name in TARGETS if name.startswith(task.name) and ("_above_" in name or "_lost" in name)]
        assert wanted
        assert set(wanted) <= set(made)
