"""What every test may ask for: one thread, real data and networks, one Ray, and processes to be killed."""

import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import hypothesis
import pytest
import torch

# How long an example takes says how busy the machine is, and nothing about the program.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# Some numbers change with the thread count, and test processes share few cores.
torch.set_num_threads(1)

_ROOT = Path(__file__).resolve().parents[1]
_SHARED = _ROOT.parent / "shared"


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


@pytest.fixture(scope="session")
def importable() -> None:
    """Processes that tests start find the package and what the tests have made for them."""
    folders = ("pipeline", "tests", "jobs/benchmarks")
    os.environ["PYTHONPATH"] = os.pathsep.join(str(_ROOT / folder) for folder in folders)


@pytest.fixture(scope="session")
def forks(importable: None) -> ForkServerContext:
    """Starts processes that have the toys and the small fits imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["laws.toys", "doomed"])
    return context


@pytest.fixture(scope="session")
def ray_address(importable: None) -> Iterator[str]:
    """A running Ray with six logical CPUs. This process is connected; the address is for others."""
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # loopback only
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    import ray

    context = ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=6)
    yield context.address_info["address"]
    ray.shutdown()
