import os
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("AFTERFIT_DATA") or Path(__file__).parents[3] / ".." / "shared" / "data").resolve()


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory, monkeypatch):
    """Copies of this machine's user cache must not help a test, nor be left behind by one."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("AFTERFIT_CACHE", str(folder))
    return folder


@pytest.fixture
def shared(monkeypatch) -> Callable[[str], Path]:
    """Path of a real data set below the shared folder, which relative paths are then looked up below."""
    monkeypatch.setenv("AFTERFIT_DATA", str(SHARED))

    def find(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"{name} is not below {SHARED}; set AFTERFIT_DATA")
        return SHARED / name

    return find
