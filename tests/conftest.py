"""What every test may ask for: one thread, and where the real data and networks lie."""

import os
from pathlib import Path

import pytest
import torch

# Some numbers change with the thread count, and test processes share few cores.
torch.set_num_threads(1)

_SHARED = Path(__file__).resolve().parents[2] / "shared"


def _folder(variable: str, default: Path, what: str) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"no {what} at {folder}; set {variable}")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets."""
    return _folder("AFTERFIT_DATA", _SHARED / "data", "data sets")


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Folder of the pretrained networks."""
    return _folder("AFTERFIT_MODELS", _SHARED / "models", "pretrained networks")
