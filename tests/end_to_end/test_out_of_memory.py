"""A stage that runs out of memory: one sentence with the value that would fit, and a run that goes on with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import afterfit
import tiny_networks
from afterfit.errors import OutOfMemoryError
from afterfit.plan import run as run_module
from afterfit.resources import Memory
from afterfit.store.directory import open_store
from tiny_networks import greedy
from tiny_project import NUM_CLASSES, NUM_INPUTS, config, good, markers, refusal, rows, write_config, write_project

MOST = 16
"""Examples that fit: landmarks come in micro-batches of 16, and the 18 of a shard of training data at once."""
PRESENT, FITS = 2e-4, 1e-4
"""GB with which the micro-batch is 32, and half as much, with which it is 16."""
BEFORE = {"landmarks", "gram", "basis"}
TOLD = (
    "Error: The stage curvature ran out of memory with `memory_gb: 0.0002`; by its counts 0.0001 would fit: "
    "run again with `--set memory_gb=0.0001`, or with `--fit-memory`."
)


def greedy_config(says: str = "cuda", **changed: Any) -> dict[str, Any]:
    sizes = {"num_inputs": NUM_INPUTS, "num_hidden": 6, "num_outputs": NUM_CLASSES}
    return config(
        network={"factory": "tiny_networks:greedy", "arguments": {**sizes, "most": MOST, "says": says}},
        method={"name": "ella", "num_landmarks": 16, "num_features": 6},
        memory_gb=PRESENT,
        **changed,
    )


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_project(tmp_path)


def digests(uri: str) -> dict[str, str]:
    """Place of every stage of the store's run -> its digest."""
    store = open_store(uri)
    return {place: store.read(place).digest for place in store.get_record("run.json")["stages"].values()}


@pytest.mark.parametrize("says", ["cuda", "cpu", "python"])
def test_every_kind_of_shortage_is_one_sentence_with_the_value_and_loses_nothing(project, says):
    write_config(project / "tiny.yaml", greedy_config(says))
    assert refusal("run", "tiny.yaml", code=1) == TOLD
    finished = markers(project / "store")
    assert {place.partition("/")[0] for place in finished} >= {"point_estimate", *BEFORE}
    # The same command says the same again, and the plan says it before anything runs.
    assert refusal("run", "tiny.yaml", code=1) == TOLD
    assert markers(project / "store") == finished
    assert TOLD.removeprefix("Error: ") in " ".join(good("plan", "tiny.yaml").split())
    # What it names does fit, and is no longer warned of.
    good("run", "tiny.yaml", "--set", f"memory_gb={FITS:g}")
    assert finished.items() <= markers(project / "store").items()
    assert "ran out of memory" not in good("plan", "tiny.yaml", "--set", f"memory_gb={FITS:g}")


def test_with_fit_memory_the_run_goes_on_by_itself_and_is_the_one_of_the_lower_value(project):
    write_config(project / "tiny.yaml", greedy_config())
    said = good("run", "tiny.yaml", "--fit-memory")
    assert said.count("the run goes on with `memory_gb: 0.0001`") == 1
    good("run", "tiny.yaml", "--store", "other", "--set", f"memory_gb={FITS:g}")
    assert digests("store") == digests("other")
    assert json.loads((project / "store" / "run.json").read_text())["config"]["memory_gb"] == FITS
    # The weights have no budget in their key: they are there once, what depends on it twice.
    stages = [place.partition("/")[0] for place in markers(project / "store") if place.count("/") == 1]
    assert stages.count("point_estimate") == 1
    assert all(stages.count(name) == 2 for name in BEFORE)

    # It remembers: nothing is tried again with the flag, and without it the user is told what to set.
    finished = markers(project / "store")
    again = good("run", "tiny.yaml", "--fit-memory")
    assert "Nothing was to be done" in again
    assert refusal("run", "tiny.yaml", code=1) == TOLD
    assert markers(project / "store") == finished


def test_where_no_value_would_help_the_sentence_says_what_does(project):
    tree = greedy_config(micro_batch=20)
    write_config(project / "tiny.yaml", tree)
    for options in ((), ("--fit-memory",)):
        assert refusal("run", "tiny.yaml", *options, code=1).endswith(
            "The stage curvature ran out of memory with `memory_gb: 0.0002`, and less would not help: "
            "set `micro_batch` to 10, or run on larger workers."
        )
    tree["network"]["arguments"]["most"] = 0
    write_config(project / "tiny.yaml", tree)
    assert "while the network and the first examples were opened" in refusal("run", "tiny.yaml", code=1)


def test_training_is_told_to_take_smaller_batches(project):
    training = {"epochs": 1, "batch_size": 32, "num_slices": 1}
    write_config(project / "tiny.yaml", greedy_config(training=training))
    assert "does not bound it: lower `training.batch_size`" in refusal("run", "tiny.yaml", code=1)


def test_predictions_that_run_out_are_told_the_value_without_another_pass(project, monkeypatch):
    tree = greedy_config()
    tree["network"]["arguments"]["most"] = 64
    write_config(project / "tiny.yaml", tree)
    good("run", "tiny.yaml")
    monkeypatch.setattr(tiny_networks.Greedy, "forward", running_out(tiny_networks.Greedy.forward))
    assert refusal("predict", "store", "--data", "train.parquet", "--out", "new.parquet", code=1) == (
        "Error: The stage features-new ran out of memory with `memory_gb: 0.0002`; by its counts 0.0001 would fit: "
        "run the run's configuration with `--set memory_gb=0.0001`, then this command again."
    )


def running_out(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """From the first micro-batch of several examples on, nothing fits any more, not even one example."""
    is_full = False

    def tried(network: torch.nn.Module, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # as forward's
        nonlocal is_full
        is_full = is_full or len(input) > 1
        if is_full:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(network, input)

    return tried


def fitted(**options: Any) -> afterfit.Posterior:
    torch.manual_seed(0)
    network = greedy(NUM_INPUTS, 6, NUM_CLASSES, MOST).eval()
    items = [{"input": x, "label": label} for x, label in zip(*rows("train", 36), strict=True)]
    method = afterfit.Ella(num_landmarks=16, num_features=6, prior_precision=1.0, temperature=1.0)
    return afterfit.fit(network, items, method=method, num_shards=2, **options)


def same(left: afterfit.Posterior, right: afterfit.Posterior) -> bool:
    return all(
        left.store.read(place).digest == right.store.read(right.record.stages[stage]).digest
        for stage, place in left.record.stages.items()
    )


def test_a_fit_from_python_says_and_does_the_same(tmp_path):
    with pytest.raises(OutOfMemoryError, match=r"would fit: call `fit` again with `memory_gb=0.0001`, or with `fit_m"):
        fitted(memory_gb=PRESENT)
    with pytest.warns(UserWarning, match=r"the run goes on with `memory_gb: 0.0001`"):
        lowered = fitted(memory_gb=PRESENT, fit_memory=True, store=str(tmp_path))
    assert lowered.record.memory_gb == FITS
    assert same(lowered, fitted(memory_gb=FITS))


def test_a_gpu_that_is_not_there_is_refused_before_any_work_and_a_finished_run_needs_none(project, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    says = "Error: torch finds no GPU on this machine; leave out `--gpus`, or take a machine that has one."
    assert refusal("run", "tiny.yaml", "--gpus", "1") == says
    assert markers(project / "store") == {}
    good("run", "tiny.yaml")
    assert "Nothing was to be done" in good("run", "tiny.yaml", "--gpus", "1")
    assert refusal("predict", "store", "--data", "more.parquet", "--out", "new.parquet", "--gpus", "1") == says


def test_with_a_gpu_a_stage_is_held_against_the_device_that_its_arrays_are_on(project, monkeypatch):
    """The budget is above the GPU's memory; landmark rows are on the host, which has more."""
    monkeypatch.setattr(run_module, "check_gpu", lambda: None)
    monkeypatch.setattr(run_module, "memory_here", lambda *, has_gpu: Memory(machine_gb=512.0, gpu_gb=1e-6 * has_gpu))
    assert "The stage curvature holds" in refusal("run", "tiny.yaml", "--gpus", "1", code=1)


@pytest.mark.ray
def test_on_ray_the_worker_tells_it_and_the_run_goes_on(ray_address, tmp_path):
    with pytest.warns(UserWarning, match=r"curvature ran out of memory with `memory_gb: 0.0002`; the run goes on"):
        there = fitted(memory_gb=PRESENT, fit_memory=True, engine="ray", workers=1, store=str(tmp_path))
    assert same(there, fitted(memory_gb=FITS))
