"""Each kind of file as a stream of Arrow record batches."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Final

import pyarrow as pa
from pyarrow import csv, parquet
from pyarrow import json as arrow_json

from afterfit.data.datafile import DataFile
from afterfit.errors import DataError

BLOCK_BYTES = 16 << 20
"""Text is read in such blocks; the types of columns are inferred from the first, and a row must fit in
one."""

BATCH_BYTES = 4 << 20
"""Wanted size of a record batch read from Parquet."""


def column_names(file: DataFile) -> list[str]:
    """The columns of a file, from its head."""
    with file.open() as stream, reading(file):
        return list(_reader(file, stream)[0].names)


def num_rows(file: DataFile) -> int | None:
    """Rows of a file where its metadata tell, else None."""
    if _kind(file) != ".parquet":
        return None
    with file.open() as stream, reading(file):
        return int(parquet.ParquetFile(stream).metadata.num_rows)


def record_batches(file: DataFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Stream some of the columns. Memory: a few batches.

    Raises:
        DataError: if the file is damaged, or a value does not have the type of its column.
    """
    with file.open() as stream, reading(file):
        for batch in _reader(file, stream)[1](list(columns)):
            yield batch.select(list(columns))


@contextmanager
def reading(file: DataFile) -> Iterator[None]:
    """Say which file, where a library only says what it met."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowKeyError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        text = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(f"The data file {file.name!r} does not read as {_kind(file)}: {text}.") from error


Read = tuple[pa.Schema, Callable[[list[str]], Iterator[pa.RecordBatch]]]
"""The schema, and a stream of batches with the columns asked for, or more."""


def _reader(file: DataFile, stream: IO[bytes]) -> Read:
    return READERS[_kind(file)](stream)


def _kind(file: DataFile) -> str:
    return PurePosixPath(file.name).suffix.lower()


def _parquet(stream: IO[bytes]) -> Read:
    file = parquet.ParquetFile(stream)
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    bytes_per_row = sum(group.total_byte_size for group in groups) / max(1, file.metadata.num_rows)
    rows = int(min(1 << 16, max(1, BATCH_BYTES // max(1, bytes_per_row))))
    return file.schema_arrow, lambda columns: file.iter_batches(batch_size=rows, columns=columns)


def _arrow(stream: IO[bytes]) -> Read:
    is_file = stream.read(6) == b"ARROW1"
    stream.seek(0)
    if not is_file:
        streamed = pa.ipc.open_stream(stream)
        return streamed.schema, lambda _: iter(streamed)
    file = pa.ipc.open_file(stream)
    return file.schema, lambda _: (file.get_batch(number) for number in range(file.num_record_batches))


def _csv(stream: IO[bytes]) -> Read:
    reader = csv.open_csv(stream, read_options=csv.ReadOptions(block_size=BLOCK_BYTES))
    return reader.schema, lambda _: iter(reader)


def _json(stream: IO[bytes]) -> Read:
    first = stream.read(1)
    while first.isspace():
        first = stream.read(1)
    stream.seek(0)
    if first == b"[":
        table = pa.Table.from_pylist(json.load(stream))
        return table.schema, lambda _: iter(table.to_batches())
    reader = arrow_json.open_json(stream, read_options=arrow_json.ReadOptions(block_size=BLOCK_BYTES))
    return reader.schema, lambda _: iter(reader)


READERS: Final[Mapping[str, Callable[[IO[bytes]], Read]]] = {
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _json,
    ".ndjson": _json,
}
