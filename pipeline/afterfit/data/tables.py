"""Rows of one or several tables, one after another, taken in any order."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from afterfit.data.datafile import DataFile
from afterfit.data.formats import column_names, num_rows
from afterfit.data.settled import settled_table
from afterfit.errors import DataError


class Piece(Protocol):
    """Consecutive rows of a data set that lie together."""

    name: str  # for messages

    @property
    def columns(self) -> Sequence[str]:
        """Names of what it holds."""
        ...

    def num_rows(self, columns: Sequence[str]) -> int:
        """How many; `columns` are those that will be read."""
        ...

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """These rows, in this order."""
        ...

    def check(self) -> None:
        """Refuse to go on if what lies below has changed."""
        ...


class FilePiece:
    """The rows of one file."""

    def __init__(self, file: DataFile, scratch: Path):
        self.file = file
        self.name = file.name
        self._scratch = scratch
        self._open: dict[tuple[str, ...], MappedRows] = {}

    @property
    def columns(self) -> Sequence[str]:
        """From the head of the file, read once."""
        return self._head

    @cached_property
    def _head(self) -> Sequence[str]:
        return column_names(self.file)

    def num_rows(self, columns: Sequence[str]) -> int:
        """From the file's metadata where there are some, else by reading it once."""
        told = num_rows(self.file)
        return len(self._rows(columns)) if told is None else told

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """From the mapped table, made when rows of this file are first wanted."""
        return self._rows(columns).take(rows)

    def check(self) -> None:
        """See `DataFile.check`; an object store is asked when the file is opened only."""
        if self.file.is_local:
            self.file.check()

    def _rows(self, columns: Sequence[str]) -> "MappedRows":
        key = tuple(columns)
        if key not in self._open:
            self._open[key] = MappedRows(settled_table(self.file, columns, self._scratch))
        return self._open[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a map is not sent: the receiver makes its own


class MappedRows:
    """Random access to a table batch by batch; `Table.take` may copy all chunks of a long one together."""

    def __init__(self, table: pa.Table):
        self._schema = table.schema
        self._batches = table.to_batches()
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, rows: np.ndarray) -> pa.Table:
        """These rows, in this order."""
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        owners = np.searchsorted(self._ends, ascending, side="right")
        taken = []
        for owner in np.unique(owners):
            batch = self._batches[owner]
            local = ascending[owners == owner] - (self._ends[owner] - batch.num_rows)
            taken.append(batch.take(pa.array(local)))
        return _in_order(pa.Table.from_batches(taken, self._schema), order)


class Rows:
    """The chosen rows of a list of pieces, by their position in the choice."""

    def __init__(self, pieces: Sequence[Piece], columns: Sequence[str], renamed: Mapping[str, str] | None = None):
        self.pieces = pieces
        self.columns = list(columns)
        self._renamed = {name: (renamed or {}).get(name, name) for name in self.columns}
        for piece in pieces:
            for name in self._renamed.values():
                check_column(name, piece.columns, piece.name)
        stored = list(self._renamed.values())
        self._ends = np.cumsum([piece.num_rows(stored) for piece in pieces], dtype=np.int64)
        self.chosen: Sequence[int] | np.ndarray = range(self.num_stored)

    @property
    def num_stored(self) -> int:
        """Rows of all pieces, chosen or not."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __len__(self) -> int:
        return len(self.chosen)

    def take(self, indexes: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """The rows at these positions of the choice, in this order; their files must be as identified."""
        wanted = self.columns if columns is None else list(columns)
        stored = [self._renamed[name] for name in wanted]
        positions = self._positions(indexes)
        owners = np.searchsorted(self._ends, positions, side="right")
        order = np.argsort(owners, kind="stable")
        taken = []
        for owner in np.unique(owners):
            piece = self.pieces[owner]
            piece.check()
            start = self._ends[owner - 1] if owner else 0
            taken.append(piece.take(positions[owners == owner] - start, stored))
        table = pa.concat_tables(taken, promote_options="permissive").rename_columns(wanted)
        return _in_order(table, order) if len(taken) > 1 else table

    def place(self, index: int) -> str:
        """Where an example lies, for a message: row (from 0) and file."""
        position = int(self._positions([index])[0])
        owner = int(np.searchsorted(self._ends, position, side="right"))
        start = int(self._ends[owner - 1]) if owner else 0
        return f"row {position - start} of {self.pieces[owner].name!r}"

    def _positions(self, indexes: Sequence[int]) -> np.ndarray:
        asked = np.asarray(indexes, dtype=np.int64)
        if len(asked) and not (asked.min() >= 0 and asked.max() < len(self)):
            raise IndexError(f"Examples are counted from 0 to {len(self) - 1}.")
        if isinstance(self.chosen, range):
            return asked * self.chosen.step + self.chosen.start
        return np.asarray(self.chosen)[asked]


def check_column(name: str, columns: Sequence[str], where: str) -> None:
    """Refuse a column that is not there, and name the nearest.

    Raises:
        DataError: names the column, the nearest one and all there are.
    """
    if name in columns:
        return
    near = get_close_matches(name, columns, n=1, cutoff=0.0)
    remedy = f"did you mean {near[0]!r}? " if near else ""
    listed = ", ".join(list(columns)[:20]) or "none"
    raise DataError(f"There is no column {name!r} in {where!r}; {remedy}It has: {listed}.")


def _in_order(table: pa.Table, order: np.ndarray) -> pa.Table:
    """Undo a sorting by `order`."""
    if np.array_equal(order, np.arange(len(order))):
        return table.combine_chunks()
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return table.combine_chunks().take(pa.array(inverse))
