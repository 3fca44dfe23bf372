"""Low-rank plus diagonal Laplace from one pass of random columns through the GGN."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from afterfit.algebra import Batch, Cursor, Result, State, Unit, add, fold_examples, merge_in_order
from afterfit.errors import RankError
from afterfit.frozen import Frozen, Positive
from afterfit.layout import Tile
from afterfit.linalg.nystrom import nystrom_factor
from afterfit.methods.extending import SumOfTotals
from afterfit.network.likelihoods import Likelihood
from afterfit.network.workbench import (
    Declaration,
    Outline,
    Workbench,
    bound_likelihood,
    shard_units,
    tile_units,
    tiles_of,
)
from afterfit.precision import CORE, state_dtype
from afterfit.rows import row_backend
from afterfit.rows.columns import held_columns
from afterfit.rows.protocol import RowBackend, cotangents_of
from afterfit.seeds import Seed, signs

OVERSAMPLING = 10
"""Probes beyond the rank that other methods ask for."""
IMAGE_SHARE = 0.25
"""Part of `memory_gb` for the images that one worker accumulates."""


class GgnNystrom(Frozen):
    """Laplace with the GGN's leading eigenpairs, found by a sketch, and the prior in all other directions.

    Source: Tropp, Yurtsever, Udell, Cevher (2017), arXiv:1706.05736, on the GGN.
    """

    posterior: ClassVar[Literal["subspace", "draws", "queries"]] = "subspace"
    narrower: ClassVar[str] = "raise `method.prior_precision`, or let it be chosen by validation"
    name: Literal["ggn_nystrom"] = "ggn_nystrom"
    num_probes: int = Field(64, gt=0)
    """S: random sign columns; the rank plus ten is usual."""
    rank: int | None = Field(None, gt=0)
    """R: eigenpairs kept, at most S; all that stand above rounding by default."""
    num_samples: int | None = Field(None, gt=0)
    """Monte Carlo cotangents for each example, drawn from its own predictions: an unbiased GGN at the cost of as many
    backward passes, where exact ones take one for each output."""
    prior_precision: Positive | Literal["auto"] = "auto"
    """Inverse prior variance of the weights; `auto` chooses it as `tuning` says."""
    temperature: Positive | Literal["auto"] = 1.0
    """T divides the data's curvature."""
    data_fraction: ClassVar[float] = 1.0  # a sketch holds all of the data
    complement: Literal["none", "prior"] = "prior"
    """`prior`: low rank plus diagonal; `none`: the subspace only."""
    tuning: Literal["auto", "validation", "marginal_likelihood"] = "marginal_likelihood"
    """What chooses the other `auto`s: as in ELLA."""
    seed: int = 0
    """Names the probes and the samples."""

    def check(self, num_examples: int, num_outputs: int) -> None:
        """Any number of probes fits any data.

        Raises:
            RankError: if the rank exceeds the number of probes.
        """
        if self.rank is not None and self.rank > self.num_probes:
            raise RankError(
                f"Asked for rank {self.rank} from a sketch of {self.num_probes} probes; lower `rank`, or set "
                f"`num_probes` to at least {self.rank + 10}."
            )

    def stages(self, likelihood: Likelihood, outline: Outline) -> Mapping[str, Declaration]:
        """The sketch, the Nystrom cores with the factor's eigenvalues, and its eigenvectors by tiles."""
        sketch = GgnSketch(self.num_probes, self.seed, likelihood, self.num_samples)
        return {
            "sketch": Declaration(recipe=sketch, data=("train",), extended_by=SumOfTotals),
            "curvature": Declaration(
                recipe=NystromCurvature(self.num_probes, self.seed, self.rank), inputs={"sketch": "sketch"}
            ),
            "basis": Declaration(recipe=NystromBasis(), inputs={"sketch": "sketch", "curvature": "curvature"}),
        }


def leading_ggn(likelihood: Likelihood, rank: int, seed: int, outline: Outline) -> Mapping[str, Declaration]:
    """`sketch`, `curvature` and `basis` of leading eigenpairs, for methods that take no data later."""
    method = GgnNystrom(num_probes=rank + OVERSAMPLING, rank=rank, num_samples=None, seed=seed)
    return {name: replace(each, extended_by=None) for name, each in method.stages(likelihood, outline).items()}


def probes(seed: int, tile: Tile, num_probes: int, dtype: torch.dtype) -> Tensor:
    """The sign columns of one tile, (P_tile, S), made again wherever they are needed."""
    key = Seed(seed, ("probes",)).key()
    return signs(key, range(tile.offset, tile.offset + tile.size), num_probes, dtype=dtype)


@dataclass(frozen=True)
class GgnSketch:
    """Image Y = G Omega of the GGN, summed over the data.

    Units are shards for each group of tiles whose images fit the memory. Leaves behind `image` by tiles (P_tile, S),
    `log_density` (1,) in nats and `count` (1,).
    Cost: for each group one pass of rows over the data and 4 R P S multiplications for R rows, N (C - 1) exact ones or
    N `num_samples`. Source of the sampled ones: Kunstner, Balles, Hennig (2019), arXiv:1905.12558.
    """

    VERSION: ClassVar[int] = 3
    verb: ClassVar[str] = "reduce"

    num_probes: int
    seed: int
    likelihood: Likelihood
    num_samples: int | None = None

    def units(self, outline: Outline) -> Sequence[Unit]:
        """Every shard for every group of tiles."""
        return [
            Unit(f"{group.name}-{shard.name}", {**group.details, **shard.details}, tree=group.name, cost=shard.cost)
            for group in tile_units(outline, self.num_probes, IMAGE_SHARE)
            for shard in shard_units(outline, "train")
        ]

    def on(self, bench: Workbench) -> "_SketchReducer":
        """Needs the network and the training data."""
        return _SketchReducer(replace(self, likelihood=bound_likelihood(self.likelihood, bench)), bench)


@dataclass(frozen=True)
class _SketchReducer:
    recipe: GgnSketch
    bench: Workbench

    def leaf(self, unit: Unit, cursor: Cursor) -> State:
        start, stop = unit.details["start"], unit.details["stop"]
        accumulator = SketchSum(self.recipe, self.bench, tiles_of(self.bench.layout, unit))
        return fold_examples(accumulator, self.bench.data("train"), range(start, stop), self.bench.micro_batch, cursor)

    def merge(self, left: State, right: State) -> State:
        return add(left, right)

    def finalise(self, state: State) -> Result:
        return Result.of_state(state)


@dataclass(frozen=True)
class SketchSum:
    """Accumulates the image of some tiles; where they hold the first tile, the log density too."""

    recipe: GgnSketch
    bench: Workbench
    tiles: Sequence[Tile]

    def init(self) -> State:
        """No data: all zeros."""
        dtype = state_dtype(self.bench.network.dtype)
        state = {
            f"image/{tile.name}": torch.zeros(tile.size, self.recipe.num_probes, dtype=dtype) for tile in self.tiles
        }
        if self._is_first:
            state["log_density/all"] = torch.zeros(1, dtype=CORE)
            state["count/all"] = torch.zeros(1, dtype=torch.int64)
        return state

    @property
    def _is_first(self) -> bool:
        return self.tiles[0].offset == 0

    def accumulate(self, state: State, batch: Batch) -> State:
        """Add R^T (R Omega) of one micro-batch, in place."""
        recipe = self.recipe
        cotangents = cotangents_of(recipe.likelihood, recipe.num_samples, recipe.seed, batch)
        rows = self._backend.rows(batch, cotangents)
        images = {tile.name: state[f"image/{tile.name}"] for tile in self.tiles}
        for part in rows.parts(self.recipe.num_probes):
            part.transpose_times(part.times(self._probes), images)
        if self._is_first:
            state["count/all"].add_(len(batch))
            if batch.targets is not None:
                targets = batch.targets.to(rows.outputs_BC.device)
                state["log_density/all"].add_(
                    self.recipe.likelihood.log_density(rows.outputs_BC, targets).double().sum().cpu()
                )
        return state

    @cached_property
    def _backend(self) -> RowBackend:
        return row_backend(self.bench.network, self.bench.memory_gb, self.bench.arithmetic)

    @cached_property
    def _probes(self) -> Mapping[str, Tensor]:
        """Omega by tiles, held where the memory allows: then its signs are hashed once, not once a batch."""
        layout, dtype = self.bench.network.layout, state_dtype(self.bench.network.dtype)
        made = _Probes(self.recipe, {tile.name: tile for tile in layout}, dtype)
        return held_columns(made, layout, self.bench.memory_gb)

    def merge(self, left: State, right: State) -> State:
        """Tile by tile."""
        return add(left, right)


@dataclass(frozen=True)
class _Probes(Mapping[str, Tensor]):
    """Omega by tiles, each made when it is asked for."""

    recipe: GgnSketch
    tiles: Mapping[str, Tile]
    dtype: torch.dtype

    def __getitem__(self, name: str) -> Tensor:
        return probes(self.recipe.seed, self.tiles[name], self.recipe.num_probes, self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tiles)

    def __len__(self) -> int:
        return len(self.tiles)


@dataclass(frozen=True)
class NystromCurvature:
    """The factor's eigenvalues, from two cores that are sums over tiles: Omega^T Y and Y^T Y, in float64.

    Leaves behind `combination` (S, K), and `curvature` (1, K, K), `log_density` and `count` like every curvature.
    Cost: 4 P S^2 multiplications in float64.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "reduce"

    num_probes: int
    seed: int
    rank: int | None

    def units(self, outline: Outline) -> Sequence[Unit]:
        """Groups of tiles; whole sub-trees of the sum over tiles."""
        return tile_units(outline, self.num_probes, IMAGE_SHARE)

    def on(self, bench: Workbench) -> "_CoresReducer":
        """Needs the sketch."""
        return _CoresReducer(self, bench)


@dataclass(frozen=True)
class _CoresReducer:
    recipe: NystromCurvature
    bench: Workbench

    def leaf(self, unit: Unit, cursor: Cursor) -> State:
        images = self.bench.input("sketch").tiles("image")

        def cores() -> Iterator[State]:
            for tile in tiles_of(self.bench.layout, unit):
                image_PS = images[tile.name].to(CORE)
                omega_PS = probes(self.recipe.seed, tile, self.recipe.num_probes, CORE)
                yield {"cross/all": omega_PS.mT @ image_PS, "square/all": image_PS.mT @ image_PS}

        return merge_in_order(add, cores())

    def merge(self, left: State, right: State) -> State:
        return add(left, right)

    def finalise(self, state: State) -> Result:
        sketch = self.bench.input("sketch")
        dtype = next(iter(sketch.tiles("image").values())).dtype
        factor = nystrom_factor(state["cross/all"], state["square/all"], dtype)
        kept = len(factor.values) if self.recipe.rank is None else min(self.recipe.rank, len(factor.values))
        values_K = factor.values[:kept]
        return Result(
            tensors={
                "combination": [("all", factor.combination[:, :kept])],
                "curvature": [("all", torch.diag(values_K)[None])],
                "eigenvalues": [("all", values_K)],
                "log_density": [("all", sketch.tensor("log_density"))],
                "count": [("all", sketch.tensor("count"))],
            },
            facts={"rank": kept},
        )


@dataclass(frozen=True)
class NystromBasis:
    """The factor's eigenvectors U = Y combination by tiles, (P_tile, K), orthonormal. Cost: 2 P S K."""

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    def units(self, outline: Outline) -> Sequence[Unit]:
        """Groups of tiles, for workers to share."""
        num_probes = outline.input("curvature").tensor("combination").shape[0]
        return tile_units(outline, 2 * num_probes, IMAGE_SHARE)

    def on(self, bench: Workbench) -> "_NystromBasisTask":
        """Needs the sketch and the cores."""
        return _NystromBasisTask(bench)


@dataclass(frozen=True)
class _NystromBasisTask:
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        combination_SK = self.bench.input("curvature").tensor("combination")
        images = self.bench.input("sketch").tiles("image")

        def columns() -> Iterator[tuple[str, Tensor]]:
            for name in unit.details["tiles"]:
                image_PS = images[name]
                yield name, (image_PS.to(CORE) @ combination_SK).to(image_PS.dtype)

        return Result(tensors={"basis": columns()})
