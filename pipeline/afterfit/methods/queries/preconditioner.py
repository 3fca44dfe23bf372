"""The inverse of a low-rank GGN plus prior, applied to columns by tiles.

Source: Frangella, Tropp, Udell (2023), arXiv:2110.02820.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from afterfit.algebra import Artifact
from afterfit.layout import Layout
from afterfit.precision import CORE
from afterfit.rows.columns import held_columns

Tiles = Mapping[str, Tensor]


@dataclass(frozen=True)
class Preconditioner:
    """M^-1 = U [(Lambda + delta)^-1 - mu^-1] U^T + mu^-1 with mu = lambda_K + delta.

    What is not in U counts as if it had the last eigenvalue.
    """

    basis: Tiles  # U by tiles (P_tile, K), orthonormal, which may be lazy
    values_K: Tensor  # Lambda, descending
    prior_precision: float  # delta
    last: float  # lambda_K; 0 makes M the GGN's low-rank part plus the prior

    @classmethod
    def of(
        cls, basis: Artifact, curvature: Artifact, prior_precision: float, layout: Layout, memory_gb: float
    ) -> Preconditioner:
        """From the leading eigenpairs that a sketch left."""
        values_K = curvature.tensor("eigenvalues").to(CORE)
        last = float(values_K[-1]) if 0 < len(values_K) < layout.num_weights else 0.0
        return cls(held_columns(basis.tiles("basis"), layout, memory_gb), values_K, prior_precision, last)

    def low_rank(self) -> Preconditioner:
        """The inverse of the low-rank part plus the prior, and nothing for the rest."""
        return Preconditioner(self.basis, self.values_K, self.prior_precision, 0.0)

    def __call__(self, columns: Tiles) -> dict[str, Tensor]:
        """M^-1 V by tiles, in the dtype of V. Cost: 4 P K k."""
        inside_Kk = sum(self.basis[name].to(CORE).mT @ tile_Pk.to(CORE) for name, tile_Pk in columns.items())
        assert isinstance(inside_Kk, Tensor)
        floor = self.last + self.prior_precision
        inside_Kk = (1 / (self.values_K + self.prior_precision) - 1 / floor)[:, None] * inside_Kk
        return {
            name: (self.basis[name].to(CORE) @ inside_Kk + tile_Pk.to(CORE) / floor).to(tile_Pk.dtype)
            for name, tile_Pk in columns.items()
        }


def dots(left: Tiles, right: Tiles) -> Tensor:
    """Inner products of columns, (k,) in float64, tiles summed in their order."""
    total = torch.zeros(next(iter(left.values())).shape[1], dtype=CORE)
    for name, tile_Pk in left.items():
        total = total + (tile_Pk.to(CORE) * right[name].to(CORE)).sum(dim=0).cpu()
    return total


def scaled(columns: Tiles, amounts_k: Tensor) -> dict[str, Tensor]:
    """Each column times its number."""
    return {name: tile * amounts_k.to(tile) for name, tile in columns.items()}
