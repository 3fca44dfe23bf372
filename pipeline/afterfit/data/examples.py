"""Data sets as the fits see them: any examples in any order, the same each time."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from afterfit.algebra import Batch, consecutive
from afterfit.data.checks import finite
from afterfit.data.cut import Shelf
from afterfit.data.identity import IdentifiedExamples, chosen_digest, contents_digest
from afterfit.data.images import read_images
from afterfit.data.indexed import IndexedExamples
from afterfit.data.lengths import planned_by_tokens
from afterfit.data.numbers import Place, Scale, column_tensor, numbers_of
from afterfit.data.origin import Origin, open_origin, side_table
from afterfit.data.scratch import scratch_folder
from afterfit.data.settings import (
    DataSettings,
    ImageColumn,
    NumericColumns,
    Splits,
    Standardise,
    TextColumns,
    TokenColumn,
)
from afterfit.data.tables import Rows
from afterfit.data.text import TextReader
from afterfit.errors import ConfigError, DataError

FORMAT = 1  # raised when the same settings give other numbers
TARGET_ROWS = 1 << 16
LENGTH_ROWS = 1 << 10


def open_examples(
    settings: DataSettings,
    *,
    shelf: Shelf | None = None,
    place: str | None = None,
    scratch: Path | None = None,
) -> IdentifiedExamples:
    """Find a data set, choose its rows and bind its columns. Nothing is decoded yet.

    Args:
        settings: what the configuration says.
        shelf: the store that an iterable is cut into; not used by other origins.
        place: below which name in the store.
        scratch: local folder for memory-mapped copies; the user's cache by default.

    Raises:
        DataError: missing file, empty data set, unknown column, fewer rows than `take`.
        ConfigError: a package, factory, tokenizer or store that is not there.

    Cost: local files are hashed once, and columns that cannot be mapped as they are get copied to scratch
    when rows are first read.
    """
    scratch = scratch or scratch_folder()
    origin = open_origin(settings, scratch, shelf, place)
    columns = settings.columns
    if origin.dataset is not None and not columns.inputs and columns.target_standardise is None:
        rows = Rows(origin.pieces, [])
        rows.chosen = _choose(settings, rows, scratch)
        names = columns.label or "label", columns.target or "target"
        if isinstance(names[1], list):
            raise ConfigError("`target` of a factory without `inputs` is one key; give `columns.inputs` as well.")
        return IndexedExamples(origin.dataset, rows=rows.chosen, label=names[0], target=names[1])
    return TableExamples(settings, origin, scratch)


class TableExamples:
    """Examples in the rows of tables, decoded batch by batch; memory does not grow with the data."""

    def __init__(self, settings: DataSettings, origin: Origin, scratch: Path):
        self.settings = settings
        self._origin = origin
        columns = settings.columns
        self._targets = [columns.target] if isinstance(columns.target, str) else list(columns.target or [])
        self._answers = [columns.label] if columns.label else self._targets
        names = _all_names(origin) if not columns.inputs else []
        self._inputs = dict(columns.inputs) or {name: name for name in names if name not in self._answers}
        self._texts = {
            name: TextReader(name, how) for name, how in self._inputs.items() if isinstance(how, TextColumns)
        }
        wanted = [*self._answers, *(name for how in self._inputs.values() for name in _columns_of(how))]
        self._rows = Rows(origin.pieces, list(dict.fromkeys(wanted)), origin.renamed)
        self._rows.chosen = _choose(settings, self._rows, scratch)
        self._scales = {
            name: self._scale(how.standardise, how.columns, scratch)
            for name, how in self._inputs.items()
            if isinstance(how, NumericColumns) and how.standardise is not None
        }
        shift = columns.target_standardise
        self._target_scale = self._scale(shift, columns.target, scratch) if shift and columns.target else None
        self.num_examples = len(self._rows)

    def batch(self, indexes: Sequence[int]) -> Batch:
        """Read, decode and verify these examples.

        Raises:
            DataError: for a row that cannot be read or is not finite, or a file that changed; names it.
        """
        return self._batch(indexes, is_full=False)

    def full_batch(self, indexes: Sequence[int]) -> Batch:
        """The same, texts padded to their `max_length`."""
        return self._batch(indexes, is_full=True)

    def micro_batches(self, indexes: Sequence[int], micro_batch: int) -> Sequence[Sequence[int]]:
        """Runs in the order given, unless texts are padded to the longest: then by tokens, see `planned_by_tokens`.

        Cost: such texts of these examples are tokenised once.
        """
        ragged = [text for text in self._texts.values() if text.settings.pad_to == "longest"]
        if not ragged or not indexes:
            return consecutive(indexes, micro_batch)
        columns = list(dict.fromkeys(name for text in ragged for name in text.columns))
        parts = []
        for some in consecutive(indexes, LENGTH_ROWS):
            table = self._rows.take(some, columns)
            place = partial(_place_of, self._rows, some)
            parts.append(np.stack([text.lengths(table, place) for text in ragged], axis=1))
        max_lengths = [text.settings.max_length for text in ragged]
        return planned_by_tokens(indexes, np.concatenate(parts), max_lengths, micro_batch)

    def _batch(self, indexes: Sequence[int], *, is_full: bool) -> Batch:
        places = [int(index) for index in indexes]
        table = self._rows.take(places)

        def place(position: int) -> str:
            return self._rows.place(places[position])

        inputs: dict[str, Tensor] = {}
        for name, how in self._inputs.items():
            if isinstance(how, TextColumns) and is_full:
                inputs |= self._texts[name].read_full(table, place)
            else:
                inputs |= self._read(name, how, table, places, place)
        targets = self._answer(table, place) if self._answers else None
        return finite(Batch(inputs, targets, torch.tensor(places)), self._rows.place)

    def targets(self) -> Tensor:
        """Labels (N,), or numbers (N,) or (N, C); other columns are not read from where they were not yet.

        Raises:
            DataError: if the settings name neither label nor target.
        """
        if not self._answers:
            raise DataError("The data set has no label or target; name one under `columns`.")
        parts = []
        for start in range(0, self.num_examples, TARGET_ROWS):
            indexes = range(start, min(start + TARGET_ROWS, self.num_examples))
            table = self._rows.take(indexes, self._answers)
            parts.append(self._answer(table, lambda position, start=start: self._rows.place(start + position)))
        return torch.cat(parts)

    def identity(self) -> dict[str, Any]:
        """Of the files, the hub's fingerprint or the contents; of the chosen rows, and of what is read."""
        settings = self.settings.model_dump(mode="json", include={"columns", "augment"})
        for name, reader in self._texts.items():
            described = settings["columns"]["inputs"][name]
            described["tokenizer"] = reader.digest()
            if described["pad_to"] == "max_length":
                del described["pad_to"]  # as before there was a choice: such data are still the same
        scales = {name: scale.facts() for name, scale in self._scales.items()}
        if self._target_scale is not None:
            scales["target"] = self._target_scale.facts()
        chosen = chosen_digest(self._rows.chosen)
        origin = self._origin.identity or {"contents": contents_digest(self)}
        return {"format": FORMAT, "origin": origin, "rows": chosen, "scales": scales, **settings}

    def _read(self, name: str, how: Any, table: pa.Table, indexes: list[int], place: Place) -> dict[str, Tensor]:
        if isinstance(how, ImageColumn):
            return {name: read_images(table, indexes, how, self.settings.augment, place)}
        if isinstance(how, TextColumns):
            return self._texts[name].read(table, place)
        if isinstance(how, TokenColumn):
            return {name: _integers(column_tensor(table, how.column, place), how.column)}
        if isinstance(how, NumericColumns):
            numbers = numbers_of(table, how.columns, place)
            return {name: self._scales[name].apply(numbers, f"The input {name!r}") if name in self._scales else numbers}
        return {name: column_tensor(table, how, place)}

    def _answer(self, table: pa.Table, place: Place) -> Tensor:
        label, target = self.settings.columns.label, self.settings.columns.target
        if label is not None:
            labels = _integers(column_tensor(table, label, place), label)
            if labels.dim() != 1:
                raise DataError(f"The label {label!r} holds lists; one class number for each example is needed.")
            return labels
        numbers = numbers_of(table, target or [], place)
        return self._target_scale.apply(numbers, "The target") if self._target_scale else numbers

    def _scale(self, how: Standardise, columns: str | list[str], scratch: Path) -> Scale:
        if how.role is None or self.settings.splits is None:
            std = np.asarray(how.std, dtype=np.float64)
            return Scale(np.asarray(how.mean, dtype=np.float64), np.where(std == 0, 1.0, std))
        known = Rows(self._rows.pieces, [columns] if isinstance(columns, str) else columns, self._origin.renamed)
        splits = self.settings.splits
        known.chosen = _role_rows(splits.model_copy(update={"role": how.role}), known.num_stored, scratch)
        return Scale.of(numbers_of(known.take(range(len(known))), columns, known.place))


def _place_of(rows: Rows, indexes: Sequence[int], position: int) -> str:
    return rows.place(indexes[position])


def _all_names(origin: Origin) -> list[str]:
    """The columns of the first piece, by the names that the settings use."""
    known = {stored: name for name, stored in origin.renamed.items()}
    return [known.get(name, name) for name in origin.pieces[0].columns] if origin.pieces else []


def _columns_of(how: Any) -> list[str]:
    if isinstance(how, str):
        return [how]
    named = how.columns if isinstance(how, NumericColumns) else how.column
    return [named] if isinstance(named, str) else list(named)


def _choose(settings: DataSettings, rows: Rows, scratch: Path) -> Sequence[int] | np.ndarray:
    stored: Sequence[int] | np.ndarray = range(rows.num_stored)
    if settings.splits is not None:
        stored = _role_rows(settings.splits, rows.num_stored, scratch)
    chosen = stored[settings.skip :]
    if settings.take is not None and len(chosen) < settings.take:
        raise DataError(
            f"`take` asks for {settings.take} rows, but there are {len(chosen)} after the first "
            f"{settings.skip}; lower it."
        )
    bounds = [bound for bound in (settings.take, settings.max_examples) if bound is not None]
    chosen = chosen[: min(bounds)] if bounds else chosen
    if not len(chosen):
        name = settings.path or settings.hub or settings.factory
        raise DataError(f"The data set {name!r} is empty: {rows.num_stored} rows, none of them chosen; lower `skip`.")
    return chosen


def _role_rows(splits: Splits, num_rows: int, scratch: Path) -> np.ndarray:
    table = side_table(splits.path, ["split", "row", "role"], scratch).to_pydict()
    everything = zip(table["split"], table["row"], table["role"], strict=True)
    rows = np.asarray(
        [row for split, row, role in everything if (split, role) == (splits.split, splits.role)], np.int64
    )
    if not len(rows):
        roles = ", ".join(sorted(map(str, set(table["role"]))))
        raise DataError(
            f"{splits.path!r} has no rows for split {splits.split} and role {splits.role!r}; "
            f"its splits go up to {max(table['split'], default=0)} and its roles are: {roles}."
        )
    if rows.min() < 0 or rows.max() >= num_rows:
        raise DataError(f"{splits.path!r} names row {rows.max()}, but the data set has {num_rows}; give its own table.")
    return rows


def _integers(values: Tensor, name: str) -> Tensor:
    if values.is_floating_point():
        raise DataError(f"The column {name!r} holds fractions where integers are needed; use `target` for numbers.")
    return values.long()
