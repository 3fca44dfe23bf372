"""Data in an object store, by the S3 protocol against a server on loopback."""

import pyarrow as pa
import pytest
from pyarrow import parquet

from afterfit.data.examples import open_examples
from afterfit.data.settings import DataSettings
from afterfit.errors import DataError

TABLE = pa.table({"x": [1.0, 2.0, 3.0, 4.0], "label": [0, 1, 2, 0]})


@pytest.fixture
def put(s3):
    """Writes a table as an object of the bucket `data`; two are there."""

    def write(name, table):
        sink = pa.BufferOutputStream()
        parquet.write_table(table, sink)
        s3.put_object(Bucket="data", Key=name, Body=sink.getvalue().to_pybytes())

    write("set/0.parquet", TABLE.slice(0, 3))
    write("set/1.parquet", TABLE.slice(3))
    return write


def opened(path):
    return open_examples(DataSettings.model_validate({"path": path, "columns": {"label": "label"}}))


@pytest.mark.parametrize(
    ("path", "rows"), [("s3://data/set", 4), ("s3://data/set/*.parquet", 4), ("s3://data/set/0.parquet", 3)]
)
def test_objects_folders_and_globs_are_read(path, rows, put):
    examples = opened(path)
    assert examples.num_examples == rows
    assert examples.targets().tolist() == TABLE["label"].to_pylist()[:rows]
    batch = examples.batch(range(rows - 1, -1, -1))
    assert batch.inputs["x"].tolist() == TABLE["x"].to_pylist()[:rows][::-1]


def test_the_identity_is_by_etag_and_a_changed_object_is_noticed_when_it_is_opened(put):
    examples = opened("s3://data/set")
    files = examples.identity()["origin"]["files"]
    assert [file["name"] for file in files] == ["0.parquet", "1.parquet"]
    assert all(file["digest"].startswith("etag:") for file in files)
    put("set/1.parquet", pa.table({"x": [9.0], "label": [0]}))
    examples.batch([0])
    with pytest.raises(DataError, match=r"data file '1.parquet' has changed"):
        examples.batch([3])
    assert opened("s3://data/set").identity() != examples.identity()


def test_a_missing_object_is_told(put):
    with pytest.raises(DataError, match="Found no data at 's3://data/none'"):
        opened("s3://data/none")
    with pytest.raises(DataError, match="s3://elsewhere/none"):
        opened("s3://elsewhere/none")
