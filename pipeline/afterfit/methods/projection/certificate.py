"""The certificate: how far draws move the protected rows, by forward mode, and how far noise would."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, cast

import torch
from torch import Tensor

from afterfit.algebra import Batch, Cursor, Result, State, Unit, largest
from afterfit.methods.projection.chunk import Chunk
from afterfit.methods.projection.draws import column_norms, noise_tiles
from afterfit.methods.projection.passes import fold_shard
from afterfit.methods.projection.protected import OverProtected
from afterfit.methods.projection.unit_rows import ProtectedRows
from afterfit.network.functional import Network, OutputRule
from afterfit.network.workbench import Workbench
from afterfit.precision import CORE, state_dtype
from afterfit.rows.columns import held_columns
from afterfit.rows.forward_mode import push_forward
from afterfit.rows.functional import FunctionalBackend
from afterfit.rows.tape import TapeBackend

NUM_ISOTROPIC = 2
"""Draws of plain noise that the residual is compared with."""


@dataclass(frozen=True)
class Certificate(Chunk, OverProtected):
    """Largest |J_i d| / (|J_i| |d|) over all protected rows, for each draw of a chunk.

    J_i d comes from forward mode through the network, which shares nothing with the rows that draws were projected by;
    where the network has no forward mode, from plain reverse mode. It is computed in the network's own dtype (in
    float32 where that has 16 bits) and not in float64: an example within rounding of a kink, as of a ReLU, has another
    Jacobian there (one of 5 000 on a LeNet, with a residual of 4e-5 where the others' largest was 3e-9). Rows of length
    zero protect nothing and are passed over.

    Leaves behind `residual` (k,) and `isotropic`; facts residual and isotropic, their maxima, and num_rows.
    Cost: about three forward passes over the protected examples for each draw.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "reduce"

    def on(self, bench: Workbench) -> "_CertificateReducer":
        """Needs the network, the training data, the lengths and the draws."""
        return _CertificateReducer(self, bench)


@dataclass(frozen=True)
class _CertificateReducer:
    recipe: Certificate
    bench: Workbench

    def leaf(self, unit: Unit, cursor: Cursor) -> State:
        return fold_shard(_Moved(self, unit), self.rows, unit, cursor)

    @cached_property
    def rows(self) -> ProtectedRows:
        return ProtectedRows(self.recipe.protected, self.bench)

    @cached_property
    def draws(self) -> Mapping[str, Tensor]:
        tiles = self.bench.input("draws").tiles("draws")
        return held_columns(tiles, self.bench.layout, self.bench.memory_gb)

    @cached_property
    def noise(self) -> Mapping[str, Tensor]:
        tiles = noise_tiles(self.recipe.seed, self.bench, self.recipe.numbers[:NUM_ISOTROPIC])
        return held_columns(tiles, self.bench.layout, self.bench.memory_gb)

    @cached_property
    def plain(self) -> TapeBackend:
        """Of the network as it is certified: it knows whether that has forward mode."""
        return TapeBackend(self.network, self.bench.memory_gb)

    @cached_property
    def network(self) -> Network:
        given = self.bench.network
        dtype = state_dtype(given.dtype)
        if given.dtype == dtype:
            return given
        module = deepcopy(given.module).to(dtype)
        chosen = [block.name for block in given.layout.blocks]
        output = cast(OutputRule, given.output)
        return Network(module, chosen, output=output, tile_weights=given.layout.tile_weights)

    def merge(self, left: State, right: State) -> State:
        return largest(left, right)

    def finalise(self, state: State) -> Result:
        residual_k = state["moved/draws"] / column_norms(self.draws)
        isotropic_j = state["moved/noise"] / column_norms(self.noise)
        facts = {
            "residual": float(residual_k.max()),
            "isotropic": float(isotropic_j.max()),
            "num_rows": self.recipe.protected.num_rows(self.bench),
        }
        return Result(tensors={"residual": [("all", residual_k)], "isotropic": [("all", isotropic_j)]}, facts=facts)


@dataclass(frozen=True)
class _Moved:
    """Accumulates the largest |J_i d| / |J_i| of each draw."""

    reducer: _CertificateReducer
    unit: Unit

    def init(self) -> State:
        numbers = self.reducer.recipe.numbers
        return {
            "moved/draws": torch.zeros(len(numbers), dtype=CORE),
            "moved/noise": torch.zeros(len(numbers[:NUM_ISOTROPIC]), dtype=CORE),
        }

    def accumulate(self, state: State, batch: Batch) -> State:
        reducer = self.reducer
        lengths_BS = reducer.rows.whole_lengths(batch)
        scales_BS1 = torch.where(lengths_BS > 0, 1 / lengths_BS, 0.0)[..., None]
        with torch.no_grad():  # the rows' own cotangents: what is certified is what was protected
            outputs_BC = reducer.bench.network(batch.inputs)
            cotangents_BSC = reducer.rows.bound.cotangents(batch)(outputs_BC)
        moved = {
            "moved/draws": _moved(reducer, batch, reducer.draws, cotangents_BSC),
            "moved/noise": _moved(reducer, batch, reducer.noise, cotangents_BSC),
        }
        most = {name: (moved_BSk.abs() * scales_BS1).amax(dim=(0, 1)) for name, moved_BSk in moved.items()}
        return largest(state, most)

    def merge(self, left: State, right: State) -> State:
        return largest(left, right)


def _moved(reducer: _CertificateReducer, batch: Batch, columns: Mapping[str, Tensor], cotangents_BSC: Tensor) -> Tensor:
    """U (J D), (B, S, k)."""
    if reducer.plain.has_forward_mode(batch):
        return push_forward(reducer.network, batch.inputs, cotangents_BSC, columns).cpu()
    plain = FunctionalBackend(reducer.network, reducer.bench.memory_gb)
    return plain.rows(batch, lambda outputs_BC: cotangents_BSC.to(outputs_BC)).times(columns).cpu()
