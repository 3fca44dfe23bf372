"""Draws of a fitted Gaussian with a low-rank plus diagonal precision, as displacements from its mean."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from afterfit.algebra import Cursor, Result, State, Unit, add, merge_in_order
from afterfit.layout import Tile
from afterfit.linalg.low_rank import Core, spread, whitened
from afterfit.methods.projection.chunk import Chunk
from afterfit.methods.projection.draws import noise
from afterfit.network.workbench import Outline, Workbench, tile_units, tiles_of
from afterfit.precision import CORE

SHARE = 0.25
"""Part of `memory_gb` for a group of tiles of the factor and of the draws."""


@dataclass(frozen=True)
class GaussianDraws(Chunk):
    """Draws `first` to `first + num - 1`: `draws` by tiles (P_tile, k), about the mean.

    Cost: 4 P L k + P L^2 multiplications and additions in float64, and two readings of the factor.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "reduce"

    def units(self, outline: Outline) -> Sequence[Unit]:
        """Groups of tiles."""
        return tile_units(outline, 2 * self.num, SHARE)

    def on(self, bench: Workbench) -> "_DrawsReducer":
        """Needs what was fitted only."""
        return _DrawsReducer(self, bench)


@dataclass(frozen=True)
class _DrawsReducer:
    recipe: GaussianDraws
    bench: Workbench

    def leaf(self, unit: Unit, cursor: Cursor) -> State:
        def cores() -> Iterator[State]:
            for tile in tiles_of(self.bench.layout, unit):
                whitened_pL, _, noise_pk = self._of(tile)
                yield {"gram/all": whitened_pL.mT @ whitened_pL, "sketch/all": whitened_pL.mT @ noise_pk}

        return merge_in_order(add, cores())

    def merge(self, left: State, right: State) -> State:
        return add(left, right)

    def finalise(self, state: State) -> Result:
        mixed_Lk = Core.of(state["gram/all"]).draw @ state["sketch/all"]
        facts = {"first": self.recipe.first, "num": self.recipe.num}
        return Result(tensors={"draws": self._tiles(mixed_Lk)}, facts=facts)

    def _tiles(self, mixed_Lk: Tensor) -> Iterator[tuple[str, Tensor]]:
        for tile in self.bench.layout:
            whitened_pL, diagonal_p, noise_pk = self._of(tile)
            dtype = self.bench.input("fitted").tiles("diagonal")[tile.name].dtype
            yield tile.name, spread(noise_pk, whitened_pL, mixed_Lk, diagonal_p).to(dtype)

    def _of(self, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
        """V, D and noise of a tile, in float64."""
        fitted = self.bench.input("fitted")
        diagonal_p = fitted.tiles("diagonal")[tile.name].to(CORE)
        whitened_pL = whitened(fitted.tiles("factor")[tile.name].to(CORE), diagonal_p)
        return whitened_pL, diagonal_p, noise(self.recipe.seed, tile, self.recipe.numbers, CORE)
