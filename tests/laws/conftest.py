"""One Ray for all the law tests of a session: local, loopback, without dashboard."""

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "pipeline"


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """A running Ray with six logical CPUs; the address is for other drivers on this machine."""
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SOURCE), str(Path(__file__).parent)])
    import afterfit.engine.ray  # noqa: F401  (its settings come before Ray's import)
    import ray

    with warnings.catch_warnings():
        context = ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=6)
    yield context.address_info["address"]
    ray.shutdown()
