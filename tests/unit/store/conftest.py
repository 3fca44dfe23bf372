"""A store on disk, and one behind the S3 protocol on loopback."""

import pytest
import torch

from afterfit.algebra import Result
from afterfit.store.directory import Store, open_store


@pytest.fixture
def store(tmp_path) -> Store:
    return open_store(str(tmp_path / "store"))


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
