"""Factories: data sets in memory, and iterables that are cut once into a store."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from afterfit.data import cut as cutting
from afterfit.data.examples import open_examples
from afterfit.data.settings import DataSettings
from afterfit.errors import ConfigError, DataError
from afterfit.store.directory import open_store

ROWS = 300


class Source:
    """What the factories below give; counts the passes over it."""

    passes = 0


def item(number):
    pixels = np.full((1, 2, 2), number, np.float32)
    return {"x": pixels, "ids": [number, number + 1], "label": number % 3}


def stream():
    Source.passes += 1
    yield from map(item, range(ROWS))


class Lengthy:
    def __len__(self):
        return ROWS

    def __iter__(self):
        return stream()


@pytest.fixture(autouse=True)
def factories(monkeypatch):
    Source.passes = 0
    module = ModuleType("factories_of_a_test")
    vars(module).update(
        stream=stream,
        lengthy=Lengthy,
        items=lambda: [item(number) for number in range(ROWS)],
        pictures=lambda: [
            {"image": Image.fromarray(np.full((2, 3), number, np.uint8)), "y": number} for number in range(9)
        ],
        uneven=lambda: iter([{"x": 1.0}, {"y": 1.0}]),
        mixed=lambda: iter([{"x": 1.0}, {"x": "one"}]),
        number=lambda: 3,
        empty=list,
    )
    monkeypatch.setitem(sys.modules, "factories_of_a_test", module)
    monkeypatch.setattr(cutting, "PART_ROWS", 128)


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


def opened(name, shelf=None, columns=None, **more):
    values = {"factory": f"factories_of_a_test:{name}", "columns": columns or {"label": "label"}, **more}
    return open_examples(DataSettings.model_validate(values), shelf=shelf, place="data/train")


def test_an_iterable_is_cut_once_and_then_read_in_any_order(store):
    examples = opened("stream", store, max_examples=250)
    assert examples.num_examples == 250
    batch = examples.batch([249, 0, 130])
    assert torch.equal(batch.inputs["x"], torch.tensor([249.0, 0, 130]).reshape(3, 1, 1, 1).expand(3, 1, 2, 2))
    assert batch.inputs["ids"].tolist() == [[249, 250], [0, 1], [130, 131]]
    assert examples.targets().tolist() == [number % 3 for number in range(250)]
    again = opened("stream", store, max_examples=250)
    assert torch.equal(again.batch([249, 0, 130]).inputs["x"], batch.inputs["x"])
    assert again.identity() == examples.identity()
    assert Source.passes == 1
    parts = [place for place in store.places() if not place.endswith("index")]
    assert [store.read(place).facts["rows"] for place in parts] == [128, 122]


def test_a_cut_that_was_interrupted_begins_again_and_keeps_its_parts(store):
    class FullError(Exception):
        pass

    class Breaking:
        def find(self, place):
            return store.find(place)

        def write(self, place, result):
            if place.endswith("00001"):
                raise FullError
            return store.write(place, result)

    with pytest.raises(FullError):
        opened("lengthy", Breaking())
    examples = opened("lengthy", store)
    assert Source.passes == 2
    assert examples.targets().tolist() == [number % 3 for number in range(ROWS)]


def test_an_iterable_with_a_length_needs_no_bound_but_one_without_does(store):
    assert opened("lengthy", store).num_examples == ROWS
    with pytest.raises(ConfigError, match="set `max_examples`"):
        opened("stream", store)
    assert opened("stream", store, skip=10, max_examples=20).batch([0]).inputs["ids"].tolist() == [[10, 11]]
    with pytest.raises(ConfigError, match="open it through a store"):
        opened("stream", None, max_examples=3)


def test_a_data_set_in_memory_equals_its_cut(store):
    direct, cut = opened("items"), opened("lengthy", store)
    order = [299, 5, 3]
    assert direct.num_examples == ROWS
    assert torch.equal(direct.batch(order).inputs["x"], cut.batch(order).inputs["x"])
    assert torch.equal(direct.targets(), cut.targets())
    assert opened("items", skip=4, take=2).batch([1]).inputs["ids"].tolist() == [[5, 6]]


def test_items_can_be_read_by_columns(store):
    columns = {"target": "y", "inputs": {"pixel_values": {"kind": "image", "column": "image", "channels": 1}}}
    examples = opened("pictures", columns=columns)
    batch = examples.batch([8, 2])
    assert batch.inputs["pixel_values"].shape == (2, 1, 2, 3)
    assert batch.inputs["pixel_values"].flatten(1).unique(dim=1).tolist() == [
        [np.float32(8 / 255)],
        [np.float32(2 / 255)],
    ]
    assert batch.targets is not None
    assert batch.targets.tolist() == [8, 2]
    assert examples.identity() == opened("pictures", columns=columns).identity()


def test_streaming_from_the_hub_is_cut_too(store, tmp_path):
    import pyarrow as pa

    hub = tmp_path / "set"
    hub.mkdir()
    parquet.write_table(
        pa.table({"features": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "fine": [0, 1, 2]}), hub / "train.parquet"
    )
    values = {
        "hub": str(hub),
        "streaming": True,
        "max_examples": 2,
        "hub_columns": {"x": "features", "label": "fine"},
        "columns": {"label": "label"},
    }
    examples = open_examples(DataSettings.model_validate(values), shelf=store, place="data")
    assert examples.batch([1, 0]).inputs["x"].tolist() == [[3, 4], [1, 2]]
    assert examples.targets().tolist() == [0, 1]


def test_factories_that_cannot_be_used_are_told(store):
    with pytest.raises(ConfigError, match="cannot be imported"):
        opened("none")
    with pytest.raises(ConfigError, match="gave a int"):
        opened("number", store)
    with pytest.raises(DataError, match="empty"):
        opened("empty")
    with pytest.raises(DataError, match=r"Item 1 of .* has other keys than item 0: x, y"):
        opened("uneven", store, max_examples=2)
    with pytest.raises(DataError, match=r"values of 'x' in items 0 to 1 .* not of one kind"):
        opened("mixed", store, max_examples=2)
