"""ELLA: linearised Laplace through a Nystrom approximation of the neural tangent kernel."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from afterfit.algebra import Cursor, Result, State, Unit, add, merge_in_order
from afterfit.frozen import Fraction, Frozen, Positive
from afterfit.layout import Tile
from afterfit.linalg.eigen import eigenpairs, numerical_rank
from afterfit.linalg.landmarks import balanced_landmarks, check_num_landmarks
from afterfit.methods.extending import UnionOfChunks
from afterfit.methods.gram_blocks import EXPLICIT_SHARE, assembled, gram_units
from afterfit.methods.subspace import SubspaceCurvature
from afterfit.network.likelihoods import Likelihood
from afterfit.network.workbench import Declaration, Outline, Workbench, tile_units, tiles_of
from afterfit.precision import CORE, state_dtype
from afterfit.resources import GB
from afterfit.rows import row_backend
from afterfit.seeds import Seed


class Ella(Frozen):
    """Linearised Laplace restricted to the leading eigenspace of the NTK between landmark rows.

    Source: Deng, Zhou, Zhu (2022), arXiv:2210.12642.
    """

    posterior: ClassVar[Literal["subspace", "draws", "queries"]] = "subspace"
    narrower: ClassVar[str] = "raise `method.prior_precision`, or let it be chosen by validation"
    name: Literal["ella"] = "ella"
    num_landmarks: int = Field(2000, gt=0)
    """M: rows of the training Jacobian that span the kernel; at most examples x outputs."""
    num_features: int = Field(20, gt=0)
    """K: leading eigenpairs kept; at most M, lowered to the numerical rank."""
    prior_precision: Positive | Literal["auto"] = "auto"
    """1 / s0^2 of the weights; `auto` chooses it as `tuning` says."""
    temperature: Positive | Literal["auto"] = "auto"
    """T divides the data's curvature; `auto` chooses it by validation (1 with marginal likelihood)."""
    data_fraction: Fraction | Literal["auto"] = 1.0
    """Part of the training data, from its beginning, whose curvature is summed; `auto` chooses by validation,
    which is the paper's early stop."""
    complement: Literal["none", "prior"] = "none"
    """`prior` adds the prior's variance outside the subspace, which grows away from the data."""
    tuning: Literal["auto", "validation", "marginal_likelihood"] = "auto"
    """What chooses the other `auto`s: the log probability of validation data where there are some, else the marginal
    likelihood of the training data."""
    seed: int = 0
    """Names the choice of landmarks."""

    def check(self, num_examples: int, num_outputs: int) -> None:
        """Landmarks are distinct rows, so there are at most N C of them.

        Raises:
            ConfigError: if more are asked for.
        """
        check_num_landmarks(self.num_landmarks, num_examples, num_outputs)

    def stages(self, likelihood: Likelihood, outline: Outline) -> Mapping[str, Declaration]:
        """Landmarks, their Gram, the basis V of its leading eigenvectors, and the data's curvature in it."""
        return {
            "landmarks": Declaration(recipe=Landmarks(self.num_landmarks, self.seed), data=("train",)),
            "gram": Declaration(recipe=NtkGram(), inputs={"landmarks": "landmarks"}, data=("train",)),
            "basis": Declaration(
                recipe=NtkBasis(self.num_features),
                inputs={"landmarks": "landmarks", "gram": "gram"},
                data=("train",),
            ),
            "curvature": Declaration(
                recipe=SubspaceCurvature(likelihood),
                inputs={"basis": "basis"},
                data=("train",),
                extended_by=UnionOfChunks,
            ),
        }


@dataclass(frozen=True)
class Landmarks:
    """Choose the landmark rows: a table of (example, output)."""

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    num_landmarks: int
    seed: int

    def units(self, outline: Outline) -> Sequence[Unit]:
        """One."""
        return [Unit("all")]

    def on(self, bench: Workbench) -> "_LandmarksTask":
        """Needs the training labels only."""
        return _LandmarksTask(self, bench)


@dataclass(frozen=True)
class _LandmarksTask:
    recipe: Landmarks
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        targets = self.bench.data("train").targets()
        has_classes = targets.dim() == 1 and not targets.is_floating_point()
        labels = targets.numpy() if has_classes else np.zeros(len(targets), dtype=np.int64)
        seed = Seed(self.recipe.seed, ("landmarks",))
        examples, outputs = balanced_landmarks(labels, self.bench.num_outputs, self.recipe.num_landmarks, seed)
        return Result(tables={"landmarks": pa.table({"example": examples, "output": outputs})})


@dataclass(frozen=True)
class LandmarkRows:
    """Explicit rows of the landmarks, some tiles at a time."""

    bench: Workbench

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        table = self.bench.input("landmarks").table("landmarks")
        return table["example"].to_numpy(), table["output"].to_numpy()

    def explicit(self, tiles: Sequence[Tile], chosen: range) -> dict[str, Tensor]:
        """Tile -> (len(chosen), P_tile): one forward and one backward pass over the chosen landmarks."""
        network, data = self.bench.network, self.bench.data("train")
        dtype = state_dtype(network.dtype)
        rows = {tile.name: torch.empty(len(chosen), tile.size, dtype=dtype) for tile in tiles}
        backend = row_backend(network, self.bench.memory_gb, self.bench.arithmetic)
        examples, outputs = self._pairs
        for start in range(0, len(chosen), self.bench.micro_batch):
            part = chosen[start : start + self.bench.micro_batch]
            batch = data.batch(examples[part.start : part.stop].tolist())
            picked = torch.from_numpy(outputs[part.start : part.stop].copy())
            made = backend.rows(batch, lambda outputs_BC, picked=picked: _one_hot(outputs_BC, picked))
            for name, rows_B1P in made.materialise(tiles):
                rows[name][start : start + len(part)] = rows_B1P[:, 0].cpu()
        return rows


def _one_hot(outputs_BC: Tensor, picked_B: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(picked_B, outputs_BC.shape[1])[:, None].to(outputs_BC)


@dataclass(frozen=True)
class NtkGram:
    """Gram of the landmark rows, a sum over tiles in float64, and its eigenpairs.

    Units are groups of tiles whose explicit rows fit the memory, for each pair of landmark chunks; one chunk where
    all landmarks fit together with one tile. Cost: a forward and a backward pass over the landmarks for each group,
    and P M^2 multiplications.
    """

    VERSION: ClassVar[int] = 3
    verb: ClassVar[str] = "reduce"

    def units(self, outline: Outline) -> Sequence[Unit]:
        """Groups of tiles for each pair of chunks; groups are whole sub-trees of the sum over tiles."""
        return gram_units(outline, outline.input("landmarks").table("landmarks").num_rows)

    def on(self, bench: Workbench) -> "_NtkGramReducer":
        """Needs the network, the training data and the landmarks."""
        return _NtkGramReducer(LandmarkRows(bench))


@dataclass(frozen=True)
class _NtkGramReducer:
    rows: LandmarkRows

    def leaf(self, unit: Unit, cursor: Cursor) -> State:
        left, right = range(*unit.details["left"]), range(*unit.details["right"])
        tiles = tiles_of(self.rows.bench.layout, unit)
        left_rows = self.rows.explicit(tiles, left)
        right_rows = left_rows if left == right else self.rows.explicit(tiles, right)
        products = ({f"gram/{unit.tree}": (left_rows[tile.name] @ right_rows[tile.name].T).to(CORE)} for tile in tiles)
        return merge_in_order(add, products)

    def merge(self, left: State, right: State) -> State:
        return add(left, right)

    def finalise(self, state: State) -> Result:
        gram_MM = assembled(state)
        pairs = eigenpairs(gram_MM)
        rank = numerical_rank(pairs.values, state_dtype(self.rows.bench.network.dtype))
        return Result(
            tensors={
                "eigenvalues": [("all", pairs.values)],
                "eigenvectors": [("all", pairs.vectors)],
            },
            facts={"rank": rank, "num_landmarks": len(gram_MM)},
        )


@dataclass(frozen=True)
class NtkBasis:
    """V = J~^T q_k / sqrt(p_k) by tiles, (P_tile, K): orthonormal columns that span the leading eigenspace.

    Where one tile of all landmark rows exceeds the memory, they are added chunk by chunk, as in the Gram.
    Cost: one more forward and backward pass over the landmarks for each group of tiles.
    """

    VERSION: ClassVar[int] = 3
    verb: ClassVar[str] = "map"

    num_features: int

    def units(self, outline: Outline) -> Sequence[Unit]:
        """Groups of tiles that fit the memory; they do not change the bits, only the number of passes."""
        num_rows = outline.input("landmarks").table("landmarks").num_rows
        budget = EXPLICIT_SHARE * outline.memory_gb * GB
        widest = max(tile.size for tile in outline.layout) * outline.state_bytes
        chunk = min(num_rows, max(1, int(budget // widest) - 2 * self.num_features))
        return tile_units(outline, num_rows + self.num_features, EXPLICIT_SHARE, chunk=chunk)

    def on(self, bench: Workbench) -> "_NtkBasisTask":
        """Needs the network, the training data, the landmarks and their Gram."""
        return _NtkBasisTask(self, LandmarkRows(bench))


@dataclass(frozen=True)
class _NtkBasisTask:
    recipe: NtkBasis
    rows: LandmarkRows

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        gram = self.rows.bench.input("gram")
        kept = min(self.recipe.num_features, int(gram.facts["rank"]))
        values_K = gram.tensor("eigenvalues")[:kept]
        scaled_MK = gram.tensor("eigenvectors")[:, :kept] / values_K.sqrt()
        tiles, chunk = tiles_of(self.rows.bench.layout, unit), int(unit.details["chunk"])

        def columns() -> Iterator[tuple[str, Tensor]]:
            if chunk >= len(scaled_MK):
                for name, rows_MP in self.rows.explicit(tiles, range(len(scaled_MK))).items():
                    yield name, rows_MP.T @ scaled_MK.to(rows_MP)
                return
            for tile in tiles:
                yield tile.name, self._by_chunks(tile, scaled_MK, chunk)

        facts: dict[str, Any] = {"num_features": kept}
        if kept < self.recipe.num_features:
            facts["notes"] = [
                f"`num_features` is lowered from {self.recipe.num_features} to {kept}, the numerical rank of the Gram "
                f"of {len(scaled_MK)} landmark rows."
            ]
        return Result(tensors={"basis": columns()}, facts=facts)

    def _by_chunks(self, tile: Tile, scaled_MK: Tensor, chunk: int) -> Tensor:
        """The columns of one tile, of which not all landmark rows fit."""
        total_PK = torch.zeros(tile.size, scaled_MK.shape[1], dtype=state_dtype(self.rows.bench.network.dtype))
        for start in range(0, len(scaled_MK), chunk):
            chosen = range(start, min(start + chunk, len(scaled_MK)))
            rows_MP = self.rows.explicit([tile], chosen)[tile.name]
            total_PK.addmm_(rows_MP.T, scaled_MK[chosen.start : chosen.stop].to(rows_MP))
        return total_PK
