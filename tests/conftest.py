"""What every test may ask for: real data and networks, one Ray, one object store, processes to be killed."""

import multiprocessing
import os
import urllib.request
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

# How long an example takes says how busy the machine is, and nothing about the program.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# No test cuts the power, and what is killed leaves its pages to the kernel. Tests of a full disk put theirs in place.
os.fsync = lambda _: None

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


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """A server of the S3 protocol on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A boto3 client with the empty buckets `data` and `fits`; everything that reads S3 finds the same server."""
    import boto3
    import s3fs

    # Its objects belong to the process: another test's would still be there.
    urllib.request.urlopen(urllib.request.Request(f"{s3_address}/moto-api/reset", method="POST")).close()
    given = {
        "AWS_ENDPOINT_URL": s3_address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    for name in ("data", "fits"):
        client.create_bucket(Bucket=name)
    return client
