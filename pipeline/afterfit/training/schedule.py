"""Which examples a step takes and how far it goes: pure functions of the settings and the step's number."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from afterfit.seeds import Seed
from afterfit.training.settings import TrainingSettings


@dataclass(frozen=True)
class Schedule:
    """Of one training run over a data set of known length."""

    settings: TrainingSettings
    num_examples: int

    @property
    def steps_an_epoch(self) -> int:
        """Batches that an epoch is cut into."""
        return -(-self.num_examples // self.settings.batch_size)

    @property
    def num_steps(self) -> int:
        """Of the whole run."""
        return self.steps_an_epoch * self.settings.epochs

    @property
    def smallest_batch(self) -> int:
        """Examples; the largest has at most one more."""
        return self.num_examples // self.steps_an_epoch

    def batch(self, step: int) -> list[int]:
        """Indexes of the examples of a step; the steps of an epoch take every example once."""
        epoch, position = divmod(step, self.steps_an_epoch)
        order = _permutation(self.settings.seed, epoch, self.num_examples)
        return list(order[slice(*_part(len(order), position, self.steps_an_epoch))])

    def slice(self, step: int, number: int) -> list[int]:
        """Indexes of the examples of one slice of a step; the slices' sizes differ by at most one."""
        batch = self.batch(step)
        return batch[slice(*_part(len(batch), number, self.settings.num_slices))]

    def learning_rate(self, step: int) -> float:
        """Step size of a step."""
        peak, total = self.settings.learning_rate, self.num_steps
        warmup = round(self.settings.warmup_fraction * total)
        if step < warmup:
            return peak * (step + 1) / warmup
        if self.settings.schedule == "constant":
            return peak
        return peak * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def _part(length: int, number: int, parts: int) -> tuple[int, int]:
    return length * number // parts, length * (number + 1) // parts


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_examples: int) -> tuple[int, ...]:
    place = Seed(seed, ("training",)).child("order", epoch)
    return tuple(torch.randperm(num_examples, generator=place.generator()).tolist())
