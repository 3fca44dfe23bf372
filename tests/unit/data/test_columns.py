"""How columns of each kind become tensors."""

from io import BytesIO

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from afterfit.data.examples import open_examples
from afterfit.data.images import augmented
from afterfit.data.settings import Augment, DataSettings
from afterfit.errors import DataError

PIXELS = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)  # C, H, W


def opened(folder, columns, inputs, **more):
    parquet.write_table(pa.table(columns), folder / "data.parquet")
    values = {"path": str(folder / "data.parquet"), "columns": {"inputs": inputs}, **more}
    return open_examples(DataSettings.model_validate(values))


def png(pixels):
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


@pytest.mark.parametrize("form", ["binary", "fixed", "list"])
@pytest.mark.parametrize("order", ["chw", "hwc"])
def test_raw_pixels_are_read_in_either_order(order, form, tmp_path):
    laid = PIXELS if order == "chw" else PIXELS.transpose(1, 2, 0)
    column = {
        "binary": pa.array([laid.tobytes()]),
        "fixed": pa.array([laid.tobytes()], pa.binary(24)),
        "list": pa.array([laid.ravel().tolist()], pa.list_(pa.uint8())),
    }[form]
    reader = {"kind": "image", "column": "i", "decode": "raw", "shape": [2, 3, 4], "order": order, "scale": 1}
    batch = opened(tmp_path, {"i": column}, {"x": reader}).batch([0])
    assert torch.equal(batch.inputs["x"][0], torch.from_numpy(PIXELS.astype(np.float32)))


def test_every_8_bit_value_is_exactly_its_255th_part(tmp_path):
    column = pa.array([bytes(range(256))])
    reader = {"kind": "image", "column": "i", "decode": "raw", "shape": [1, 16, 16]}
    got = opened(tmp_path, {"i": column}, {"x": reader}).batch([0]).inputs["x"]
    assert torch.equal(got.flatten(), torch.arange(256).float() / 255)


def test_grey_pictures_and_hugging_face_pictures_are_read(tmp_path):
    grey = np.arange(30, dtype=np.uint8).reshape(5, 6)
    (tmp_path / "picture.png").write_bytes(png(grey))
    column = pa.array([{"bytes": png(grey), "path": None}, {"bytes": None, "path": str(tmp_path / "picture.png")}])
    reader = {"kind": "image", "column": "i", "channels": 1, "scale": 1}
    got = opened(tmp_path, {"i": column}, {"x": reader}).batch([0, 1]).inputs["x"]
    assert torch.equal(got, torch.from_numpy(grey).float().expand(2, 1, 5, 6))


def test_pictures_of_different_sizes_need_a_resize(tmp_path):
    column = pa.array([png(np.zeros((4, 5), np.uint8)), png(np.full((6, 5), 9, np.uint8))])
    reader = {"kind": "image", "column": "i", "channels": 1}
    with pytest.raises(DataError, match=r"4 x 5 and 6 x 5 pixels in row 1 .* set `resize"):
        opened(tmp_path, {"i": column}, {"x": reader}).batch([0, 1])
    resized = opened(tmp_path, {"i": column}, {"x": {**reader, "resize": [3, 7], "scale": 1}}).batch([0, 1])
    assert resized.inputs["x"].shape == (2, 1, 3, 7)
    assert resized.inputs["x"].flatten(1).unique(dim=1).tolist() == [[0], [9]]


def test_numbers_lists_and_tokens_are_read(tmp_path):
    columns = {
        "a": pa.array([1, 2], pa.uint8()),
        "b": pa.array([0.5, 0.25], pa.float32()),
        "wide": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        "matrix": pa.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]]),
        "flag": pa.array([True, False]),
    }
    inputs = {
        "x": {"kind": "numeric", "columns": ["a", "b"]},
        "z": {"kind": "numeric", "columns": "wide", "standardise": {"mean": [1, 0], "std": [1, 2]}},
        "ids": {"kind": "tokens", "column": "matrix"},
        "flag": "flag",
        "wide": "wide",
    }
    got = opened(tmp_path, columns, inputs).batch([1, 0]).inputs
    assert got["x"].tolist() == [[2, 0.25], [1, 0.5]]
    assert got["x"].dtype == torch.float64
    assert got["z"].tolist() == [[2, 2], [0, 1]]
    assert got["ids"].tolist() == [[[5, 6], [7, 8]], [[1, 2], [3, 4]]]
    assert got["ids"].dtype == torch.int64
    assert got["flag"].tolist() == [False, True]
    assert got["wide"].dtype == torch.float32


def test_tensor_columns_of_arrow_pass_through(tmp_path):
    numbers = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    table = pa.table({"x": pa.FixedShapeTensorArray.from_numpy_ndarray(numbers), "label": [0, 1, 2, 0]})
    with pa.OSFile(str(tmp_path / "data.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    settings = DataSettings.model_validate({"path": str(tmp_path / "data.arrow"), "columns": {"label": "label"}})
    batch = open_examples(settings).batch([3, 1])
    assert torch.equal(batch.inputs["x"], torch.from_numpy(numbers[[3, 1]]))
    assert set(batch.inputs) == {"x"}  # by default every column but the label


def test_a_scale_of_another_width_is_refused(tmp_path):
    reader = {"kind": "numeric", "columns": ["a", "b"], "standardise": {"mean": [0], "std": [1]}}
    with pytest.raises(DataError, match="has 2 columns, but `standardise` has 1"):
        opened(tmp_path, {"a": [1.0], "b": [1.0]}, {"x": reader}).batch([0])


def test_augmentation_depends_on_the_example_only(tmp_path):
    generator = np.random.default_rng(1)
    column = pa.array([png(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(40)])
    reader = {"x": {"kind": "image", "column": "i"}}
    plain = opened(tmp_path, {"i": column}, reader).batch(range(40)).inputs["x"]
    examples = opened(tmp_path, {"i": column}, reader, augment={"seed": 3, "flip": True, "crop": 2})
    whole = examples.batch(range(40)).inputs["x"]
    assert torch.equal(whole[[31, 4]], examples.batch([31, 4]).inputs["x"])
    assert not torch.equal(whole, plain)
    other = opened(tmp_path, {"i": column}, reader, augment={"seed": 4, "flip": True, "crop": 2})
    assert not torch.equal(whole, other.batch(range(40)).inputs["x"])
    assert examples.identity() != other.identity()


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_flips_and_crops_are_one_of_the_windows_of_the_padded_picture(seed, index):
    padded = np.pad(PIXELS, ((0, 0), (1, 1), (1, 1)))
    flipped = np.pad(PIXELS[:, :, ::-1], ((0, 0), (1, 1), (1, 1)))
    windows = [
        source[:, top : top + 3, left : left + 4]
        for source in (padded, flipped)
        for top in range(3)
        for left in range(3)
    ]
    got = augmented(PIXELS, Augment(seed=seed, flip=True, crop=1), index)
    assert sum(np.array_equal(got, window) for window in windows) == 1


def test_all_windows_are_drawn_about_equally_often():
    counts: dict[bytes, int] = {}
    for index in range(3600):
        key = augmented(PIXELS, Augment(flip=True, crop=1), index).tobytes()
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 18
    # 200 expected each, standard deviation 13.7: five of them.
    assert max(abs(count - 200) for count in counts.values()) < 69


def test_zoom_and_jitter_depend_on_the_seed_and_the_index_only_and_keep_the_kind_of_the_pixels():
    settings = Augment(seed=3, zoom=0.3, jitter=0.5)
    picture = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8)
    made = [augmented(picture, settings, index) for index in range(20)]
    assert all(one.dtype == np.uint8 and one.shape == picture.shape for one in made)
    assert all(np.array_equal(augmented(picture, settings, index), one) for index, one in enumerate(made))
    assert len({one.tobytes() for one in made}) == 20
    assert not np.array_equal(augmented(picture, Augment(seed=4, zoom=0.3, jitter=0.5), 0), made[0])


def test_zoom_of_a_constant_picture_and_jitter_of_none_change_nothing():
    flat = np.full((1, 6, 6), 77, dtype=np.uint8)
    assert np.array_equal(augmented(flat, Augment(zoom=0.2), 5), flat)
    assert np.array_equal(augmented(PIXELS, Augment(zoom=1.0, jitter=0.0), 5), PIXELS)
