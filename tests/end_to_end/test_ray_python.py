"""`afterfit.fit(..., engine="ray")` on a cluster that runs already gives what the in-process engine gives."""

import pytest
import torch

import afterfit
from afterfit.methods.ggn_nystrom import GgnNystrom
from cases import case_named

pytestmark = pytest.mark.ray

CASE = case_named("conv_net")
METHODS = {
    "ella": afterfit.Ella(num_landmarks=20, num_features=8, complement="prior"),
    "ggn_nystrom": GgnNystrom(num_probes=12),
}


def fit(method: str, **options) -> afterfit.Posterior:
    examples = CASE.examples
    items = [{"input": examples.inputs["input"][i], "label": examples.labels[i]} for i in range(CASE.num_examples)]
    return afterfit.fit(
        CASE.module(),
        items,
        method=METHODS[method],
        validation=items[:6],
        micro_batch=4,
        num_shards=2,
        **options,
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_on_a_running_cluster_has_the_digests_of_one_in_process_and_keeps_float64(method, ray_address, tmp_path):
    import ray

    here = fit(method)
    there = fit(method, engine="ray", workers=2, store=str(tmp_path))
    assert ray.is_initialized()  # the connection of the notebook is left alone

    assert there.record.stages == here.record.stages
    for stage, place in here.record.stages.items():
        assert there.store.read(place).digest == here.store.read(place).digest, stage
    made_by = {
        there.store.read(place).about["arithmetic"]["threads"]
        for place in there.record.stages.values()
        if "arithmetic" in there.store.read(place).about
    }
    assert made_by == {1}

    outputs = there.predict(CASE.fresh.batch(range(5)))
    assert outputs.mean.dtype == outputs.covariance.dtype == torch.float64
    assert torch.equal(outputs.covariance, here.predict(CASE.fresh.batch(range(5))).covariance)
    assert next(iter(there.basis.values())).dtype == torch.float64
