"""Draws in the complement of a global basis: away from the leading eigenspace of the GGN."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from afterfit.algebra import Cursor, Result, State, Unit, add, merge_in_order
from afterfit.methods.projection.chunk import Chunk, Rank, facts_of
from afterfit.methods.projection.draws import DTYPES, noise
from afterfit.network.workbench import Outline, Workbench, tile_units, tiles_of
from afterfit.precision import CORE

SHARE = 0.25
"""Part of `memory_gb` for a group of tiles of the basis and of the draws."""


@dataclass(frozen=True)
class ComplementDraws(Chunk):
    """Draws `first` to `first + num - 1`, eps - U U^T eps, for orthonormal U by tiles; `draws` by tiles (P_tile, k).

    U is orthonormal up to the rounding of the network's dtype; its own Gram makes the projector applied twice, without
    another pass. Cost: 6 P K k multiplications and additions, and two readings of U.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "reduce"

    def units(self, outline: Outline) -> Sequence[Unit]:
        """Groups of tiles."""
        return tile_units(outline, 2 * self.num, SHARE)

    def on(self, bench: Workbench) -> "_ComplementReducer":
        """Needs the basis only."""
        return _ComplementReducer(self, bench)


@dataclass(frozen=True)
class _ComplementReducer:
    recipe: ComplementDraws
    bench: Workbench

    def leaf(self, unit: Unit, cursor: Cursor) -> State:
        basis = self.bench.input("basis").tiles("basis")

        def cores() -> Iterator[State]:
            for tile in tiles_of(self.bench.layout, unit):
                basis_PK = basis[tile.name].to(CORE)
                noise_Pk = noise(self.recipe.seed, tile, self.recipe.numbers, CORE)
                yield {"gram/all": basis_PK.mT @ basis_PK, "inside/all": basis_PK.mT @ noise_Pk}

        return merge_in_order(add, cores())

    def merge(self, left: State, right: State) -> State:
        return add(left, right)

    def finalise(self, state: State) -> Result:
        once_Kk = state["inside/all"]
        coefficients_Kk = once_Kk + (once_Kk - state["gram/all"] @ once_Kk)
        facts = facts_of(self.recipe, "global_basis", Rank(len(coefficients_Kk)))
        return Result(tensors={"draws": self._tiles(coefficients_Kk)}, facts=facts)

    def _tiles(self, coefficients_Kk: Tensor) -> Iterator[tuple[str, Tensor]]:
        basis = self.bench.input("basis").tiles("basis")
        dtype: torch.dtype = DTYPES[self.bench.state_bytes]
        for tile in self.bench.layout:
            noise_Pk = noise(self.recipe.seed, tile, self.recipe.numbers, CORE)
            yield tile.name, (noise_Pk - basis[tile.name].to(CORE) @ coefficients_Kk).to(dtype)
