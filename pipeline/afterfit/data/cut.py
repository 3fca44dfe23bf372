"""An iterable, cut once into tables in the store; from then on it is as good as files."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from afterfit.algebra import Artifact, Result
from afterfit.data.items import as_items, item_table
from afterfit.data.settled import mapped_copy
from afterfit.data.tables import MappedRows
from afterfit.errors import ConfigError

PART_ROWS = 4096
PART_BYTES = 64 << 20
"""A part is closed at so many rows, or once its columns take so much memory."""

BLOCK_ROWS = 64
"""Items are turned into columns so many at a time; the memory of a part is bounded to this granularity."""


class Shelf(Protocol):
    """What cutting needs of a store."""

    def find(self, place: str) -> Artifact | None:
        """What is finished at a place, or None."""
        ...

    def write(self, place: str, result: Result) -> Artifact:
        """Finish a place; where it is finished already, what is there stays."""
        ...


def cut(source: Iterable[Any], limit: int | None, shelf: Shelf, place: str, origin: str) -> None:
    """Write the first items of an iterable below `place`, unless they are there already.

    Parts are artifacts `place/00000`, ...; the artifact `place/index` is written last and makes them true.
    After an interruption the cut begins again, and the iterable must yield the same; parts that are there
    stay.

    Args:
        source: yields mappings with the same keys each.
        limit: items to keep at most; may be None where the iterable has a length.
        shelf: the store.
        place: name in the store.
        origin: what the iterable is called in messages.

    Raises:
        ConfigError: if nothing bounds the iterable.
        DataError: if an item is no mapping, or has other keys or types than those before.
    """
    if shelf.find(f"{place}/index") is not None:
        return
    if limit is None and not hasattr(source, "__len__"):
        raise ConfigError(f"{origin} has no length; set `max_examples` to say how many examples to keep.")
    names: list[str] = []
    facts: list[dict[str, Any]] = []
    for table in _parts(iter(source) if limit is None else islice(source, limit), origin):
        names = table.column_names
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        digest = "sha256:" + hashlib.sha256(sink.getvalue()).hexdigest()
        known = {"rows": table.num_rows, "digest": digest}
        part = shelf.write(part_place(place, len(facts)), Result(tables={"rows": table}, facts=known))
        facts.append(dict(part.facts))  # where another writer was faster, its part counts
    shelf.write(f"{place}/index", Result(facts={"parts": facts, "columns": names}))


def part_place(place: str, number: int) -> str:
    """Where a part lies in the store."""
    return f"{place}/{number:05d}"


class CutPiece:
    """One part of what was cut."""

    def __init__(self, shelf: Shelf, place: str, facts: Mapping[str, Any], columns: Sequence[str], scratch: Path):
        self.name = place
        self.columns = list(columns)
        self._facts = dict(facts)
        self._shelf = shelf
        self._scratch = scratch
        self._mapped: MappedRows | None = None

    def num_rows(self, columns: Sequence[str]) -> int:
        """As the index says."""
        return int(self._facts["rows"])

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """From a memory-mapped copy; the store verifies what it reads."""
        if self._mapped is None:
            self._mapped = MappedRows(mapped_copy(self._facts["digest"], self._scratch, self._batches))
        return self._mapped.take(rows).select(list(columns))

    def check(self) -> None:
        """What is finished in the store does not change."""

    def _batches(self) -> Iterator[pa.RecordBatch]:
        artifact = self._shelf.find(self.name)
        if artifact is None or artifact.facts.get("digest") != self._facts["digest"]:
            raise ConfigError(f"The cut data set at {self.name!r} is not whole; use another store or remove it there.")
        yield from artifact.table("rows").to_batches()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}


def _parts(source: Iterator[Any], origin: str) -> Iterator[pa.Table]:
    blocks: list[pa.Table] = []
    first: list[Any] = []
    start = 0
    while values := list(islice(source, BLOCK_ROWS)):
        first = first or values[:1]
        items = as_items([*first, *values], start - 1, origin)[1:] if start else as_items(values, 0, origin)
        blocks.append(item_table(items, list(first[0]), start, origin))
        start += len(values)
        rows, size = sum(block.num_rows for block in blocks), sum(block.nbytes for block in blocks)
        if rows >= PART_ROWS or size >= PART_BYTES:
            yield pa.concat_tables(blocks, promote_options="permissive").combine_chunks()
            blocks = []
    if blocks:
        yield pa.concat_tables(blocks, promote_options="permissive").combine_chunks()
