"""A data set of Python: anything with a length and integer indexing that yields mappings."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from afterfit.algebra import Batch
from afterfit.data.checks import finite
from afterfit.data.identity import contents_digest
from afterfit.data.items import as_items
from afterfit.errors import DataError

ORIGIN = "the data set"


class IndexedExamples:
    """Items whose keys are forward's argument names plus `label` or `target`, stacked to tensors.

    Numbers keep their type (a Python float is float64), pictures become float32 (C, H, W) in [0, 1].
    """

    def __init__(
        self,
        dataset: Any,
        *,
        rows: Sequence[int] | np.ndarray | None = None,
        label: str = "label",
        target: str = "target",
    ):
        """Look at the first item.

        Args:
            dataset: a list of mappings, a Hugging Face or torch data set. An item must be the same each time.
            rows: positions to use, in order; all by default.
            label: key of integer classes.
            target: key of numbers to predict, where there is no label.

        Raises:
            DataError: for an empty data set, items that are no mappings, or no key but the label or target.
        """
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or isinstance(dataset, Mapping):
            raise DataError(
                f"A {type(dataset).__name__} cannot be used as a data set; give a list of mappings, or "
                "anything with a length and integer indexing that yields mappings."
            )
        self.dataset = dataset
        self.rows = range(len(dataset)) if rows is None else rows
        self.num_examples = len(self.rows)
        if not self.num_examples:
            raise DataError("The data set is empty; give at least one example.")
        first = self._items([0])[0]
        answers = [key for key in (label, target) if key in first]
        if len(answers) > 1:
            raise DataError(f"The items have both {label!r} and {target!r}; keep the one that the likelihood needs.")
        self.answer = answers[0] if answers else None
        self._is_label = self.answer == label
        self.inputs = [key for key in first if key != self.answer]
        if not self.inputs:
            raise DataError(
                f"The items have no key but {self.answer!r}; add the inputs under forward's argument names."
            )

    def batch(self, indexes: Sequence[int]) -> Batch:
        """Fetch and stack these examples.

        Raises:
            DataError: for values that are no numbers, differ in shape, or are not finite; names the example.
        """
        places = [int(index) for index in indexes]
        items = self._items(places)
        inputs = {name: stacked([item[name] for item in items], name, places) for name in self.inputs}
        targets = self._answers(items, places) if self.answer else None
        return finite(Batch(inputs, targets, torch.tensor(places)))

    def targets(self) -> Tensor:
        """Labels (N,), or numbers (N,) or (N, C); of a data set with columns only theirs is fetched.

        Raises:
            DataError: if the items have neither label nor target.
        """
        if self.answer is None:
            raise DataError("The items have no `label` or `target`; add one.")
        select = getattr(self.dataset, "select_columns", None)
        narrow = self.dataset if select is None else select([self.answer])
        return self._answers([narrow[int(row)] for row in self.rows], list(range(self.num_examples)))

    def identity(self) -> dict[str, Any]:
        """Of the contents. Cost: one pass over the data, once."""
        return {"origin": {"contents": self._digest}, "count": self.num_examples}

    @cached_property
    def _digest(self) -> str:
        return contents_digest(self)

    def _items(self, places: Sequence[int]) -> list[Mapping[str, Any]]:
        if places and not (min(places) >= 0 and max(places) < self.num_examples):
            raise IndexError(f"Examples are counted from 0 to {self.num_examples - 1}.")
        values = [self.dataset[int(self.rows[place])] for place in places]
        return as_items(values, places[0], ORIGIN)

    def _answers(self, items: Sequence[Mapping[str, Any]], places: list[int]) -> Tensor:
        name = str(self.answer)
        values = stacked([item[name] for item in items], name, places)
        if not self._is_label:
            return values if values.is_floating_point() else values.double()
        if values.is_floating_point() or values.dim() != 1:
            raise DataError(f"The key {name!r} does not hold one integer class each; put numbers under `target`.")
        return values.long()


def stacked(values: Sequence[Any], name: str, places: Sequence[int]) -> Tensor:
    """Numbers, lists, arrays, tensors or pictures as one tensor with the examples first.

    Raises:
        DataError: for a value that is no number, or has another shape than the first; names the example.
    """
    tensors = [_tensor(value, name, place) for value, place in zip(values, places, strict=True)]
    for tensor, place in zip(tensors, places, strict=True):
        if tensor.shape != tensors[0].shape:
            raise DataError(
                f"The key {name!r} has shape {tuple(tensor.shape)} in example {place} and "
                f"{tuple(tensors[0].shape)} in example {places[0]}; pad or resize them to one shape."
            )
    return torch.stack(tensors)


def _tensor(value: Any, name: str, place: int) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Image.Image):
        flat = value if value.mode in ("L", "RGB") else value.convert("RGB")
        pixels = np.asarray(flat).astype(np.float32) / np.float32(255)
        return torch.from_numpy(pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths within one value
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"The key {name!r} holds {type(value).__name__} in example {place}, not numbers; tokenise or "
            "encode it first, or leave the key out."
        )
    wide = array.astype(np.int64) if array.dtype.kind in "iu" else array
    return torch.from_numpy(np.ascontiguousarray(wide).reshape(array.shape).copy())
