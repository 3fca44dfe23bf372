"""What makes a data set the same: digests of contents and of chosen rows, and the check against a record."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from afterfit.algebra import Batch, Examples
from afterfit.errors import DataError

DIGEST_ROWS = 256


class IdentifiedExamples(Examples, Protocol):
    """Examples that can say what they are."""

    def identity(self) -> dict[str, Any]:
        """Plain values that change when a number changes, and not when the data are moved or copied."""
        ...


def contents_digest(examples: Examples) -> str:
    """Of all inputs and targets. Cost: one pass over the data."""
    total = hashlib.sha256()
    for start in range(0, examples.num_examples, DIGEST_ROWS):
        batch: Batch = examples.batch(range(start, min(start + DIGEST_ROWS, examples.num_examples)))
        named: dict[str, Tensor | None] = {**batch.inputs, "": batch.targets}
        for name in sorted(named):
            values = named[name]
            if values is not None:
                total.update(f"{name}|{values.dtype}|{tuple(values.shape)}|".encode())
                total.update(values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return "sha256:" + total.hexdigest()


def chosen_digest(chosen: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """Of positions in the data, in order; runs of any length are told by their ends."""
    if isinstance(chosen, range):
        return {"first": chosen.start, "count": len(chosen)}
    positions = np.asarray(chosen, dtype="<i8")
    return {"sha256": hashlib.sha256(positions.tobytes()).hexdigest(), "count": len(positions)}


def check_unchanged(examples: IdentifiedExamples, recorded: Mapping[str, Any]) -> None:
    """Refuse a data set that is not the one that a run began with.

    Raises:
        DataError: names the first file that differs, or says that the rows or columns do.
    """
    now = examples.identity()
    if now == recorded:
        return
    before, after = _files(recorded), _files(now)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    what = f"The data file {changed[0]!r}" if changed else "The data set, or what is chosen of it,"
    raise DataError(f"{what} is not what this run began with; restore it, or run again to start from the new data.")


def _files(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {file["name"]: file for file in identity.get("origin", {}).get("files", [])}
