"""Cholesky with pivoting: which rows of a Gram matrix are independent, and the solution of systems on those."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from afterfit.errors import NumericalError
from afterfit.precision import CORE, one_thread


class PivotedCholesky(NamedTuple):
    """K[order][:, order] = lower lower^T; rows that are not in the order depend on those that are."""

    lower_RR: Tensor
    order_R: Tensor  # int64


def pivoted_cholesky(gram_NN: Tensor, cut_off: float) -> PivotedCholesky:
    """Factor a Gram of rows of length one (or zero), leaving out rows within the cut-off of the span of the others.

    Args:
        gram_NN: positive semi-definite, in float64; its memory is used.
        cut_off: least squared distance of a row from the span of those before it; with rows of length one, the squared
            sine of an angle.

    Raises:
        NumericalError: if an entry is not finite.

    Cost: N R^2 / 3 multiplications and additions, of which half do not use the cache well; holds one more N x N.
    Source: Higham (2002), Accuracy and Stability of Numerical Algorithms, section 10.3; LAPACK's dpstrf.
    """
    from scipy.linalg import get_lapack_funcs  # 0.2 s: only here, since what counts a plan imports this file too

    if not bool(torch.isfinite(gram_NN).all()):
        raise NumericalError(
            "The Gram matrix of the protected rows is not finite; check the network's outputs on the training data."
        )
    columns = gram_NN.to(CORE).numpy().T  # symmetric: its rows are the columns that LAPACK wants
    (pstrf,) = get_lapack_funcs(("pstrf",), (columns,))
    with threadpool_limits(1):
        factor, pivots, rank, _ = pstrf(columns, tol=cut_off, lower=1, overwrite_a=1)
    lower_RR = torch.from_numpy(np.ascontiguousarray(factor[:rank, :rank])).tril_()
    return PivotedCholesky(lower_RR, torch.from_numpy(pivots[:rank].astype(np.int64) - 1))


@dataclass(frozen=True)
class TiledSystem:
    """K X = B with K and its factor as tiles of rows, each of which may be read when it is needed."""

    gram: Mapping[str, Tensor]  # (n, N)
    lower: Mapping[str, Tensor]  # (r, R)
    order_R: Tensor

    def solve(self, rhs_Nk: Tensor, refinements: int = 2) -> Tensor:
        """X (N, k) in float64, zero at dependent rows.

        Each refinement takes the true residual, so that rounding in the factor does not stay.

        Cost: (2 R^2 + N R) k for the solution and as much for each refinement.
        """
        solution_Nk = torch.zeros_like(rhs_Nk, dtype=CORE)
        with one_thread():
            for attempt in range(refinements + 1):
                residual_Nk = rhs_Nk - self._product(solution_Nk) if attempt else rhs_Nk.to(CORE)
                solution_Nk[self.order_R] += solve_by_factor(self.lower, residual_Nk[self.order_R])
        return solution_Nk

    def _product(self, solution_Nk: Tensor) -> Tensor:
        return torch.cat([tile_nN @ solution_Nk for tile_nN in self.gram.values()])


def solve_by_factor(lower: Mapping[str, Tensor], rhs_Rk: Tensor) -> Tensor:
    """X with L L^T X = B, for L by tiles of its rows (r, R): one goes down them, then up."""
    found_Rk, start = rhs_Rk.clone(), 0
    for tile_rR in lower.values():
        stop = start + len(tile_rR)
        found_Rk[start:stop] -= tile_rR[:, :start] @ found_Rk[:start]
        corner_rr = tile_rR[:, start:stop]
        found_Rk[start:stop] = torch.linalg.solve_triangular(corner_rr, found_Rk[start:stop], upper=False)
        start = stop
    for name in reversed(list(lower)):
        tile_rR = lower[name]
        stop, start = start, start - len(tile_rR)
        corner_rr = tile_rR[:, start:stop].mT
        found_Rk[start:stop] = torch.linalg.solve_triangular(corner_rr, found_Rk[start:stop], upper=True)
        found_Rk[:start] -= tile_rR[:, :start].mT @ found_Rk[start:stop]
    return found_Rk
