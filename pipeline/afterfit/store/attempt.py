"""One attempt at an artifact: data under names of its own, unseen by readers until a marker names them."""

import re
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from hashlib import sha256
from typing import Any, BinaryIO
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from afterfit.errors import ConfigError, StoreError
from afterfit.store.arrow import HashingSink, TileWriter, dtype_name, memory_of
from afterfit.store.files import Files
from afterfit.store.manifest import DataFile, StoredTile

GOOD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


class Attempt:
    """Writes the data files of one artifact, each closed, synchronised and of the size that was written."""

    def __init__(self, files: Files, folder: str) -> None:
        self.name = uuid4().hex[:12]
        self._files = files
        self._folder = folder
        self._names: list[str] = []  # in the order opened
        self._done: dict[int, DataFile] = {}

    def tensors(self, family: str, tiles: Iterable[tuple[str, Tensor]]) -> tuple[StoredTile, ...]:
        """Write a family tile by tile; at most one tile is held. One file for each kind of row.

        Raises:
            ConfigError: for a name that cannot be used, or is used twice, or a dtype that cannot be stored.
            StoreError: if the store cannot be written.
        """
        _check_name(family)
        stored: dict[str, StoredTile] = {}
        writers: dict[Any, tuple[int, TileWriter]] = {}
        with ExitStack() as streams:
            for name, tensor in tiles:
                if name in stored:
                    raise ConfigError(f"The tile {name!r} of {family!r} comes twice: give every tile its own name.")
                values = tensor.detach().cpu().contiguous()
                dtype = dtype_name(values, f"{family}/{name}")
                kind = (dtype, tuple(values.shape[1:]))
                if kind not in writers:
                    suffix = f"~{len(writers)}" if writers else ""
                    number, sink = self._open(f"{family}{suffix}.arrow", streams)
                    writers[kind] = number, TileWriter(sink, *kind)
                number, writer = writers[kind]
                memory = memory_of(values)
                offset = writer.write(memory, len(values) if values.dim() else 1, values.numel())
                stored[name] = StoredTile(name, tuple(values.shape), dtype, sha256(memory).hexdigest(), number, offset)
            for number, writer in writers.values():
                writer.close()
                self._finish(number, writer.sink)
        return tuple(stored.values())

    def table(self, name: str, table: pa.Table) -> int:
        """Write a table as Parquet; returns the number of its file."""
        _check_name(name)
        with ExitStack() as streams:
            number, sink = self._open(f"{name}.parquet", streams)
            # In one chunk: how a table was put together must not show in its bytes.
            pq.write_table(table.combine_chunks(), pa.PythonFile(sink, mode="w"), compression="zstd")
            self._finish(number, sink)
        return number

    def data_files(self) -> tuple[DataFile, ...]:
        """All files, in the order opened."""
        return tuple(self._done[number] for number in range(len(self._names)))

    def discard(self) -> None:
        """Remove what was written, as far as that is possible; what stays is named by no marker."""
        for name in self._names:
            with suppress(StoreError):
                self._files.delete(f"{self._folder}/{name}")

    def _open(self, suffix: str, streams: ExitStack) -> tuple[int, HashingSink]:
        number = len(self._names)
        name = f"{self.name}.{suffix}"
        self._names.append(name)
        stream = self._files.open_output(f"{self._folder}/{name}")
        streams.callback(_abandon, stream)
        return number, HashingSink(stream, self._files.uri)

    def _finish(self, number: int, sink: HashingSink) -> None:
        name = self._names[number]
        self._files.finish(sink.stream)
        size = self._files.size(f"{self._folder}/{name}")
        if size != sink.position:
            raise StoreError(
                f"The store {self._files.uri} kept {size} of the {sink.position} bytes of {name}: "
                "check its disk, then run the same command again."
            )
        self._done[number] = DataFile(name, sink.position, sink.hexdigest())


def _check_name(name: str) -> None:
    if not GOOD_NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name tensors or a table in a store: use letters, digits, '_', '.', '-', '+'."
        )


def _abandon(stream: BinaryIO) -> None:
    """Close a stream whose file nobody will name; one that is finished is closed already."""
    with suppress(OSError):
        stream.close()
