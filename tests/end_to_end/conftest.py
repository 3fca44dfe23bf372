"""A finished tiny project, to be copied and then damaged."""

import shutil
from pathlib import Path

import pytest

from tiny_project import good, write_project


@pytest.fixture(scope="session")
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
