"""Each kind of bad input is one sentence that names what is wrong and what to do."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from afterfit.data.checks import check_labels, check_numbers
from afterfit.data.datafile import DataFile
from afterfit.data.examples import open_examples
from afterfit.data.indexed import IndexedExamples
from afterfit.data.settings import DataSettings
from afterfit.errors import ConfigError, DataError, StoreError


def opened(path, columns, **more):
    return open_examples(DataSettings.model_validate({"path": str(path), "columns": columns, **more}))


@pytest.fixture
def saved(tmp_path):
    def save(**columns):
        parquet.write_table(pa.table(columns), tmp_path / "data.parquet")
        return tmp_path / "data.parquet"

    return save


def test_a_missing_file_is_told_with_the_places_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv("AFTERFIT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"Found no data at 'none.parquet'") as caught:
        opened("none.parquet", {})
    assert str(tmp_path / "none.parquet") in str(caught.value)
    assert "shared/data/none.parquet" in str(caught.value)


def test_an_unknown_ending_is_refused(tmp_path):
    (tmp_path / "data.xlsx").write_text("")
    with pytest.raises(ConfigError, match=r"must be one of \.parquet"):
        opened(tmp_path / "data.xlsx", {})


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ConfigError, match="unknown scheme"):
        opened("nowhere://bucket/data.parquet", {})


def test_a_folder_of_several_kinds_asks_for_a_glob(tmp_path):
    (tmp_path / "a.csv").write_text("x\n1\n")
    (tmp_path / "b.jsonl").write_text('{"x": 1}')
    with pytest.raises(ConfigError, match="give a glob"):
        opened(tmp_path, {})


@pytest.mark.parametrize("ending", ["parquet", "arrow", "csv", "json", "jsonl"])
def test_a_file_that_is_not_what_it_says_is_named(ending, tmp_path):
    (tmp_path / f"data.{ending}").write_bytes(b'\x00\xff{"a"\n1,2\n3')
    with pytest.raises(DataError, match=rf"'data.{ending}' does not read as \.{ending}"):
        opened(tmp_path / f"data.{ending}", {"inputs": {"x": "a"}}).batch([0])


def test_an_empty_data_set_is_refused(saved, tmp_path):
    with pytest.raises(DataError, match="is empty"):
        opened(saved(x=pa.array([], pa.float64())), {"inputs": {"x": "x"}})
    (tmp_path / "data.csv").write_text("x\n")
    with pytest.raises(DataError, match="is empty"):
        opened(tmp_path / "data.csv", {"inputs": {"x": "x"}})
    with pytest.raises(DataError, match="lower `skip`"):
        opened(saved(x=[1.0]), {"inputs": {"x": "x"}}, skip=1)
    with pytest.raises(DataError, match="empty"):
        IndexedExamples([])


def test_an_unknown_column_names_the_nearest(saved):
    with pytest.raises(DataError, match=r"no column 'lable' in 'data.parquet'; did you mean 'label'"):
        opened(saved(label=[0], x=[1.0]), {"label": "lable", "inputs": {"x": "x"}})


@pytest.mark.parametrize("wrong", [-1, 3])
def test_labels_out_of_range_name_the_first_example(wrong, saved):
    examples = opened(saved(label=[0, 2, wrong], x=[1.0, 2.0, 3.0]), {"label": "label"})
    with pytest.raises(DataError, match=f"Example 2 has the label {wrong}, outside 0 to 2"):
        check_labels(examples, 3)
    check_labels(IndexedExamples([{"x": 1.0, "label": 2}]), 3)


def test_labels_that_are_no_integers_are_refused(saved):
    with pytest.raises(DataError, match="fractions where integers are needed"):
        opened(saved(label=[0.5], x=[1.0]), {"label": "label"}).targets()
    with pytest.raises(DataError, match="holds string, not numbers"):
        opened(saved(label=["cat"], x=[1.0]), {"label": "label"}).targets()
    with pytest.raises(DataError, match="one integer class"):
        IndexedExamples([{"x": 1.0, "label": 0.5}]).targets()
    with pytest.raises(DataError, match="name a `label`"):
        check_labels(IndexedExamples([{"x": 1.0, "target": 0.5}]), 2)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_numbers_that_are_not_finite_name_the_example(wrong, saved):
    path = saved(x=[1.0, 2.0, wrong], y=[wrong, 1.0, 1.0])
    examples = opened(path, {"target": "y", "inputs": {"x": "x"}}, skip=1)
    check_numbers(examples, 1)
    examples.batch([0])
    with pytest.raises(DataError, match=r"input 'x' of example 1 \(row 2 of 'data.parquet'\) is not finite"):
        examples.batch([0, 1])
    with pytest.raises(DataError, match="target of example 0 is not finite"):
        check_numbers(opened(path, {"target": "y"}), 1)
    with pytest.raises(DataError, match=r"The target of example 0 .* not finite"):
        opened(path, {"target": "y"}).batch([0])
    with pytest.raises(DataError, match="input 'x' of example 1 is not finite"):
        IndexedExamples([{"x": 1.0}, {"x": wrong}]).batch([0, 1])


def test_missing_values_name_the_row(saved):
    path = saved(x=[1.0, None], z=[[1, 2], [None, 2]])
    with pytest.raises(DataError, match=r"column 'x' has no value in row 1 of 'data.parquet'"):
        opened(path, {"inputs": {"x": "x"}}).batch([0, 1])
    with pytest.raises(DataError, match=r"column 'z' has no value in row 1 of 'data.parquet'"):
        opened(path, {"inputs": {"x": "z"}}).batch([0, 1])


def test_lists_of_different_lengths_name_the_row(saved):
    with pytest.raises(DataError, match="different lengths, 2 and 1 in row 1"):
        opened(saved(x=[[1, 2], [1]]), {"inputs": {"x": "x"}}).batch([0, 1])


def test_targets_of_another_width_are_refused(saved):
    examples = opened(saved(x=[1.0], y=[1.0], z=[2.0]), {"target": ["y", "z"]})
    check_numbers(examples, 2)
    with pytest.raises(DataError, match="targets have 2 numbers each, but the network has 3 outputs"):
        check_numbers(examples, 3)


def test_a_picture_that_does_not_decode_names_the_row(saved):
    path = saved(image=[b"no picture"])
    with pytest.raises(DataError, match=r"does not hold a picture that decodes in row 0 of 'data.parquet'"):
        opened(path, {"inputs": {"x": {"kind": "image", "column": "image"}}}).batch([0])
    raw = {"kind": "image", "column": "image", "decode": "raw", "shape": [1, 3, 3]}
    with pytest.raises(DataError, match=r"does not hold 1 x 3 x 3 pixels .* row 0 of 'data.parquet', but 10 values"):
        opened(path, {"inputs": {"x": raw}}).batch([0])


def test_data_without_answers_say_so_when_asked(saved):
    with pytest.raises(DataError, match="no label or target"):
        opened(saved(x=[1.0]), {"inputs": {"x": "x"}}).targets()
    with pytest.raises(DataError, match=r"no `label` or `target`"):
        IndexedExamples([{"x": 1.0}]).targets()


def test_items_that_do_not_fit_are_named():
    with pytest.raises(DataError, match="Item 0 of the data set is a tuple; each must be a mapping"):
        IndexedExamples([(1, 2)])
    with pytest.raises(DataError, match="Item 1 of the data set has other keys than item 0: y"):
        IndexedExamples([{"x": 1.0}, {"x": 1.0, "y": 2.0}]).batch([0, 1])
    with pytest.raises(DataError, match=r"'x' has shape \(1,\) in example 1 and \(2,\) in example 0"):
        IndexedExamples([{"x": [1.0, 2.0]}, {"x": [1.0]}]).batch([0, 1])
    with pytest.raises(DataError, match="'x' holds str in example 0, not numbers"):
        IndexedExamples([{"x": "text"}]).batch([0])
    with pytest.raises(DataError, match="both 'label' and 'target'"):
        IndexedExamples([{"x": 1.0, "label": 1, "target": 2.0}])
    with pytest.raises(DataError, match="no key but 'label'"):
        IndexedExamples([{"label": 1}])
    with pytest.raises(DataError, match="generator cannot be used as a data set"):
        IndexedExamples(item for item in [{"x": 1.0}])


def test_a_cache_folder_that_cannot_be_written_is_told(saved, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text(json.dumps("in the way"))
    monkeypatch.setenv("AFTERFIT_CACHE", str(blocked))
    with pytest.raises(StoreError, match="set AFTERFIT_CACHE to another folder"):
        opened(saved(x=[1.0]), {"inputs": {"x": "x"}})


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\); make it readable"):
        DataFile("data.csv", str(tmp_path), 0, "", 0).open()


def test_an_index_outside_is_refused(saved):
    examples = opened(saved(x=[1.0, 2.0]), {"inputs": {"x": "x"}}, skip=1)
    for index in (-1, 1):
        with pytest.raises(IndexError, match="from 0 to 0"):
            examples.batch([index])
