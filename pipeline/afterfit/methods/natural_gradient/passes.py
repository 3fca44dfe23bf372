"""Passes of the network at draws of its weights: log densities, and their gradients for each example, as factors."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from afterfit.algebra import Batch, State, micro_batches
from afterfit.layout import Tile
from afterfit.network.likelihoods import Likelihood
from afterfit.network.workbench import Workbench
from afterfit.precision import CORE
from afterfit.rows.factored import factors_of
from afterfit.rows.tape import TapeBackend
from afterfit.training.epochs import part
from afterfit.training.point_estimate import targets_of


class Passed(NamedTuple):
    """What one slice of a step gave."""

    density: Tensor  # (), sum of the log densities, nats, float64
    factors: Sequence[State]  # of the gradients, for each run of tiles: "<run of rows>/..."


def runs_of(states: Sequence[State]) -> list[dict[str, Tensor]]:
    """The runs of rows of all slices, one after another, from the factors that each gave for a run of tiles."""
    runs: list[dict[str, Tensor]] = []
    for state in states:
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            number, _, rest = name.partition("/")
            found.setdefault(number, {})[rest] = tensor
        runs.extend(found[number] for number in sorted(found))
    return runs


def pairs_of(num_examples: int, num_draws: int, which: int, num_slices: int) -> list[tuple[int, slice]]:
    """A slice's part of all pairs of a draw and an example, draw by draw: the draw, and which examples."""
    chosen = part(num_draws * num_examples, which, num_slices)
    pairs = []
    for draw in range(num_draws):
        first = max(chosen.start - draw * num_examples, 0)
        last = min(chosen.stop - draw * num_examples, num_examples)
        if first < last:
            pairs.append((draw, slice(first, last)))
    return pairs


class DrawnPasses:
    """The network of a worker, at whatever weights are drawn."""

    def __init__(self, bench: Workbench):
        self.bench = bench
        self.examples = bench.data("train")
        self._backend = TapeBackend(bench.network, bench.memory_gb, bench.arithmetic)

    def run(
        self,
        drawn: Mapping[str, Tensor],
        pairs: Sequence[tuple[int, slice]],
        batch: Sequence[int],
        likelihood: Likelihood,
        shards: Sequence[Sequence[Tile]],
    ) -> Passed:
        """Passes over the pairs of a slice.

        Args:
            drawn: the weights at its draws, tile -> (as many as there are pairs, P_tile).
            pairs: of `pairs_of`.
            batch: indexes of the minibatch.
            likelihood: at this step.
            shards: runs of tiles that the gradients are wanted for.
        """
        layout = self.bench.layout
        density = torch.zeros((), dtype=CORE)
        factors: list[dict[str, Tensor]] = [{} for _ in shards]
        number = 0
        for column, (_, chosen) in enumerate(pairs):
            weights = layout.assemble({name: drawn[name][column] for name in drawn})
            backend = self._backend.at(weights)
            for examples in self._planned(batch[chosen]):
                rows = backend.rows(examples, lambda outputs_BC, met=examples: _slopes(likelihood, outputs_BC, met))
                density += (
                    likelihood.log_density(rows.outputs_BC, targets_of(examples).to(rows.outputs_BC.device))
                    .sum()
                    .to(CORE)
                    .cpu()
                )
                for tiles, found in zip(shards, factors, strict=True):
                    found |= {f"{number:04d}/{name}": made for name, made in factors_of(rows, tiles).items()}
                number += 1
        return Passed(density, factors)

    def _planned(self, indexes: Sequence[int]) -> Iterator[Batch]:
        return map(self.examples.batch, micro_batches(self.examples, indexes, self.bench.micro_batch))


def _slopes(likelihood: Likelihood, outputs_BC: Tensor, batch: Batch) -> Tensor:
    return likelihood.gradient(outputs_BC, targets_of(batch).to(outputs_BC.device))[:, None].to(outputs_BC)
