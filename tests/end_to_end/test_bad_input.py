"""Every kind of bad input is one sentence with the remedy, and what was finished stays finished."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

import afterfit
import tiny_networks
from afterfit.errors import ArtifactError, NetworkError
from afterfit.plan import bench
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
    write_project,
    write_rows,
)

BEFORE_VALIDATION = {"point_estimate", "landmarks", "gram", "basis", "curvature"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A project whose run is finished; tests get copies."""
    folder = write_project(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        good("run", "tiny.yaml")
    return folder


@pytest.fixture
def project(finished, tmp_path, monkeypatch) -> Path:
    """A copy of the finished project, and the place to be."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    return folder


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


@pytest.mark.parametrize(
    ("name", "label"), [("train", -1), ("validation", NUM_CLASSES), ("test", NUM_CLASSES)]
)
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


# Stores.


def _places(project: Path) -> dict[str, str]:
    return json.loads((project / "store" / "run.json").read_text())["stages"]


def _file(project: Path, stage: str, pattern: str) -> Path:
    return next(iter(sorted((project / "store" / _places(project)[stage]).rglob(pattern))))


def _digests(project: Path) -> dict[str, str]:
    return {place: digest for place, (_, digest) in markers(project / "store").items()}


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-70])


@pytest.mark.parametrize(
    ("stage", "pattern", "harm"),
    [
        ("gram", "*eigenvectors.arrow", _flip),  # of the stage itself
        ("gram", "*eigenvectors.arrow", _truncate),
        ("basis", "*.arrow", _flip),  # of a piece
        ("basis", "*.arrow", Path.unlink),
        ("landmarks", "*.parquet", _truncate),
        ("basis", "unit/*/manifest.json", _flip),
        ("basis", "unit/*/manifest.json", Path.unlink),
    ],
)
def test_a_damaged_artifact_is_named_and_made_again_once_what_is_named_is_deleted(
    project, stage, pattern, harm
):
    before = _digests(project)
    file = _file(project, stage, pattern)
    harm(file)
    # Read again by what another choice needs.
    change = "method.complement=prior" if stage == "basis" else "method.num_features=4"
    says = refusal("run", "tiny.yaml", "--set", change, code=1)
    for folder in re.findall(r"the folder (\S+)", says):
        shutil.rmtree(project / "store" / folder)
    for name in re.findall(r"the file (\S+)", says):
        (project / "store" / name).unlink()
    assert not file.exists()
    assert computed(good("run", "tiny.yaml")) == {stage}
    assert before.items() <= _digests(project).items()
    good("run", "tiny.yaml", "--set", change)


def test_a_damaged_marker_stops_a_plan_and_a_run_with_the_folder_to_delete(project):
    place = _places(project)["curvature"]
    _truncate(project / "store" / place / "manifest.json")
    for command in ("plan", "run"):
        assert f"delete the folder {place} of the store" in refusal(command, "tiny.yaml", code=1)
    shutil.rmtree(project / "store" / place)
    assert computed(good("run", "tiny.yaml")) == {"curvature"}


def test_a_store_of_another_format_is_refused_and_left_as_it_is(project):
    marker = project / "store" / _places(project)["basis"] / "manifest.json"
    content = marker.read_text()
    marker.write_text(json.dumps({**json.loads(content), "format": 99}))
    for command in (["run", "tiny.yaml"], ["status", "store"]):
        says = refusal(*command, code=1)
        assert "is in store format 99 and this version reads format 1: use the version of afterfit" in says
    marker.write_text(content)
    assert "Nothing was to be done" in good("run", "tiny.yaml")


@pytest.mark.parametrize("name", ["run.json", "fit.json"])
@pytest.mark.parametrize("content", ['{"format": 99}', "[]", '{"format": 1', '{"format": 1}'])
def test_a_record_of_another_version_or_damaged_is_refused_and_running_again_mends_it(project, name, content):
    (project / "store" / name).write_text(content)
    if name == "run.json":
        says = refusal("status", "store", code=1)
        refusal("predict", "store", "--data", "test.parquet", "--out", "p.parquet", code=1)
    else:
        with pytest.raises(ArtifactError) as caught:
            afterfit.load("store")
        says = str(caught.value)
    assert name in says
    assert "again" in says
    assert "Nothing was to be done" in good("run", "tiny.yaml")
    good("status", "store")
    afterfit.load("store")


def test_a_store_of_another_layout_is_refused(project, monkeypatch):
    """The code of the network has changed since the fit."""
    command = ("predict", "store", "--data", "more.parquet", "--out", "p.parquet")
    with monkeypatch.context() as patch:
        patch.setattr(tiny_networks, "mlp", lambda **sizes: mlp(**{**sizes, "num_hidden": 7}))
        assert "has other weights than the store" in refusal(*command, code=1)
    bench._network.cache_clear()  # code does not change within a process
    assert "Nothing was to be done" in good("run", "tiny.yaml")
    good("predict", "store", "--data", "more.parquet", "--out", "p.parquet")


def test_weights_that_were_exchanged_since_the_fit_are_noticed(project):
    tree = config(store="other")
    tree["network"]["weights"] = "weights.safetensors"
    write_config(project / "weights.yaml", tree)
    save_file(mlp(NUM_INPUTS, 6, NUM_CLASSES).state_dict(), project / "weights.safetensors")
    good("run", "weights.yaml")
    afterfit.load("other")
    save_file(mlp(NUM_INPUTS, 6, NUM_CLASSES).state_dict(), project / "weights.safetensors")
    says = refusal("predict", "other", "--data", "more.parquet", "--out", "p.parquet", code=1)
    assert "The network's files are not those that the store" in says
    with pytest.raises(ArtifactError, match="The network's files are not those that the store"):
        afterfit.load("other")


def test_data_that_change_under_a_run_are_new_data(project):
    numbers, labels = rows("other", 20)
    write_rows(project / "test.parquet", numbers, labels)
    assert computed(good("run", "tiny.yaml")) == {"features-test", "predictions-test", "scores"}


# Disks.


def test_a_full_disk_is_said_and_the_same_command_goes_on(project, monkeypatch):
    shutil.rmtree(project / "store")
    synced = []
    with monkeypatch.context() as patch:
        fsync = os.fsync

        def full(handle: int) -> None:
            synced.append(handle)
            if len(synced) > 60:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(handle)

        patch.setattr(os, "fsync", full)
        says = refusal("run", "tiny.yaml", code=1)
    assert "the disk is full. Free some space and run the same command again; what is done is kept." in says
    done = {place.split("/")[0] for place in markers(project / "store") if place.count("/") == 1}
    assert "landmarks" in done
    assert "scores" not in done
    assert skipped(good("run", "tiny.yaml")) == done


def test_a_cache_that_is_full_is_said(project, monkeypatch, tmp_path):
    write_rows(project / "train.parquet", *rows("train again", 36))
    monkeypatch.setenv("AFTERFIT_CACHE", str(tmp_path / "cache"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        says = refusal("run", "tiny.yaml", code=1)
    assert "free space there or set AFTERFIT_CACHE to another folder" in says


@pytest.mark.parametrize("where", ["tiny.yaml", "tiny.yaml/below"])
def test_a_store_in_the_place_of_a_file_is_refused(project, where):
    says = refusal("run", "tiny.yaml", "--store", where, code=1)
    assert "part of the path is a file" in says
    assert yaml.safe_load((project / "tiny.yaml").read_text()) == config()


@pytest.fixture
def ordinary(monkeypatch, tmp_path_factory) -> Iterator[Path]:
    """A project in a folder that everybody may read; permissions hold for the tests of root as well."""
    folder = Path(tempfile.mkdtemp(prefix="afterfit-readable-"))
    folder.chmod(0o755)
    monkeypatch.chdir(write_project(folder))
    good("run", "tiny.yaml")
    (folder / "cache").mkdir()
    (folder / "cache").chmod(0o777)
    monkeypatch.setenv("AFTERFIT_CACHE", str(folder / "cache"))
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    yield folder
    if is_root:
        os.seteuid(0)
    for each in (folder, *folder.rglob("*")):
        if each.is_dir():
            each.chmod(0o755)
    shutil.rmtree(folder)


def test_without_permission_a_store_is_read_but_not_written(ordinary):
    if os.geteuid() != 65534:
        for each in [ordinary / "store", *(ordinary / "store").rglob("*")]:
            each.chmod(0o555 if each.is_dir() else 0o444)
    assert good("plan", "tiny.yaml").count("done") >= 13
    good("status", "store")
    says = refusal("run", "tiny.yaml", "--set", "method.num_features=5", code=1)
    assert "permission is denied. Change the owner or the mode, or take another store (--store)." in says


def test_without_permission_data_and_configuration_are_said_to_be_unreadable(ordinary):
    uid = os.geteuid()
    if uid == 65534:
        os.seteuid(0)
    (ordinary / "test.parquet").chmod(0)
    (ordinary / "secret.yaml").write_text("")
    (ordinary / "secret.yaml").chmod(0)
    os.seteuid(uid)
    assert "Permission denied" in refusal("run", "tiny.yaml")
    assert "cannot be read (Permission denied)" in refusal("run", "secret.yaml")


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
