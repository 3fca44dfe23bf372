"""What is refused before long work: labels out of range, targets of another width, NaN and infinity."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from afterfit.algebra import Batch, Examples
from afterfit.errors import DataError


def check_labels(examples: Examples, num_classes: int) -> None:
    """Refuse labels outside 0 to C - 1, over all examples.

    Args:
        examples: the data set; inputs are not decoded.
        num_classes: C; 2 for yes or no by one output.

    Raises:
        DataError: names the first example out of range, or says that there are numbers instead of labels.
    """
    labels = examples.targets()
    if labels.is_floating_point() or labels.dim() != 1:
        raise DataError("The data set has numbers to predict, not one class each; name a `label` instead of `target`.")
    wrong = torch.nonzero((labels < 0) | (labels >= num_classes)).flatten()
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"Example {first} has the label {int(labels[first])}, outside 0 to {num_classes - 1} "
            f"({len(wrong)} of {len(labels)} are); number the classes from 0, or use a network with more "
            "outputs."
        )


def check_numbers(examples: Examples, num_outputs: int) -> None:
    """Refuse targets that are not finite or not C numbers each, over all examples.

    Raises:
        DataError: names the first example that is not finite, or both widths.
    """
    targets = examples.targets()
    width = 1 if targets.dim() == 1 else targets[0].numel()
    if width != num_outputs:
        raise DataError(
            f"The targets have {width} numbers each, but the network has {num_outputs} outputs; choose other "
            "`target` columns or another network."
        )
    wrong = _first_not_finite(targets)
    if wrong is not None:
        raise DataError(f"The target of example {wrong} is not finite (NaN or infinite); correct it or leave it out.")


def finite(batch: Batch, place: Callable[[int], str] | None = None) -> Batch:
    """The same batch, if all its numbers are finite.

    Args:
        batch: as read.
        place: index of an example -> where it lies, for the message.

    Raises:
        DataError: names the input and the example.
    """
    named: Mapping[str, Any] = {**batch.inputs, "the target": batch.targets}
    for name, values in named.items():
        position = None if values is None else _first_not_finite(values)
        if position is not None:
            index = int(batch.indexes[position])
            where = f" ({place(index)})" if place else ""
            what = "The target" if name == "the target" else f"The input {name!r}"
            raise DataError(
                f"{what} of example {index}{where} is not finite (NaN or infinite); correct it or leave it out."
            )
    return batch


def _first_not_finite(values: Tensor) -> int | None:
    if not values.is_floating_point():
        return None
    good = torch.isfinite(values).reshape(len(values), -1).all(dim=1)
    return None if bool(good.all()) else int(torch.nonzero(~good)[0])
