"""Which examples a step takes: every epoch takes each once, in an order of its own."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from afterfit.seeds import Seed


@dataclass(frozen=True)
class Epochs:
    """Passes over a data set of known length in batches, as even as possible and never above `batch_size`."""

    num_examples: int
    batch_size: int
    num_epochs: int
    seed: int

    @property
    def steps_an_epoch(self) -> int:
        """Batches that an epoch is cut into."""
        return -(-self.num_examples // self.batch_size)

    @property
    def num_steps(self) -> int:
        """Of the whole run."""
        return self.steps_an_epoch * self.num_epochs

    @property
    def smallest_batch(self) -> int:
        """Examples; the largest has at most one more."""
        return self.num_examples // self.steps_an_epoch

    def batch(self, step: int) -> list[int]:
        """Indexes of the examples of a step."""
        epoch, position = divmod(step, self.steps_an_epoch)
        order = _permutation(self.seed, epoch, self.num_examples)
        return list(order[part(len(order), position, self.steps_an_epoch)])


def part(length: int, number: int, parts: int) -> slice:
    """One of several runs of things whose lengths differ by at most one."""
    return slice(length * number // parts, length * (number + 1) // parts)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_examples: int) -> tuple[int, ...]:
    place = Seed(seed, ("training",)).child("order", epoch)
    return tuple(torch.randperm(num_examples, generator=place.generator()).tolist())
