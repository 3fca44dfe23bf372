"""A store on disk, and one behind the S3 protocol on loopback."""

import os

import pytest
import torch

from afterfit.algebra import Result
from afterfit.store.directory import Store, open_store


@pytest.fixture
def store(tmp_path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture(scope="session")
def s3_endpoint():
    server_module = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def s3_uri(s3_endpoint):
    """A bucket that exists, reached as boto reaches it: by environment variables."""
    import boto3

    given = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    boto3.client("s3").create_bucket(Bucket="fits")
    yield "s3://fits/runs"
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture
def result() -> Result:
    """Two families, one of them empty, a table and facts; the same numbers each time."""
    import pyarrow as pa

    generator = torch.Generator().manual_seed(1)
    tiles = [(f"{number:05d}", torch.randn(3 + number, 4, generator=generator)) for number in range(3)]
    return Result(
        tensors={"image": tiles, "nothing": []},
        tables={"scores": pa.table({"name": ["nll", "ece"], "value": [0.25, 0.01]})},
        facts={"num_examples": 7, "scale": 0.1},
    )
