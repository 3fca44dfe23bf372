"""Columns of a file as a memory-mapped Arrow table: nothing is held in memory but the pages in use."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa

from afterfit.data.datafile import DataFile
from afterfit.data.formats import reading, record_batches
from afterfit.data.scratch import write_once


def settled_table(file: DataFile, columns: Sequence[str], scratch: Path) -> pa.Table:
    """The columns of a file, mapped: uncompressed local Arrow as it is, else a copy in scratch.

    The copy is named by the file's digest and the columns, so any process of the machine finds it again.

    Raises:
        DataError: if the file is damaged, or changed while it was read.
        StoreError: if the scratch folder cannot be written.
    """
    if file.is_local and Path(file.address).suffix.lower() in (".arrow", ".feather"):
        file.check()
        with reading(file):
            table = _map(Path(file.address))
        if table is not None:
            return table.select(list(columns))

    def batches() -> Iterator[pa.RecordBatch]:
        file.check()
        read = record_batches(file, columns)
        yield next(read, pa.RecordBatch.from_pydict({name: [] for name in columns}))  # names, even without rows
        yield from read
        file.check()  # also while it was being read

    return mapped_copy(f"{file.digest}|{file.name}|{sorted(columns)}", scratch, batches).select(list(columns))


def mapped_copy(key: str, scratch: Path, batches: Callable[[], Iterable[pa.RecordBatch]]) -> pa.Table:
    """What `batches` yields (one or more) as a table mapped from scratch, written unless the key is known."""
    path = scratch / "tables" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.arrow"
    if not path.exists():
        write_once(path, lambda stream: _write(stream, batches()))
    with pa.memory_map(str(path)) as mapped:
        return pa.ipc.open_stream(mapped.read_buffer()).read_all()


def _write(stream: IO[bytes], batches: Iterable[pa.RecordBatch]) -> None:
    rest = iter(batches)
    first = next(rest)
    with pa.ipc.new_stream(stream, first.schema) as writer:
        writer.write_batch(first)
        for batch in rest:
            writer.write_batch(batch)


def _map(path: Path) -> pa.Table | None:
    """The table in a local Arrow file without copying, or None where its buffers are compressed."""
    with pa.memory_map(str(path)) as mapped:
        whole = mapped.read_buffer()
    if whole.slice(0, 6).to_pybytes() == b"ARROW1":
        file = pa.ipc.open_file(whole)
        first: pa.RecordBatch | None = file.get_batch(0) if file.num_record_batches else None
        return file.read_all() if _lies_in(first, whole) else None
    first = next(iter(pa.ipc.open_stream(whole)), None)
    return pa.ipc.open_stream(whole).read_all() if _lies_in(first, whole) else None


def _lies_in(batch: pa.RecordBatch | None, whole: pa.Buffer) -> bool:
    buffers = [buffer for column in batch.columns for buffer in column.buffers() if buffer] if batch else []
    return all(whole.address <= buffer.address < whole.address + whole.size for buffer in buffers if buffer.size)
