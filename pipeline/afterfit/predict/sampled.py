"""Outputs of the network itself, not linearised, at stored draws of its weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from afterfit.algebra import Batch, Cursor, Result, State, Unit, batches, fold, in_data_order, micro_batches
from afterfit.network.functional import Network
from afterfit.network.moved import moved_weights
from afterfit.network.workbench import Outline, Workbench, shard_units
from afterfit.precision import state_dtype
from afterfit.rows.columns import held_columns


def plain_outputs(network: Network, pieces: Sequence[Batch], weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """Outputs (B, C) of all micro-batches, one after another, in the dtype that sums are kept in."""
    with torch.no_grad():
        outputs_BC = torch.cat([network(piece.inputs, weights) for piece in pieces])
    return outputs_BC.to(state_dtype(outputs_BC.dtype)).cpu()


@dataclass(frozen=True)
class SampledOutputs:
    """Cache how far the outputs of a data set move when the weights become theta + scale d, for a chunk of k draws d.

    Leaves behind what `DrawFeatures` does, one tile a shard, with f(theta + scale d) - f(theta) for J d: `mean` (n, C),
    `features` (n, C, k), `target` and `index`. Cost: k + 1 forward passes over the data; holds P numbers.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    role: str

    def units(self, outline: Outline) -> Sequence[Unit]:
        """Shards of the data set."""
        return shard_units(outline, self.role)

    def on(self, bench: Workbench) -> "_SampledTask":
        """Needs the network, the data set, the draws and the scale."""
        return _SampledTask(self, bench)


@dataclass(frozen=True)
class _SampledTask:
    recipe: SampledOutputs
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        data = self.bench.data(self.recipe.role)
        shard = range(unit.details["start"], unit.details["stop"])
        pieces = list(batches(data, micro_batches(data, shard, self.bench.micro_batch)))
        each = _Outputs(self.bench, pieces)
        num_draws = next(iter(each.draws.values())).shape[1]
        state = fold(each, lambda position: range(position, num_draws), num_draws, cursor)
        mean_NC = plain_outputs(self.bench.network, pieces)
        whole = {
            "mean": mean_NC,
            "features": torch.stack([state[f"outputs/{draw:05d}"] for draw in range(num_draws)], dim=2)
            - mean_NC[..., None],
            "index": torch.cat([piece.indexes for piece in pieces]),
        }
        targets = [piece.targets for piece in pieces if piece.targets is not None]
        if targets:
            whole["target"] = torch.cat(targets)
        return Result(tensors={family: [(unit.name, values)] for family, values in in_data_order(whole).items()})


@dataclass(frozen=True)
class _Outputs:
    """Keeps the outputs under each draw, in order."""

    bench: Workbench
    pieces: Sequence[Batch]

    @cached_property
    def draws(self) -> Mapping[str, Tensor]:
        return held_columns(self.bench.input("draws").tiles("draws"), self.bench.layout, self.bench.memory_gb)

    def init(self) -> State:
        return {}

    def accumulate(self, state: State, batch: int) -> State:
        scale = self.bench.input("scale").facts["scale"]
        weights = moved_weights(self.bench.network, self.draws, batch, scale)
        return {**state, f"outputs/{batch:05d}": plain_outputs(self.bench.network, self.pieces, weights)}

    def merge(self, left: State, right: State) -> State:
        return {**left, **right}
