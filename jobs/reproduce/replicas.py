"""Many small fits side by side: whose rows each learns from, its batches, and its noise, all named by place.

Shapes: R replicas, D versions of the data (one for each split), N rows, I inputs, M examples of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from afterfit.seeds import Seed

NOISE_STEPS = 16
"""Steps whose noise is drawn together."""


class Batch(NamedTuple):
    """One for each replica; places beyond a replica's batch have weight 0."""

    inputs_RMI: Tensor
    targets_RM: Tensor
    weights_RM: Tensor  # 1 or 0
    scale_R: Tensor  # examples that the replica learns from, for each one in its batch


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """What each replica learns from.

    An epoch takes every example of a replica once. It has as many batches for all, and the batches of one replica
    differ in size by one example at most, wherever numbers of rows differ.
    """

    names: tuple[str, ...]  # each replica's noise depends on its name, and on no other replica
    inputs_DNI: Tensor
    targets_DN: Tensor
    version_R: Tensor  # of the data
    rows: tuple[Tensor, ...]  # of each replica, below N
    batch_size: int

    @cached_property
    def steps_per_epoch(self) -> int:
        """Batches that hold `batch_size` at most, for the replica with the most rows."""
        return -(-max(len(rows) for rows in self.rows) // self.batch_size)

    @cached_property
    def seeds(self) -> tuple[Seed, ...]:
        """One for each replica."""
        return tuple(Seed(0, ("replica", name)) for name in self.names)

    def epoch(self, number: int) -> Epoch:
        """The batches of an epoch."""
        steps = torch.arange(self.steps_per_epoch + 1)
        indexes, weights = [], []
        for seed, rows in zip(self.seeds, self.rows, strict=True):
            order = torch.randperm(len(rows), generator=seed.child("order", number).generator())
            bounds = steps * len(rows) // self.steps_per_epoch
            place_KM = bounds[:-1, None] + torch.arange(self.batch_size)
            weights.append(place_KM < bounds[1:, None])
            indexes.append(rows[order[place_KM.clamp_max(len(rows) - 1)]])
        counts_R = torch.tensor([len(rows) for rows in self.rows], dtype=self.targets_DN.dtype)
        return Epoch(self, torch.stack(indexes, 1), torch.stack(weights, 1).to(self.targets_DN.dtype), counts_R)


class Epoch(NamedTuple):
    """Batches, by step."""

    replicas: Replicas
    index_KRM: Tensor
    weights_KRM: Tensor
    counts_R: Tensor

    def batch(self, step: int) -> Batch:
        """Batch `step` of every replica."""
        version = self.replicas.version_R[:, None]
        index_RM, weights_RM = self.index_KRM[step], self.weights_KRM[step]
        return Batch(
            self.replicas.inputs_DNI[version, index_RM],
            self.replicas.targets_DN[version, index_RM],
            weights_RM,
            self.counts_R / weights_RM.sum(dim=1),
        )


class Noise:
    """Standard normals (R, P, S) of each step of an epoch, drawn `NOISE_STEPS` at a time."""

    def __init__(self, replicas: Replicas, epoch: int, num_weights: int, num_draws: int) -> None:
        self._seeds = [seed.child("noise", epoch, num_weights, num_draws) for seed in replicas.seeds]
        self._shape = (NOISE_STEPS, num_weights, num_draws)
        self._dtype = replicas.targets_DN.dtype
        self._at = -1
        self._block = torch.empty(0)

    def step(self, number: int) -> Tensor:
        """Of step `number`."""
        at, inside = divmod(number, NOISE_STEPS)
        if at != self._at:
            places = (seed.child(at).generator() for seed in self._seeds)
            drawn = [torch.randn(self._shape, generator=place, dtype=self._dtype) for place in places]
            self._at, self._block = at, torch.stack(drawn, dim=1)
        return self._block[inside]
