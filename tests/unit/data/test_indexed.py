"""Data sets of Python, as notebooks pass them to `afterfit.fit`."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from afterfit.data.indexed import IndexedExamples

ITEMS = [{"x": [float(n), 2.0], "mask": [1, 0], "label": n % 2} for n in range(7)]


class TorchDataset(torch.utils.data.Dataset):
    def __len__(self):
        return len(ITEMS)

    def __getitem__(self, index):
        return {name: torch.tensor(value) for name, value in ITEMS[index].items()}


def hugging_face():
    import datasets

    return datasets.Dataset.from_list(ITEMS)


SOURCES = {"list": lambda: ITEMS, "torch": TorchDataset, "hugging face": hugging_face}


@pytest.mark.parametrize("name", SOURCES)
def test_lists_torch_and_hugging_face_data_sets_are_the_same(name):
    examples = IndexedExamples(SOURCES[name]())
    batch = examples.batch([5, 3])
    assert batch.inputs["x"].tolist() == [[5, 2], [3, 2]]
    assert batch.inputs["mask"].dtype == torch.int64
    assert batch.targets is not None
    assert batch.targets.tolist() == [1, 1]
    assert examples.targets().tolist() == [n % 2 for n in range(7)]
    assert len(batch) == 2


def test_numbers_keep_their_type_and_pictures_become_unit_floats():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    items = [{"a": np.float32(1), "b": 1.0, "c": torch.ones(2, dtype=torch.bfloat16), "d": Image.fromarray(pixels)}]
    inputs = IndexedExamples(items).batch([0]).inputs
    kinds = {name: values.dtype for name, values in inputs.items()}
    assert kinds == {"a": torch.float32, "b": torch.float64, "c": torch.bfloat16, "d": torch.float32}
    assert torch.equal(inputs["d"][0], torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)


def test_targets_are_numbers_even_if_they_were_written_without_a_point():
    assert IndexedExamples([{"x": 1.0, "target": 2}]).targets().dtype == torch.float64
    assert IndexedExamples([{"x": 1.0, "target": [1.0, 2.0]}]).targets().shape == (1, 2)


def test_the_identity_is_of_the_contents():
    examples = IndexedExamples(ITEMS)
    same = IndexedExamples([dict(item) for item in ITEMS])
    other = IndexedExamples([*ITEMS[:-1], {**ITEMS[-1], "x": [6.0, 2.5]}])
    relabelled = IndexedExamples([*ITEMS[:-1], {**ITEMS[-1], "label": 1}])
    assert examples.identity() == same.identity()
    assert len({str(each.identity()) for each in (examples, other, relabelled)}) == 3


def test_chosen_rows_and_pickles_give_the_same_examples():
    examples = IndexedExamples(ITEMS, rows=[6, 0, 2])
    assert examples.targets().tolist() == [0, 0, 0]
    copy = pickle.loads(pickle.dumps(examples))
    assert copy.batch([0]).inputs["x"].tolist() == [[6, 2]]
    assert copy.identity() == examples.identity()
