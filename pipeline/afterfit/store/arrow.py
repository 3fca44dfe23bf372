"""Tensors as Arrow IPC files: a tile is a record batch, its rows are the tensor's first dimension."""

import json
from hashlib import sha256
from math import prod
from typing import Any, BinaryIO

import pyarrow as pa
import torch
from torch import Tensor

from afterfit.errors import ConfigError, StoreError
from afterfit.store.files import trouble

DTYPES: dict[str, tuple[torch.dtype, pa.DataType]] = {
    "float64": (torch.float64, pa.float64()),
    "float32": (torch.float32, pa.float32()),
    "float16": (torch.float16, pa.float16()),
    "bfloat16": (torch.bfloat16, pa.uint16()),  # Arrow has no such type: the bits, and the name beside them
    "int64": (torch.int64, pa.int64()),
    "int32": (torch.int32, pa.int32()),
    "int16": (torch.int16, pa.int16()),
    "int8": (torch.int8, pa.int8()),
    "uint8": (torch.uint8, pa.uint8()),
    "bool": (torch.bool, pa.uint8()),  # one byte each, as torch has it
}
NAMES = {dtype: name for name, (dtype, _) in DTYPES.items()}


class HashingSink:
    """A stream for Arrow to write into that counts and hashes what passes."""

    closed = False

    def __init__(self, stream: BinaryIO, uri: str) -> None:
        self.stream = stream
        self.uri = uri
        self.position = 0
        self.writes: list[tuple[int, int]] = []  # (position, bytes) since the last batch began
        self._hash = sha256()

    def write(self, data: bytes) -> int:
        """Pass on."""
        size = memoryview(data).nbytes
        with trouble(self.uri, "written"):
            self.stream.write(data)
        self._hash.update(data)
        self.writes.append((self.position, size))
        self.position += size
        return size

    def tell(self) -> int:
        """Bytes so far."""
        return self.position

    def flush(self) -> None:
        """Nothing to do: the stream is flushed when it is finished."""

    def close(self) -> None:
        """Nothing to do: who opened the stream finishes it."""

    def hexdigest(self) -> str:
        """Of all that passed."""
        return self._hash.hexdigest()


class TileWriter:
    """Writes tiles of one dtype and one trailing shape to one file, one record batch each."""

    def __init__(self, sink: HashingSink, dtype: str, trailing: tuple[int, ...]) -> None:
        self.sink = sink
        self._values = DTYPES[dtype][1]
        self._width = prod(trailing) if trailing else None
        column = self._values if self._width is None else pa.list_(self._values, self._width)
        about = {"dtype": dtype, "trailing": list(trailing)}
        schema = pa.schema([pa.field("values", column, nullable=False)], metadata={"afterfit": json.dumps(about)})
        self._schema = schema
        self._file = pa.PythonFile(sink, mode="w")
        self._writer = pa.ipc.new_file(self._file, schema, options=pa.ipc.IpcWriteOptions(allow_64bit=True))

    def write(self, memory: memoryview, num_rows: int, num_values: int) -> int:
        """Write one tile; returns where in the file its first value is, so that it can be read alone."""
        column = pa.Array.from_buffers(self._values, num_values, [None, pa.py_buffer(memory)])
        if self._width is not None:
            column = pa.Array.from_buffers(self._schema.field(0).type, num_rows, [None], children=[column])
        self.sink.writes.clear()
        self._writer.write_batch(pa.record_batch([column], schema=self._schema))
        # A batch without nulls ends with its one buffer, padded to 8 bytes.
        offset = self.sink.position - -(-memory.nbytes // 8) * 8
        if memory.nbytes and (offset, memory.nbytes) not in self.sink.writes:
            raise StoreError(
                f"This afterfit does not know how pyarrow {pa.__version__} lays out Arrow files: "
                "install the pyarrow that the constraints file names."
            )
        return offset

    def close(self) -> None:
        """Write the footer. The stream stays open."""
        self._writer.close()


def dtype_name(tensor: Tensor, name: str) -> str:
    """The name under which a dtype is recorded.

    Raises:
        ConfigError: for a dtype that has no place in Arrow.
    """
    if tensor.dtype not in NAMES:
        raise ConfigError(f"The tensor {name!r} is {tensor.dtype}, which cannot be stored: use {', '.join(DTYPES)}.")
    return NAMES[tensor.dtype]


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, shared with it: to write them out, or to read into them."""
    flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def empty(dtype: str, shape: tuple[int, ...]) -> Tensor:
    """A fresh tensor to read into."""
    return torch.empty(shape, dtype=DTYPES[dtype][0])
