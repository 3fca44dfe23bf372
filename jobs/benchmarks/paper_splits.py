"""The papers' data sets with their splits, standardised by each split's own training rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from afterfit.data.locate import candidates
from afterfit.errors import DataError


@dataclass(frozen=True)
class Splits:
    """A data set, and rows to train and to test on for each split."""

    features_Nd: Tensor  # float64, as they come
    targets_N: Tensor
    train: tuple[Tensor, ...]
    test: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.train)

    @cached_property
    def num_inputs(self) -> int:
        """Features and the constant one."""
        return self.features_Nd.shape[1] + 1

    def with_ones(self) -> Tensor:
        """Features as they come and a last one, (1, N, I): one version for all splits."""
        ones_N1 = torch.ones(len(self.features_Nd), 1, dtype=self.features_Nd.dtype)
        return torch.cat([self.features_Nd, ones_N1], dim=1)[None]

    def standardised(self) -> Standardised:
        """A version of the data for each split, from nothing but its training rows."""
        inputs, targets, scales = [], [], []
        for rows in self.train:
            features, target = _standard(self.features_Nd, rows), self.targets_N[rows]
            inputs.append(torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], dim=1))
            targets.append((self.targets_N - target.mean()) / target.std())
            scales.append(target.std())
        return Standardised(torch.stack(inputs).float(), torch.stack(targets).float(), torch.stack(scales))


@dataclass(frozen=True)
class Standardised:
    """One version for each split."""

    inputs_DNI: Tensor  # the last input is one
    targets_DN: Tensor
    scale_D: Tensor  # units of a target of 1, float64


def read_splits(name: str) -> Splits:
    """A folder of the shared data: `data.parquet` with `splits.parquet`, or one split, `train` and `test`.

    Raises:
        DataError: if there is no such folder.
    """
    folder = _folder(name)
    if not (folder / "splits.parquet").exists():
        tables = [pq.read_table(folder / f"{role}.parquet") for role in ("train", "test")]
        train, test = (len(table) for table in tables)
        whole = pa.concat_tables(tables)
        return Splits(*_numbers(whole), (torch.arange(train),), (torch.arange(train, train + test),))
    listed = pq.read_table(folder / "splits.parquet")
    split_L = listed["split"].to_numpy()
    row_L, is_train_L = listed["row"].to_numpy().astype(np.int64), _is_train(listed)

    def rows(role_L: np.ndarray) -> Iterator[Tensor]:
        for split in range(int(split_L.max()) + 1):
            yield torch.from_numpy(row_L[(split_L == split) & role_L])

    return Splits(*_numbers(pq.read_table(folder / "data.parquet")), tuple(rows(is_train_L)), tuple(rows(~is_train_L)))


def _folder(name: str) -> Path:
    places = candidates(name)
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        looked = ", ".join(map(str, places))
        raise DataError(
            f"Found no folder {name!r}; looked for {looked}. Let $AFTERFIT_DATA name the folder of the data."
        )
    return found


def _is_train(listed: pa.Table) -> np.ndarray:
    return listed["role"].cast(pa.string()).to_numpy() == "train"


def _numbers(table: pa.Table) -> tuple[Tensor, Tensor]:
    names = [name for name in table.column_names if name[0] == "x" and name[1:].isdigit()]
    features = np.stack([table[name].to_numpy().astype(np.float64) for name in names], axis=1)
    return torch.from_numpy(features), torch.from_numpy(table["y"].to_numpy().astype(np.float64))


def _standard(features_Nd: Tensor, rows: Tensor) -> Tensor:
    """A feature that is constant on these rows stays one that says nothing."""
    spread_d = features_Nd[rows].std(dim=0)
    return (features_Nd - features_Nd[rows].mean(dim=0)) / torch.where(spread_d > 1e-12, spread_d, 1.0)
