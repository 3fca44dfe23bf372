"""Variational dropout from the command line: a run, its report, and the network that is left."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import afterfit
from afterfit.methods.dropout.pruning import fitted_noise
from tiny_project import config, good, refusal, write_config, write_project

METHOD = {
    "name": "variational_dropout",
    "kl_weight": 0.05,
    "training": {"epochs": 60, "batch_size": 12, "learning_rate": 0.02},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Two finished runs."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_project(folder)
        write_config(folder / "tiny.yaml", config(method=METHOD, prediction={"by": "network"}))
        good("run", "tiny.yaml")
        write_config(folder / "ella.yaml", config(store="ella"))
        good("run", "ella.yaml")
    return folder


def test_what_is_pruned_is_zero_and_the_rest_is_the_mean(project, monkeypatch):
    monkeypatch.chdir(project)
    said = good("prune", "store", "--out", "pruned.safetensors", "--log-alpha", "1.5")
    left, posterior = load_file("pruned.safetensors"), afterfit.load("store")
    noise = fitted_noise(posterior.store.read(posterior.record.stages["variational"]))
    pruned = 0
    for name, one in noise.items():
        rates = one.noisy.log_alpha(one.mean, one.free)
        assert torch.equal(left[name], torch.where(rates >= 1.5, 0.0, one.mean))
        pruned += int((rates >= 1.5).sum())
    noisy, every = sum(one.mean.numel() for one in noise.values()), posterior.network.layout.num_weights
    assert 0 < pruned < noisy
    assert f"{pruned / noisy:.1%} of the noisy weights are zero; {every / (every - pruned):.1f} times" in said
    assert "Accuracy on test" in said
    module = posterior.network.module
    module.load_state_dict(left)


def test_the_report_has_the_bound_and_the_sparsity(project):
    page = (project / "store" / "report.html").read_text()
    for shown in ("Evidence lower bound", "sparsity", "compression"):
        assert shown in page


def test_a_method_without_rates_is_refused(project, monkeypatch):
    monkeypatch.chdir(project)
    assert "has no rates of noise to prune by" in refusal("prune", "ella", "--out", "p.safetensors")
    assert "names no file" in refusal("prune", "store", "--out", ".")
    assert "log alpha is within 8 of 0" in refusal("prune", "store", "--out", "p.safetensors", "--log-alpha", "9")


def test_globs_that_choose_nothing_are_refused_before_anything_is_trained(project, monkeypatch):
    monkeypatch.chdir(project)
    write_config(project / "glob.yaml", config(method={**METHOD, "weights": ["hed.*"]}, store="glob"))
    assert "`method.weights` chooses no weight" in refusal("plan", "glob.yaml")
