"""One Ray for all the law tests of a session, and a server that forks processes to be killed."""

import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SOURCE = TESTS.parent / "pipeline"


@pytest.fixture(scope="session")
def importable() -> None:
    """Processes that tests start find the package and the toys."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SOURCE), str(TESTS)])


@pytest.fixture(scope="session")
def forks(importable: None) -> ForkServerContext:
    """Starts processes that have the toys imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["laws.toys"])
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
