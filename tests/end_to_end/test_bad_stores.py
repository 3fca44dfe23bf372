"""Damaged stores, full disks and missing permissions: one sentence with the remedy, which then works."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file

import afterfit
import tiny_networks
from afterfit.errors import ArtifactError
from afterfit.plan import bench
from tiny_networks import mlp
from tiny_project import (
    NUM_CLASSES,
    NUM_INPUTS,
    computed,
    config,
    good,
    markers,
    refusal,
    rows,
    skipped,
    write_config,
    write_project,
    write_rows,
)


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
def test_a_damaged_artifact_is_named_and_made_again_once_what_is_named_is_deleted(project, stage, pattern, harm):
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
