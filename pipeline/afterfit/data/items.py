"""Mappings of Python values, as tables: what a data set in memory or an iterable yields."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from torch import Tensor

from afterfit.errors import DataError

PNG_MODES = ("1", "L", "LA", "RGB", "RGBA", "P")


def as_items(values: Sequence[Any], first: int, origin: str) -> list[Mapping[str, Any]]:
    """The same values, each known to be a mapping with the keys of the first.

    Raises:
        DataError: names the item; `first` is the number of the first one.
    """
    for number, item in enumerate(values, start=first):
        if not isinstance(item, Mapping):
            raise DataError(
                f"Item {number} of {origin} is a {type(item).__name__}; each must be a mapping whose keys "
                "are forward's argument names plus `label` or `target`."
            )
        if item.keys() != values[0].keys():
            odd = sorted(map(str, item.keys() ^ values[0].keys()))
            raise DataError(f"Item {number} of {origin} has other keys than item {first}: {', '.join(odd)}.")
    return list(values)


def item_table(items: Sequence[Mapping[str, Any]], columns: Sequence[str], first: int, origin: str) -> pa.Table:
    """Some of the keys of some items as Arrow columns; arrays as nested fixed-size lists, pictures as PNG.

    Raises:
        DataError: if the values of a key have no common Arrow type.
    """
    arrays = {}
    for name in columns:
        try:
            arrays[name] = _array([item[name] for item in items])
        except (
            pa.ArrowInvalid,
            pa.ArrowTypeError,
            pa.ArrowNotImplementedError,
            ValueError,
            OSError,
        ) as error:
            last = first + len(items) - 1
            raise DataError(
                f"The values of {name!r} in items {first} to {last} of {origin} are not of one kind "
                f"({str(error).splitlines()[0].rstrip('.')}); give each the same type and shape."
            ) from error
    return pa.table(arrays)


def _array(values: list[Any]) -> pa.Array:
    plain = [_plain(value) for value in values]
    if not isinstance(plain[0], np.ndarray):
        return pa.array(plain)
    if plain[0].ndim == 1 and any(isinstance(value, np.ndarray) and value.shape != plain[0].shape for value in plain):
        return pa.array(plain)  # lists of several lengths, e.g. token ids
    stacked = np.stack(plain)
    nested: pa.Array = pa.array(np.ascontiguousarray(stacked).reshape(-1))
    for size in reversed(stacked.shape[1:]):
        nested = pa.FixedSizeListArray.from_arrays(nested, size)
    return nested


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        wide = value.detach().cpu()
        return (wide if wide.dtype.itemsize != 2 or not wide.is_floating_point() else wide.float()).numpy()
    if isinstance(value, Image.Image):
        picture = value if value.mode in PNG_MODES else value.convert("RGB")
        stream = BytesIO()
        picture.save(stream, format="PNG")
        return stream.getvalue()
    return value


class ItemsPiece:
    """A data set in memory as rows of a table, for columns that need a reader."""

    def __init__(self, dataset: Any, name: str):
        self.dataset = dataset
        self.name = name

    @property
    def columns(self) -> Sequence[str]:
        """The keys of the first item."""
        return list(as_items([self.dataset[0]], 0, self.name)[0]) if len(self.dataset) else []

    def num_rows(self, columns: Sequence[str]) -> int:
        """Its length."""
        return len(self.dataset)

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """These items."""
        items = as_items([self.dataset[int(row)] for row in rows], int(rows[0]), self.name)
        return item_table(items, columns, int(rows[0]), self.name)

    def check(self) -> None:
        """What is in memory is its own master."""
