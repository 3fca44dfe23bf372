"""The same rows in every kind of file, folder, glob and store."""

import json
import os
import pickle

import pyarrow as pa
import pytest
import torch
from pyarrow import csv, feather, parquet

from afterfit.data.examples import open_examples
from afterfit.data.identity import check_unchanged
from afterfit.data.settings import DataSettings
from afterfit.errors import DataError

ROWS = 37
TABLE = pa.table(
    {
        "a": [number / 8 for number in range(ROWS)],
        "b": [float(number % 5) for number in range(ROWS)],
        "y": [number % 3 for number in range(ROWS)],
        "note": [f"row {number}" for number in range(ROWS)],
    }
)
COLUMNS = {"label": "y", "inputs": {"x": {"kind": "numeric", "columns": ["a", "b"]}}}


def write_stream(table, path):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def write_arrow(table, path):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def write_lines(table, path):
    path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))


WRITERS = {
    "data.parquet": lambda table, path: parquet.write_table(table, path, row_group_size=10),
    "data.arrow": write_arrow,
    "stream.arrow": write_stream,
    "data.feather": lambda table, path: feather.write_feather(table, str(path), compression="lz4"),
    "data.csv": lambda table, path: csv.write_csv(table, path),
    "data.jsonl": write_lines,
    "data.json": lambda table, path: path.write_text(json.dumps(table.to_pylist())),
}


def opened(path, **more):
    return open_examples(DataSettings.model_validate({"path": str(path), "columns": COLUMNS, **more}))


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_examples(name, tmp_path):
    WRITERS[name](TABLE, tmp_path / name)
    examples = opened(tmp_path / name)
    order = [30, 2, 2, 17, 0, 36]
    batch = examples.batch(order)
    assert examples.num_examples == ROWS
    assert batch.inputs["x"].tolist() == [[row / 8, row % 5] for row in order]
    assert batch.targets is not None
    assert batch.targets.tolist() == [row % 3 for row in order]
    assert batch.indexes.tolist() == order
    assert examples.targets().tolist() == TABLE["y"].to_pylist()


def test_a_folder_and_a_glob_are_their_files_one_after_another(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for number, start in enumerate(range(0, ROWS, 10)):
        parquet.write_table(TABLE.slice(start, 10), folder / f"part-{number}.parquet")
    (folder / "README.md").write_text("not data")
    (folder / "state.json").write_text("{}")
    for path in (folder, folder / "*.parquet", f"file://{folder}"):
        examples = opened(path)
        assert examples.batch([35, 1, 12]).inputs["x"].tolist() == [[35 / 8, 0], [1 / 8, 1], [12 / 8, 2]]
        assert examples.targets().tolist() == TABLE["y"].to_pylist()


def test_files_whose_types_were_inferred_differently_are_joined(tmp_path):
    (tmp_path / "0.csv").write_text("a,b,y\n1,2,0\n")
    (tmp_path / "1.csv").write_text("a,b,y\n1.5,2,1\n")
    assert opened(tmp_path / "*.csv").batch([1, 0]).inputs["x"].tolist() == [[1.5, 2], [1, 2]]


def test_relative_paths_are_found_below_the_data_folder(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    parquet.write_table(TABLE, tmp_path / "set" / "train.parquet")
    monkeypatch.setenv("AFTERFIT_DATA", str(tmp_path))
    assert opened("set/train.parquet").num_examples == ROWS


def test_a_path_that_is_missing_gives_way_to_the_hub_with_its_column_names(tmp_path):
    hub = tmp_path / "owner" / "set"
    hub.mkdir(parents=True)
    parquet.write_table(TABLE.rename_columns(["a", "b", "fine_label", "note"]), hub / "train.parquet")
    more = {"hub": str(hub), "hub_columns": {"y": "fine_label"}}
    from_hub = opened(tmp_path / "none.parquet", **more)
    assert from_hub.targets().tolist() == TABLE["y"].to_pylist()
    assert from_hub.batch([5, 3]).inputs["x"].tolist() == [[5 / 8, 0], [3 / 8, 3]]
    parquet.write_table(TABLE.slice(0, 4), tmp_path / "none.parquet")
    assert opened(tmp_path / "none.parquet", **more).num_examples == 4


def test_rows_are_skipped_taken_and_bounded(tmp_path):
    parquet.write_table(TABLE, tmp_path / "data.parquet")
    path = tmp_path / "data.parquet"
    assert opened(path, skip=30).targets().tolist() == TABLE["y"].to_pylist()[30:]
    assert opened(path, skip=3, take=5).targets().tolist() == TABLE["y"].to_pylist()[3:8]
    assert opened(path, skip=30, max_examples=100).num_examples == 7
    with pytest.raises(DataError, match="`take` asks for 100 rows, but there are 7"):
        opened(path, skip=30, take=100)


@pytest.mark.parametrize("name", ["data.parquet", "data.arrow", "data.csv"])
def test_batches_are_the_same_after_pickling_and_do_not_depend_on_their_company(name, tmp_path):
    WRITERS[name](TABLE, tmp_path / name)
    examples = opened(tmp_path / name, skip=2)
    first = examples.batch([5, 3])
    again = pickle.loads(pickle.dumps(examples)).batch([5, 3])
    singles = torch.cat([examples.batch([index]).inputs["x"] for index in (5, 3)])
    assert torch.equal(first.inputs["x"], again.inputs["x"])
    assert torch.equal(first.inputs["x"], singles)
    assert len(pickle.dumps(examples)) < 10_000  # the table itself is not sent


def test_the_identity_follows_the_data_and_not_the_place(tmp_path):
    one, two, other = tmp_path / "one", tmp_path / "two", tmp_path / "other"
    for folder, table in ((one, TABLE), (two, TABLE), (other, TABLE.slice(1))):
        folder.mkdir()
        parquet.write_table(table, folder / "data.parquet")
    here = opened(one / "data.parquet").identity()
    assert json.loads(json.dumps(here)) == here
    assert str(tmp_path) not in json.dumps(here)
    assert opened(two / "data.parquet").identity() == here
    assert opened(two).identity() == here
    assert opened(other / "data.parquet").identity() != here
    assert opened(one / "data.parquet", skip=1).identity() != here
    check_unchanged(opened(two), here)
    with pytest.raises(DataError, match=r"data file 'data.parquet' is not what this run began with"):
        check_unchanged(opened(other), here)


@pytest.mark.parametrize("name", ["data.parquet", "data.arrow"])
def test_a_file_that_changes_during_a_run_stops_it(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](TABLE, path)
    examples = opened(path)
    examples.batch([0])
    os.utime(path, ns=(1, 1))
    examples.batch([0])  # touched, but the same bytes
    changed = path.with_suffix(".new")
    WRITERS[name](TABLE.set_column(0, "a", pa.array([7.0] * ROWS)), changed)
    changed.replace(path)
    with pytest.raises(DataError, match=rf"data file '{name}' has changed since it was first read"):
        examples.batch([0])
    path.unlink()
    with pytest.raises(DataError, match="has gone since"):
        examples.batch([0])


def test_a_large_file_is_mapped_and_not_held_in_memory(tmp_path):
    rows = 200_000
    table = pa.table({"a": range(rows), "b": range(rows), "y": [0] * rows})
    parquet.write_table(table, tmp_path / "data.parquet", row_group_size=10_000)
    examples = opened(tmp_path / "data.parquet")
    examples.batch([0])
    before = pa.total_allocated_bytes()
    for index in range(0, rows, 9_999):
        assert examples.batch([index]).inputs["x"].tolist() == [[index, index]]
    assert pa.total_allocated_bytes() - before < 1 << 20  # the table takes 4.8 MB


def test_uncompressed_local_arrow_is_mapped_in_place(tmp_path, scratch):
    write_arrow(TABLE, tmp_path / "data.arrow")
    opened(tmp_path / "data.arrow").batch([1])
    assert not list(scratch.glob("tables/*"))
