"""Numeric columns as tensors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from afterfit.errors import DataError

Place = Callable[[int], str]  # from a position in the table to words for a message


def column_tensor(table: pa.Table, name: str, place: Place) -> Tensor:
    """A column of numbers (B,), or of equally long, possibly nested, lists of numbers (B, ...).

    Integers become int64; floats and booleans keep their type.

    Raises:
        DataError: for missing values, lists of different lengths, or a column that holds no numbers.
    """
    array = table.column(name).combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage if not isinstance(array, pa.FixedShapeTensorArray) else _fixed_shape(array)
    shape = [len(array)]
    _refuse_missing(array, name, place, 1)
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        shape.append(_length(array, name, place, len(array) // max(1, shape[0])))
        array = array.flatten()
        _refuse_missing(array, name, place, len(array) // max(1, shape[0]))
    return _flat_tensor(array, name).reshape(shape)


@dataclass(frozen=True)
class Scale:
    """A shift and scale of columns."""

    mean: np.ndarray  # (D,)
    std: np.ndarray  # (D,), 1 where a column is constant

    @classmethod
    def of(cls, numbers: Tensor) -> "Scale":
        """Of (N, D) numbers. The deviation of a constant column is rounding, hence the bound."""
        values = numbers.double().reshape(len(numbers), -1).numpy()
        mean, std = values.mean(axis=0), values.std(axis=0)
        constant = std <= 1e-12 * np.maximum(np.abs(mean), 1e-300)
        return cls(mean, np.where(constant, 1.0, std))

    def apply(self, numbers: Tensor, what: str) -> Tensor:
        """(B, D) or (B,) numbers, standardised.

        Raises:
            DataError: if there are not D columns.
        """
        width = 1 if numbers.dim() == 1 else numbers.shape[1]
        if width != len(self.mean):
            raise DataError(f"{what} has {width} columns, but `standardise` has {len(self.mean)} numbers.")
        wide = (numbers.reshape(len(numbers), width) - torch.from_numpy(self.mean)) / torch.from_numpy(self.std)
        return wide.reshape(numbers.shape)

    def facts(self) -> dict[str, Any]:
        """As plain values, for an identity."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}


def numbers_of(table: pa.Table, columns: str | list[str], place: Place) -> Tensor:
    """Several columns side by side (B, D), or one as it is; float64."""
    if isinstance(columns, str):
        return column_tensor(table, columns, place).double()
    return torch.stack([column_tensor(table, name, place).double() for name in columns], dim=1)


def _flat_tensor(array: pa.Array, name: str) -> Tensor:
    kind = array.type
    if pa.types.is_boolean(kind):
        return torch.from_numpy(array.to_numpy(zero_copy_only=False).copy())
    if pa.types.is_integer(kind):
        return torch.from_numpy(array.to_numpy(zero_copy_only=False).astype(np.int64))
    if pa.types.is_floating(kind):
        return torch.from_numpy(array.to_numpy(zero_copy_only=False).copy())
    raise DataError(
        f"The column {name!r} holds {kind}, not numbers; say how to read it in `columns.inputs` "
        "(`kind: image` or `kind: text`), or leave it out."
    )


def _length(array: pa.Array, name: str, place: Place, lists_a_row: int) -> int:
    if pa.types.is_fixed_size_list(array.type):
        return int(array.type.list_size)
    lengths = array.value_lengths().to_numpy()
    other = np.flatnonzero(lengths != lengths[0])
    if len(other):
        first = int(other[0])
        raise DataError(
            f"The column {name!r} holds lists of different lengths, {lengths[0]} and {lengths[first]} in "
            f"{place(first // max(1, lists_a_row))}; pad them to one length."
        )
    return int(lengths[0])


def _refuse_missing(array: pa.Array, name: str, place: Place, values_a_row: int) -> None:
    if array.null_count:
        first = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        where = place(first // max(1, values_a_row))
        raise DataError(f"The column {name!r} has no value in {where}; fill it in or leave the row out.")


def _fixed_shape(array: pa.FixedShapeTensorArray) -> pa.Array:
    """As nested fixed-size lists, in row-major order whatever the permutation."""
    dense = array.to_numpy_ndarray()
    nested: pa.Array = pa.array(np.ascontiguousarray(dense).reshape(-1))
    for size in reversed(dense.shape[1:]):
        nested = pa.FixedSizeListArray.from_arrays(nested, size)
    return nested
