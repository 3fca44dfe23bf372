"""Every kind of bad input is one sentence with the remedy, and what was finished stays finished."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import afterfit
from afterfit.errors import NetworkError
from tiny_networks import mlp
from tiny_project import (
    NUM_CLASSES,
    NUM_INPUTS,
    call,
    computed,
    config,
    data,
    good,
    markers,
    one_sentence,
    refusal,
    rows,
    skipped,
    write_config,
    write_rows,
)

BEFORE_VALIDATION = {"point_estimate", "landmarks", "gram", "basis", "curvature"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("memry_gb=1", "did you mean 'memory_gb'?"),
        ("data.train.colums={}", "did you mean 'columns'?"),
        ("method.num_feature=3", "There is no field 'method.num_feature'"),
        ("memory_gb=much", "memory_gb: input should be a valid number"),
        ("num_shards=[2]", "num_shards: "),
        ("method.num_landmarks=many", "method.num_landmarks: "),
        ("data.train.path=none.parquet", "Found no data at 'none.parquet'"),
        ("network.weights=none.safetensors", "none.safetensors"),
        ("network.arguments.num_outputs=2", "In the data set 'train': Example "),
        ("network.arguments.num_inputs=4", "fails on the first example of the data set 'train'"),
        ("data.train.take=400", "400"),
        ("method.num_landmarks=109", "have only 108 rows; lower it"),
        ("method.prior_precision=-1", "prior_precision"),
        ("method.prior_precision=0", "prior_precision"),
        ("method.temperature=.nan", "temperature"),
        ("method.data_fraction=1.5", "data_fraction"),
    ],
)
def test_a_wrong_choice_costs_nothing_that_was_finished(project, change, says):
    before = markers(project / "store")
    assert says in refusal("run", "tiny.yaml", "--set", change)
    after = markers(project / "store")
    assert before.items() <= after.items()
    assert "Nothing was to be done" in good("run", "tiny.yaml")


def test_the_command_itself_says_one_sentence_and_debug_shows_where(project, importable):
    write_config(project / "wrong.yaml", config(data={"train": {"path": "none.parquet"}}))
    command = [sys.executable, "-m", "afterfit.cli", "run", "wrong.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Found no data at 'none.parquet'" in one_sentence(done.stderr)
    shown = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False)
    assert shown.returncode == 2
    assert "Traceback (most recent call last)" in shown.stderr
    assert "Error: Found no data" in shown.stderr


def test_no_data_are_refused(project):
    write_rows(project / "train.parquet", torch.zeros(0, NUM_INPUTS), [])
    assert "is empty" in refusal("run", "tiny.yaml")


@pytest.mark.parametrize(("name", "label"), [("train", -1), ("validation", NUM_CLASSES), ("test", NUM_CLASSES)])
def test_labels_outside_are_found_before_anything_runs(project, name, label):
    numbers, labels = rows(name, 20)
    write_rows(project / f"{name}.parquet", numbers, [*labels[:19], label])
    before = markers(project / "store")
    says = refusal("run", "tiny.yaml")
    assert f"In the data set '{name}': Example 19 has label {label}, but" in says
    assert "0 to 2" in says
    assert markers(project / "store") == before


def test_a_number_that_is_not_finite_is_named_and_what_does_not_read_it_is_kept(project):
    whole = (project / "validation.parquet").read_bytes()
    numbers, labels = rows("validation", 20)
    numbers[7, 2] = float("nan")
    write_rows(project / "validation.parquet", numbers, labels)
    says = refusal("run", "tiny.yaml", "--set", "method.num_features=5")
    assert "The input 'input' of example 7 (row 7 of 'validation.parquet') is not finite" in says
    (project / "validation.parquet").write_bytes(whole)
    again = good("run", "tiny.yaml", "--set", "method.num_features=5")
    assert skipped(again) == BEFORE_VALIDATION
    assert "features-validation" in computed(again)


def test_a_network_that_is_not_finite_is_refused(project):
    network = mlp(NUM_INPUTS, 6, NUM_CLASSES)
    with torch.no_grad():
        network[0].weight[1, 2] = float("nan")
    save_file(network.state_dict(), project / "weights.safetensors")
    says = refusal("run", "tiny.yaml", "--set", "network.weights=weights.safetensors")
    assert "'0.weight' of the network is not finite" in says
    examples = [{"input": torch.zeros(NUM_INPUTS), "label": 0}]
    with pytest.raises(NetworkError, match=r"'0.weight' of the network is not finite"):
        afterfit.fit(network.eval(), examples, method=afterfit.Ella(num_landmarks=1, num_features=1))


def test_a_network_in_train_mode_is_refused_and_not_changed():
    network = mlp(NUM_INPUTS, 6, NUM_CLASSES).eval()
    network[2].train()
    examples = [{"input": torch.zeros(NUM_INPUTS), "label": 0}]
    with pytest.raises(NetworkError, match=r"in train mode \('2' is\); call `network.eval\(\)` first"):
        afterfit.fit(network, examples, method=afterfit.Ella(num_landmarks=1, num_features=1))
    assert network[2].training


def test_more_features_than_landmarks_or_rank_are_lowered_and_it_is_said_once(project):
    more = good("run", "tiny.yaml", "--set", "method.num_features=50")
    assert " ".join(more.split()).count("`num_features` is lowered from 50 to 20") == 1
    # All 108 rows of a network with 57 weights.
    rank = good("run", "tiny.yaml", "--set", "method.num_features=90", "--set", "method.num_landmarks=108")
    assert " ".join(rank.split()).count("`num_features` is lowered from 90 to") == 1
    # Small tiles and little memory make several units of one basis: still one note.
    many = good("run", "tiny.yaml", "--set", "method.num_features=40", "--set", "memory_gb=1.8e-5")
    assert " ".join(many.split()).count("`num_features` is lowered from 40 to 20") == 1


def test_a_rank_above_the_probes_is_refused(project):
    tree = config(method={"name": "ggn_nystrom", "num_probes": 10, "rank": 11})
    write_config(project / "sketch.yaml", tree)
    assert "`rank`" in refusal("plan", "sketch.yaml", code=1)


def test_bad_data_for_predictions_leave_the_run_as_it_is(project):
    before = markers(project / "store")
    numbers, _ = rows("more", 12)
    write_rows(project / "narrow.parquet", numbers[:, :4])
    says = refusal("predict", "store", "--data", "narrow.parquet", "--out", "p.parquet")
    assert "fails on the first example of the data set 'new'" in says
    numbers[3, 1] = float("inf")
    write_rows(project / "infinite.parquet", numbers)
    says = refusal("predict", "store", "--data", "infinite.parquet", "--out", "p.parquet")
    assert "of example 3 (row 3 of 'infinite.parquet') is not finite" in says
    assert "names no file" in refusal("predict", "store", "--data", "more.parquet", "--out", ".")
    assert not (project / "p.parquet").exists()
    assert before.items() <= markers(project / "store").items()


def test_bad_data_for_an_extension_leave_the_run_as_it_is(project):
    numbers, labels = rows("more", 12)
    write_rows(project / "wrong.parquet", numbers, [*labels[:11], 9])
    assert "Example 11 has label 9" in refusal("extend", "store", "--data", "wrong.parquet")
    assert "Found no data" in refusal("extend", "store", "--data", "none.parquet")
    assert call("status", "store").exit_code == 0
    assert "Nothing was to be done" in good("run", "tiny.yaml")


def test_a_module_that_is_no_network_is_refused(project):
    write_config(project / "wrong.yaml", config(network={"factory": "tiny_project:config"}))
    assert "must return a torch.nn.Module" in refusal("run", "wrong.yaml")
    with pytest.raises(NetworkError, match="no weights"):
        afterfit.fit(nn.Tanh().eval(), [{"input": torch.zeros(2), "label": 0}], method=afterfit.Ella())


def test_settings_of_data_are_what_the_files_hold(project):
    tree = config()
    tree["data"]["train"] = data("train") | {"columns": {"label": "labell"}}
    write_config(project / "wrong.yaml", tree)
    assert "did you mean 'label'" in refusal("run", "wrong.yaml")
