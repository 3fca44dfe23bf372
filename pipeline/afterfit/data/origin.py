"""From the settings to the pieces that a data set consists of, and what identifies them."""

import hashlib
import importlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from afterfit.data.cut import CutPiece, Shelf, cut, part_place
from afterfit.data.datafile import DataFile
from afterfit.data.items import ItemsPiece
from afterfit.data.locate import find_files, search
from afterfit.data.settings import DataSettings
from afterfit.data.tables import FilePiece, MappedRows, Piece
from afterfit.errors import ConfigError, DataError


@dataclass(frozen=True)
class Origin:
    """Where the rows are."""

    pieces: Sequence[Piece]
    identity: Mapping[str, Any] | None  # None: the contents are the identity
    renamed: Mapping[str, str] = field(default_factory=dict)  # name in the settings -> name in the pieces
    dataset: Any = None  # what a factory gave, where it can be indexed


def open_origin(settings: DataSettings, scratch: Path, shelf: Shelf | None, place: str | None) -> Origin:
    """Find the data. See `open_examples` for the arguments and errors."""
    if settings.factory is not None:
        return _from_factory(settings, scratch, shelf, place)
    if settings.path is not None and (settings.hub is None or search(settings.path)):
        return Origin(*_from_files(settings.path, scratch))
    if settings.streaming:
        return _from_stream(settings, scratch, shelf, place)
    dataset = _hub_dataset(settings)
    identity = {
        "hub": settings.hub if not Path(str(settings.hub)).exists() else Path(str(settings.hub)).name,
        "subset": settings.subset,
        "split": settings.split,
        "fingerprint": dataset._fingerprint,
    }
    return Origin([DatasetPiece(dataset, str(settings.hub))], identity, settings.hub_columns)


class DatasetPiece:
    """A Hugging Face data set: a memory-mapped table."""

    def __init__(self, dataset: Any, name: str):
        self.dataset = dataset
        self.name = name
        self._mapped: dict[tuple[str, ...], MappedRows] = {}

    @property
    def columns(self) -> Sequence[str]:
        """Its features."""
        return list(self.dataset.column_names)

    def num_rows(self, columns: Sequence[str]) -> int:
        """Its length."""
        return len(self.dataset)

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """From the table below it, without decoding."""
        key = tuple(columns)
        if key not in self._mapped:
            self._mapped[key] = MappedRows(self.dataset.select_columns(list(columns)).with_format("arrow")[:])
        return self._mapped[key].take(rows)

    def check(self) -> None:
        """The library's own cache is named by fingerprint."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}}


def _from_files(path: str, scratch: Path) -> tuple[list[FilePiece], dict[str, Any]]:
    files = [DataFile.of(found, scratch) for found in find_files(path)]
    return [FilePiece(file, scratch) for file in files], {"files": [file.identity() for file in files]}


def side_table(path: str, columns: Sequence[str], scratch: Path) -> pa.Table:
    """A small table, whole."""
    pieces, _ = _from_files(path, scratch)
    return pa.concat_tables(
        [piece.take(np.arange(piece.num_rows(columns)), columns) for piece in pieces],
        promote_options="permissive",
    )


def _hub_dataset(settings: DataSettings) -> Any:
    import datasets

    try:
        return datasets.load_dataset(
            str(settings.hub), settings.subset, split=settings.split, streaming=settings.streaming
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"The data set {settings.hub!r} (subset {settings.subset}, split {settings.split!r}) cannot be "
            f"loaded: {str(error).splitlines()[0].rstrip('.')}. Check the names and the connection, or give "
            "a `path`."
        ) from error


def _from_stream(settings: DataSettings, scratch: Path, shelf: Shelf | None, place: str | None) -> Origin:
    name = f"{settings.hub}/{settings.subset or 'default'}/{settings.split}"
    origin = _from_cut(lambda: _hub_dataset(settings), name, settings, scratch, shelf, place)
    return Origin(origin.pieces, origin.identity, settings.hub_columns)


def _from_factory(settings: DataSettings, scratch: Path, shelf: Shelf | None, place: str | None) -> Origin:
    name = str(settings.factory)
    made: list[Any] = []
    if shelf is None or shelf.find(f"{_cut_place(place, name, settings)}/index") is None:
        made.append(_call(name))
        if hasattr(made[0], "__len__") and hasattr(made[0], "__getitem__") and not isinstance(made[0], Mapping):
            return _from_dataset(made[0], name)
    return _from_cut(lambda: made[0], name, settings, scratch, shelf, place)


def _from_dataset(dataset: Any, name: str) -> Origin:
    if "datasets" in sys.modules and isinstance(dataset, sys.modules["datasets"].Dataset):
        return Origin([DatasetPiece(dataset, name)], {"dataset": dataset._fingerprint}, dataset=dataset)
    return Origin([ItemsPiece(dataset, name)], None, dataset=dataset)


def _from_cut(
    make: Any, name: str, settings: DataSettings, scratch: Path, shelf: Shelf | None, place: str | None
) -> Origin:
    if shelf is None:
        raise ConfigError(f"{name} can only be read once from start to end; open it through a store, to keep it there.")
    where = _cut_place(place, name, settings)
    index = shelf.find(f"{where}/index")
    if index is None:
        source = make()
        if not isinstance(source, Iterable) or isinstance(source, Mapping):
            raise ConfigError(f"{name} gave a {type(source).__name__}; it must give a data set or an iterable.")
        limit = None if settings.max_examples is None else settings.skip + settings.max_examples
        cut(source, limit, shelf, where, name)
        index = shelf.find(f"{where}/index")
    if index is None:
        raise ConfigError(f"The store did not keep {where!r}; use another store.")
    pieces = [
        CutPiece(shelf, part_place(where, number), facts, index.facts["columns"], scratch)
        for number, facts in enumerate(index.facts["parts"])
    ]
    return Origin(pieces, {"cut": [dict(facts) for facts in index.facts["parts"]]})


def _cut_place(place: str | None, name: str, settings: DataSettings) -> str:
    """Named by what decides which items are kept."""
    what = json.dumps([name, settings.skip, settings.max_examples])
    return f"{place or 'data'}/{hashlib.sha256(what.encode()).hexdigest()[:16]}"


def _call(name: str) -> Any:
    module, _, function = name.partition(":")
    try:
        made = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The factory {name!r} cannot be imported: {error}. It is written module:function."
        ) from error
    return made()
