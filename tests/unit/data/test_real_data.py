"""The real data sets, read as a configuration would, against an independent reading of the same files."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from afterfit.data.checks import check_labels, check_numbers
from afterfit.data.examples import open_examples
from afterfit.data.settings import DataSettings

MNIST = {"kind": "image", "column": "image", "decode": "raw", "shape": [1, 28, 28]}


def opened(path, columns, **more):
    return open_examples(DataSettings.model_validate({"path": path, "columns": columns, **more}))


def test_cifar_pictures_are_exact_to_the_pixel(shared):
    path = shared("cifar10/train.parquet")
    image = {"kind": "image", "column": "image"}
    examples = opened("cifar10/train.parquet", {"label": "label", "inputs": {"pixel_values": image}})
    assert examples.num_examples == 20000
    order = [19999, 0, 4321, 2500, 2499]
    batch = examples.batch(order)
    assert batch.targets is not None
    stored = parquet.read_table(path).take(order).to_pydict()
    for got, expected, label, target in zip(
        batch.inputs["pixel_values"], stored["image"], stored["label"], batch.targets, strict=True
    ):
        pixels = np.asarray(Image.open(BytesIO(expected)).convert("RGB"))
        assert torch.equal(got, torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255)
        assert int(target) == label
    check_labels(examples, 10)
    assert torch.bincount(examples.targets()).tolist() == [2000] * 10


def test_scaling_is_the_nearest_float32_to_the_exact_value(shared):
    path = shared("cifar10/test.parquet")
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    image = {"kind": "image", "column": "image", "mean": mean, "std": std}
    got = opened("cifar10/test.parquet", {"inputs": {"x": image}}).batch([7]).inputs["x"][0]
    stored = parquet.read_table(path, columns=["image"]).column(0)[7].as_py()
    exact = np.asarray(Image.open(BytesIO(stored)).convert("RGB")).astype(np.float64) / 255
    expected = torch.from_numpy(((exact - mean) / std).transpose(2, 0, 1)).float()
    # The factor 1/255 is rounded once more than a division; the difference may show in the last bit.
    torch.testing.assert_close(got, expected, rtol=2**-23, atol=0)
    assert (got == expected).float().mean() > 0.99


def test_cifar100_is_read_as_cifar10_is(shared):
    shared("cifar100_ood/test.parquet")
    image = {"kind": "image", "column": "image", "resize": [16, 24]}
    examples = opened("cifar100_ood/test.parquet", {"inputs": {"pixel_values": image}}, max_examples=50)
    assert examples.batch(range(50)).inputs["pixel_values"].shape == (50, 3, 16, 24)
    assert examples.batch([1]).targets is None


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_raw_pixels_are_the_bytes(name, shared):
    path = shared(f"{name}/test.parquet")
    examples = opened(f"{name}/test.parquet", {"label": "label", "inputs": {"pixel_values": MNIST}})
    got = examples.batch(range(9990, 10000)).inputs["pixel_values"]
    stored = parquet.read_table(path, columns=["image"]).column(0).to_pylist()[9990:]
    expected = np.stack([np.frombuffer(value, np.uint8).reshape(1, 28, 28) for value in stored])
    assert torch.equal(got, torch.from_numpy(expected).float() / 255)
    check_labels(examples, 10)


def test_mnist_labels_are_known(shared):
    shared("mnist/train.parquet")
    examples = opened("mnist/train.parquet", {"label": "label", "inputs": {"x": MNIST}})
    assert examples.num_examples == 60000
    assert examples.targets()[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


def test_boston_is_standardised_by_the_training_rows_of_its_split(shared):
    folder = shared("uci_boston")
    features = [f"x{number}" for number in range(13)]
    table = parquet.read_table(folder / "data.parquet").to_pandas()
    splits = parquet.read_table(folder / "splits.parquet").to_pandas()
    known = table.iloc[splits[(splits.split == 7) & (splits.role == "train")].row]
    for role, count in (("train", 455), ("test", 51)):
        examples = opened(
            "uci_boston/data.parquet",
            {
                "target": "y",
                "target_standardise": {"role": "train"},
                "inputs": {"x": {"kind": "numeric", "columns": features, "standardise": {"role": "train"}}},
            },
            splits={"path": "uci_boston/splits.parquet", "split": 7, "role": role},
        )
        rows = table.iloc[splits[(splits.split == 7) & (splits.role == role)].row]
        expected = (rows - known.mean()) / known.std(ddof=0)
        assert examples.num_examples == count
        batch = examples.batch(range(count))
        # Two orders of summing 455 numbers.
        np.testing.assert_allclose(batch.inputs["x"], expected[features], rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(examples.targets(), expected["y"], rtol=1e-11, atol=1e-12)
        check_numbers(examples, 1)


def test_constant_columns_are_only_centred(shared):
    shared("uci_naval/data.parquet")
    examples = opened(
        "uci_naval/data.parquet",
        {"inputs": {"x": {"kind": "numeric", "columns": ["x8", "x11"], "standardise": {"role": "train"}}}},
        splits={"path": "uci_naval/splits.parquet", "split": 0, "role": "test"},
    )
    assert examples.batch(range(100)).inputs["x"].abs().max() < 1e-9  # units of 288 and 0.998
