"""Kill -9 of the driver or of a worker at any moment, then the same command: the same digests, nothing done twice."""

import signal
from pathlib import Path

import psutil
import pytest

from doomed import Doom, digests_of, lines_of, recomputed, start

MOMENTS = {
    "a training step": ("ella", "item", "point_estimate/", "/step/"),
    "a unit of the Gram": ("ella", "start", "gram/", "/0-"),
    "the fold of a shard": ("ella", "item", "curvature/", "/at/00000002"),
    "the marker of a save": ("ella", "mark", "features-validation/", "/at/"),
    "the marker of a stage": ("ella", "mark", "basis/"),
    "the marker of predictions": ("ella", "mark", "predictions-test/"),
    "a merge in the tree": ("ggn_nystrom", "write", "sketch/", "/2-", "image"),
    "the end of a reduction": ("ggn_nystrom", "write", "sketch/", "image"),
    "the predictions": ("ggn_nystrom", "write", "predictions-test/"),
    "a shard of a projection's pass": ("null_space", "item", "draws-00000/", "/sum/", "/at/00000002"),
    "the draws": ("null_space", "write", "draws-00000/", "draws"),
    "the state between two rounds": ("null_space_cg", "mark", "draws-00000/", "/round/"),
    "a sweep of a preconditioner": ("null_space_cg", "item", "draws-00000/", "/at/00000003"),
    "a sweep of projections": ("null_space_alternating", "item", "draws-00000/", "/at/00000002"),
    "a shard's part of a save": ("slang", "write", "variational/", "/slice-002", "factor"),
    "the save of all shards": ("slang", "mark", "variational/", "/common"),
    "the end of a fit in shards": ("slang", "write", "variational/", "mean_float32"),
    "a step with noisy weights": ("variational_dropout", "item", "variational/", "/step/"),
    "the rates of the noise": ("variational_dropout", "write", "variational/", "rates"),
    "a pass of a refit": ("hessian_free", "item", "covariance-test/", "/at/00000006"),
    "the answer of a query": ("hessian_free", "write", "covariance-others/", "covariance"),
    "the plain network at a draw": ("null_space_cg", "item", "features-test-00000/", "/at/00000002"),
}


@pytest.mark.parametrize("what", MOMENTS)
def test_a_killed_driver_goes_on_where_it_was(tmp_path, forks, uninterrupted, what):
    fit, *kind_and_words = MOMENTS[what]
    expected = uninterrupted(fit)
    moment = expected.moment(*kind_and_words)
    uri, log = str(tmp_path / "store"), tmp_path / "log"
    assert start(forks, fit, uri, Doom(log=log, moment=moment, offset=200)) == -signal.SIGKILL
    killed = list(lines_of(log))
    assert f"{killed[-1].kind} {killed[-1].subject}" == moment
    assert start(forks, fit, uri, Doom(log=log)) == 0
    assert digests_of(log) == expected.digests
    lines = list(lines_of(log))
    assert recomputed(lines) == []
    # Nothing is left out either: what was made is what an uninterrupted run makes.
    assert {line.subject for line in lines if line.kind == "done"} == {
        line.subject for line in expected.lines if line.kind == "done"
    }


def test_work_that_is_done_twice_is_noticed(tmp_path, forks, uninterrupted):
    moment = uninterrupted("ella").moment("item", "curvature/", "/at/00000003")
    uri, log = str(tmp_path / "store"), tmp_path / "log"
    assert start(forks, "ella", uri, Doom(log=log, moment=moment)) == -signal.SIGKILL
    assert start(forks, "ella", uri, Doom(log=log, forgets=True)) == 0
    unit = moment.removeprefix("item ").removesuffix("3")
    assert recomputed(list(lines_of(log))) == [f"item {unit}1", f"item {unit}2"]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("fit", "kind", "words"),
    [
        ("ggn_nystrom", "item", ("sketch/", "/at/00000002")),
        ("ggn_nystrom", "mark", ("sketch/", "/node/")),
        ("ggn_nystrom", "write", ("basis/", "basis.arrow")),
        ("null_space_cg", "item", ("draws-00000/", "/sum/")),
        ("slang", "write", ("variational/", "/slice-001", "factor")),
        ("hessian_free", "item", ("covariance-test/", "/at/")),
    ],
)
def test_a_killed_worker_is_replaced_by_one_that_goes_on(tmp_path, forks, ray_address, uninterrupted, fit, kind, words):
    expected = uninterrupted(fit)
    doom = Doom(log=tmp_path / "log", moment=expected.moment(kind, *words), offset=200)
    options = {"engine": "ray", "workers": 2, "address": ray_address}
    assert start(forks, fit, str(tmp_path / "store"), doom, **options) == 0
    assert doom.log.with_suffix(".died").exists()
    assert digests_of(doom.log) == expected.digests
    assert recomputed(list(lines_of(doom.log))) == []


@pytest.mark.ray
def test_after_the_loss_of_a_driver_on_ray_the_same_command_goes_on(tmp_path, forks, ray_address, uninterrupted):
    expected = uninterrupted("ggn_nystrom")
    place = next(place for place in expected.digests if place.startswith("features-test/"))
    uri, log = str(tmp_path / "store"), tmp_path / "log"
    options = {"engine": "ray", "workers": 2, "address": ray_address}
    doom = Doom(log=log, moment=f"mark {place}")
    assert start(forks, "ggn_nystrom", uri, doom, **options) == -signal.SIGKILL
    wait_for_the_end_of_workers(log)
    assert start(forks, "ggn_nystrom", uri, Doom(log=log), **options) == 0
    assert digests_of(log) == expected.digests
    assert recomputed(list(lines_of(log))) == []


def wait_for_the_end_of_workers(log: Path) -> None:
    """Workers outlive a driver by moments, and would be seen to finish what the next ones begin."""
    alive = [psutil.Process(pid) for pid in {line.pid for line in lines_of(log)} if psutil.pid_exists(pid)]
    assert psutil.wait_procs(alive, timeout=60)[1] == []
