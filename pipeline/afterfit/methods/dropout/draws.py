"""Draws of noisy weights, about their means, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from afterfit.algebra import Cursor, Result, Unit
from afterfit.layout import Tile
from afterfit.methods.dropout.weights import NoiseChoices, NoisyWeight, Site
from afterfit.methods.projection.chunk import Chunk
from afterfit.network.workbench import Outline, Workbench
from afterfit.seeds import Seed
from afterfit.training.point_estimate import trained_state


@dataclass(frozen=True)
class DropoutDraws(Chunk):
    """Draws `first` to `first + num - 1`: `draws` by tiles (P_tile, k), about the weights that were fitted.

    Cost: P k numbers; a draw holds the noise of one block.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    choices: NoiseChoices

    def units(self, outline: Outline) -> Sequence[Unit]:
        """One."""
        return [Unit("all")]

    def on(self, bench: Workbench) -> _DrawsTask:
        """Needs what was fitted only."""
        return _DrawsTask(self, bench)


@dataclass(frozen=True)
class _DrawsTask:
    recipe: DropoutDraws
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        facts = {"first": self.recipe.first, "num": self.recipe.num}
        return Result(tensors={"draws": self._tiles()}, facts=facts)

    def _tiles(self) -> Iterator[tuple[str, Tensor]]:
        sites = self.bench.input("fitted").facts["noisy"]
        held: dict[str, list[Tensor]] = {}  # of the blocks of the present tile
        for tile in self.bench.layout:
            names = {piece.block for piece in tile.pieces}
            held = {name: held[name] if name in held else self._moved(name) for name in names if name in sites}
            yield tile.name, self._cut(tile, held)

    def _cut(self, tile: Tile, held: dict[str, list[Tensor]]) -> Tensor:
        parts = []
        for piece in tile.pieces:
            if piece.block in held:
                rows = [moved[piece.start : piece.stop].reshape(-1) for moved in held[piece.block]]
                parts.append(torch.stack(rows, dim=1))
            else:
                parts.append(self._state[piece.block].new_zeros(piece.size, self.recipe.num))
        return torch.cat(parts)

    @cached_property
    def _state(self) -> dict[str, Tensor]:
        return trained_state(self.bench.input("fitted"))

    def _moved(self, block: str) -> list[Tensor]:
        """A block's displacements under each draw."""
        fitted = self.bench.input("fitted")
        mean = self._state[block]
        noisy = NoisyWeight(self.recipe.choices, Site(*fitted.facts["noisy"][block]), tuple(mean.shape))
        free = fitted.tiles("rates")[block].reshape(noisy.free_shape)
        seed = Seed(self.recipe.seed, ("draws",))
        return [noisy.drawn(mean, free, seed.child(number, block)) for number in self.recipe.numbers]
