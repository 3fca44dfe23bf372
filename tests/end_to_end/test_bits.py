"""Whatever the engine and however many workers: the digests of all artifacts of a real fit are the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from afterfit.data import digits
from afterfit.engine import open_engine
from afterfit.methods.ggn_nystrom import GgnNystrom
from afterfit.network.likelihoods import likelihood_named
from afterfit.plan.execute import execute
from afterfit.plan.posterior import posterior_plan
from afterfit.plan.resolve import request_from_objects
from afterfit.store.directory import open_store
from small_fits import FITS, DigitNet, digests, run_fit


def test_the_small_fits_have_many_tiles_groups_and_shards(uninterrupted):
    store = open_store(uninterrupted("ella").uri)
    of = {place.split("/")[0]: store.read(place) for place in uninterrupted("ella").digests}
    assert len(of["basis"].tiles("basis")) == 8
    assert len(of["basis"].parts) == 4
    assert len(of["curvature"].parts) == 8
    assert of["point_estimate"].facts["trained"]


@pytest.mark.parametrize("fit", FITS)
def test_another_store_and_process_and_no_saves_in_between_do_not_change_the_digests(tmp_path, uninterrupted, fit):
    assert run_fit(fit, str(tmp_path), checkpoint_s=60.0) == uninterrupted(fit).digests


# Ray Train copies Ray Data's settings, some of which warn about themselves even at their defaults (Ray 2.60).
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning:ray.data.context")
@pytest.mark.parametrize("workers", [1, 3])  # two are those of the killed ones
@pytest.mark.parametrize("fit", FITS)
def test_ray_gives_the_bits_of_the_in_process_engine(tmp_path, ray_address, uninterrupted, fit, workers):
    made = run_fit(fit, str(tmp_path), engine="ray", workers=workers, checkpoint_s=60.0)
    assert made == uninterrupted(fit).digests


@pytest.mark.ray
def test_a_module_and_data_that_are_sent_to_workers_give_the_bits_of_those_at_hand(tmp_path, ray_address):
    torch.manual_seed(0)
    network, train = DigitNet().double().eval(), digits.train()[:40]
    here = fit_objects(network, train, tmp_path / "here", engine="inprocess")
    sent = fit_objects(network, train, tmp_path / "sent", engine="ray", workers=2)
    assert sent == here


def fit_objects(network: nn.Module, train: list, folder: Path, **options: Any) -> dict[str, str]:
    request = request_from_objects(
        network,
        {"train": train},
        GgnNystrom(num_probes=20),
        likelihood_named("categorical", None),
        memory_gb=6e-4,
        micro_batch=5,
        num_shards=4,
        tile_weights=256,
    )
    plan, store = posterior_plan(request), open_store(str(folder))
    with open_engine(options.pop("engine"), store, **options) as engine:
        execute(plan, request, engine, store)
    return digests(store.uri, [stage.place for stage in plan])
