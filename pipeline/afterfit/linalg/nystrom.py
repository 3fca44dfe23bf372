"""Nystrom approximation of a positive semi-definite matrix from its image of random columns, through small cores."""

from typing import NamedTuple

import torch
from torch import Tensor

from afterfit.linalg.eigen import eigenpairs


class NystromFactor(NamedTuple):
    """G is about U diag(values) U^T with U = Y @ combination, Y being the image (P, S)."""

    values: Tensor  # (K,), falling, positive
    combination: Tensor  # (S, K); the columns of Y @ combination are orthonormal


def nystrom_factor(probes_image_SS: Tensor, image_image_SS: Tensor, dtype: torch.dtype) -> NystromFactor:
    """Eigenpairs of G's Nystrom approximation Y (Omega^T Y)^+ Y^T, from two cores.

    Args:
        probes_image_SS: Omega^T Y, where Y = G Omega.
        image_image_SS: Y^T Y.
        dtype: that Y was summed in; directions below its rounding are dropped.

    Cost: O(S^3); no matrix of size P is needed. Both cores must be summed in float64: they square the condition
        number, and in float32 a rank-15 matrix seen by 60 probes gets twenty spurious directions.
    Source: Tropp, Yurtsever, Udell, Cevher (2017), arXiv:1706.05736, with the pseudo-inverse in place of a shift.
    """
    core = eigenpairs(probes_image_SS)
    kept = _above(core.values, dtype)
    whitener_SK = core.vectors[:, :kept] / core.values[:kept].sqrt()
    outer = eigenpairs(whitener_SK.mT @ image_image_SS.to(whitener_SK) @ whitener_SK)
    rank = _above(outer.values, dtype)
    values = outer.values[:rank]
    return NystromFactor(values, whitener_SK @ (outer.vectors[:, :rank] / values.sqrt()))


def _above(values: Tensor, dtype: torch.dtype) -> int:
    """Eigenvalues that stand clear of rounding: below 10 S eps they are noise, and dividing by them would spread it."""
    if len(values) == 0 or float(values[0]) <= 0:
        return 0
    return int((values > 10 * len(values) * torch.finfo(dtype).eps * values[0]).sum())
