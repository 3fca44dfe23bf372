"""Columns of pictures as tensors."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from afterfit.data.numbers import Place
from afterfit.data.settings import Augment, ImageColumn
from afterfit.errors import DataError
from afterfit.seeds import Seed


def read_images(
    table: pa.Table, indexes: list[int], reader: ImageColumn, augment: Augment | None, place: Place
) -> Tensor:
    """Decode, augment, scale and stack a column: float32 (B, C, H, W).

    Args:
        table: has the column.
        indexes: of the examples in the data set; they name the draws of the augmentation.
        reader: how to read.
        augment: fixed random changes of the pixels before scaling, or None.
        place: position in the table -> words for a message.

    Raises:
        DataError: if a picture does not decode, or pictures differ in size; names the row.
    """
    read = _raw if reader.decode == "raw" else _decoded
    pictures = []
    for position, value in enumerate(table.column(reader.column).to_pylist()):
        pixels_CHW = read(value, reader, position, place)
        if pictures and pixels_CHW.shape != pictures[0].shape:
            raise DataError(
                f"The pictures of the column {reader.column!r} differ in size: {_size(pictures[0])} and "
                f"{_size(pixels_CHW)} pixels in {place(position)}; set `resize: [height, width]`."
            )
        pictures.append(augmented(pixels_CHW, augment, indexes[position]) if augment else pixels_CHW)
    return torch.from_numpy(_scaled(np.stack(pictures), reader))


def augmented(pixels_CHW: np.ndarray, augment: Augment, index: int) -> np.ndarray:
    """Change it as the draws at places named by the seed and the index say, whatever batch it is in."""
    bits = Seed(augment.seed).child("augment", index).key()
    if augment.flip and bits & 1:
        pixels_CHW = pixels_CHW[:, :, ::-1]
    if augment.crop:
        _, height, width = pixels_CHW.shape
        choices = 2 * augment.crop + 1
        top, left = (bits >> 1) % choices, (bits >> 31) % choices
        border = (augment.crop, augment.crop)
        padded = np.pad(pixels_CHW, ((0, 0), border, border))
        pixels_CHW = padded[:, top : top + height, left : left + width]
    if augment.zoom < 1:
        pixels_CHW = _zoomed(pixels_CHW, augment.zoom, Seed(augment.seed).child("zoom", index).numpy())
    if augment.jitter:
        pixels_CHW = _jittered(pixels_CHW, augment.jitter, Seed(augment.seed).child("jitter", index).numpy())
    return pixels_CHW


def _zoomed(pixels_CHW: np.ndarray, least_area: float, random: np.random.Generator) -> np.ndarray:
    """A random part of the picture, of its proportions, resized to the whole."""
    _, height, width = pixels_CHW.shape
    side = np.sqrt(random.uniform(least_area, 1))
    rows, columns = max(1, round(height * side)), max(1, round(width * side))
    top, left = random.integers(height - rows + 1), random.integers(width - columns + 1)
    return _resized(pixels_CHW[:, top : top + rows, left : left + columns], (height, width))


def _jittered(pixels_CHW: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Contrast about the picture's mean, and that mean, each times a random factor."""
    contrast, brightness = random.uniform(1 - strength, 1 + strength, size=2)
    mean = pixels_CHW.mean()
    return ((pixels_CHW - mean) * contrast + mean * brightness).round().clip(0, 255).astype(np.uint8)


def _decoded(value: Any, reader: ImageColumn, position: int, place: Place) -> np.ndarray:
    try:
        encoded = _encoded(value)
        with Image.open(BytesIO(encoded)) as picture:
            flat = picture.convert("RGB" if reader.channels == 3 else "L")
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, Image.DecompressionBombError) as error:
        raise DataError(
            f"The column {reader.column!r} does not hold a picture that decodes in {place(position)}; "
            "repair the row, or set `decode: raw` for pixels without a header."
        ) from error
    if reader.resize is not None:
        flat = flat.resize(_width_height(reader.resize), Image.Resampling.BILINEAR)
    pixels = np.asarray(flat)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _raw(value: Any, reader: ImageColumn, position: int, place: Place) -> np.ndarray:
    shape = reader.shape or (0, 0, 0)  # the settings require it
    channels, height, width = shape
    flat = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else np.asarray(value or [])
    if flat.size != channels * height * width or (flat.size and (flat.min() < 0 or flat.max() > 255)):
        raise DataError(
            f"The column {reader.column!r} does not hold {channels} x {height} x {width} pixels of 0 to 255 "
            f"in {place(position)}, but {flat.size} values; correct `shape`."
        )
    pixels = flat.astype(np.uint8, copy=False)
    if reader.order == "hwc":
        pixels_CHW = pixels.reshape(height, width, channels).transpose(2, 0, 1)
    else:
        pixels_CHW = pixels.reshape(shape)
    return pixels_CHW if reader.resize is None else _resized(pixels_CHW, reader.resize)


def _resized(pixels_CHW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in pixels_CHW]
    return np.stack([np.asarray(plane.resize(_width_height(size), Image.Resampling.BILINEAR)) for plane in planes])


def _scaled(pixels_BCHW: np.ndarray, reader: ImageColumn) -> np.ndarray:
    """Look the 256 values of each channel up in a table made in float64: the nearest float32, and fast."""
    channels = reader.num_channels
    mean = np.asarray(reader.mean or [0.0] * channels)[:, None]
    std = np.asarray(reader.std or [1.0] * channels)[:, None]
    table = ((np.arange(256) * reader.scale - mean) / std).astype(np.float32)
    return table[np.arange(channels)[:, None, None], pixels_BCHW]


def _size(pixels_CHW: np.ndarray) -> str:
    return f"{pixels_CHW.shape[1]} x {pixels_CHW.shape[2]}"


def _encoded(value: bytes | Mapping[str, Any] | None) -> bytes:
    if isinstance(value, Mapping):  # as Hugging Face keeps pictures
        return value["bytes"] if value.get("bytes") is not None else Path(value["path"]).read_bytes()
    return value or b""


def _width_height(size: tuple[int, int]) -> tuple[int, int]:
    return size[1], size[0]
