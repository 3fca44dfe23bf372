import torch

from afterfit.data import digits
from afterfit.data.checks import check_labels, check_numbers
from afterfit.data.indexed import IndexedExamples


def test_the_three_parts_of_the_digits_are_all_digits_once():
    from sklearn.datasets import load_digits

    parts = [digits.train(), digits.validation(), digits.test()]
    assert [len(part) for part in parts] == [1000, 297, 500]
    seen = sorted(tuple(item["pixel_values"].flatten().tolist()) for part in parts for item in part)
    assert seen == sorted(tuple(row) for row in (load_digits(return_X_y=True)[0] / 16).astype("float32").tolist())


def test_digits_are_pictures_in_the_unit_interval_with_all_ten_labels():
    examples = IndexedExamples(digits.train())
    batch = examples.batch(range(1000))
    assert batch.inputs["pixel_values"].shape == (1000, 1, 8, 8)
    assert batch.inputs["pixel_values"].dtype == torch.float32
    assert (batch.inputs["pixel_values"].min(), batch.inputs["pixel_values"].max()) == (0, 1)
    check_labels(examples, 10)
    assert torch.bincount(examples.targets()).min() > 80


def test_pictures_look_like_digits_but_have_no_label():
    examples = IndexedExamples(digits.pictures())
    batch = examples.batch(range(500))
    assert batch.targets is None
    assert batch.inputs["pixel_values"].shape == (500, 1, 8, 8)
    assert 0 <= batch.inputs["pixel_values"].min() < batch.inputs["pixel_values"].max() <= 1
    # Digits have an empty border column on both sides; photographs do not.
    assert batch.inputs["pixel_values"][..., 0].mean() > 0.2


def test_every_call_gives_the_same_data():
    assert IndexedExamples(digits.pictures()).identity() == IndexedExamples(digits.pictures()).identity()
    assert IndexedExamples(digits.train()).identity() != IndexedExamples(digits.test()).identity()


def test_diabetes_is_standardised_by_its_training_rows():
    examples = IndexedExamples(digits.diabetes_train())
    numbers = torch.cat([examples.batch(range(342)).inputs["x"], examples.targets()], dim=1).double()
    assert numbers.shape == (342, 11)
    # float32 rounds each of 342 numbers near 1 by at most 6e-8.
    torch.testing.assert_close(numbers.mean(dim=0), torch.zeros(11).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(numbers.std(dim=0, correction=0), torch.ones(11).double(), atol=1e-6, rtol=0)
    check_numbers(IndexedExamples(digits.diabetes_test()), 1)
    assert len(digits.diabetes_test()) == 100
