"""What is made once: a finished tiny project, to be copied and then damaged, and the small fits that nobody killed."""

import shutil
from collections.abc import Callable
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import NamedTuple

import pytest

from doomed import Doom, Line, digests_of, lines_of, start
from tiny_project import good, write_project


class Uninterrupted(NamedTuple):
    """A run that nobody killed, in-process and with every save."""

    uri: str
    digests: dict[str, str]
    lines: list[Line]

    def moment(self, kind: str, *words: str) -> str:
        """The middle one of the moments of a kind that have these words."""
        found = [
            f"{line.kind} {line.subject}"
            for line in self.lines
            if line.kind == kind and all(word in line.subject for word in words)
        ]
        return found[len(found) // 2]


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory, forks: ForkServerContext) -> Callable[[str], Uninterrupted]:
    """Name of a small fit -> its run."""
    folder = tmp_path_factory.mktemp("uninterrupted")

    @cache
    def of(fit: str) -> Uninterrupted:
        uri, log = str(folder / fit), folder / f"{fit}.log"
        assert start(forks, fit, uri, Doom(log=log)) == 0
        return Uninterrupted(uri, digests_of(log), list(lines_of(log)))

    return of


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
