"""Leading eigenpairs of small symmetric cores, in float64 on one thread, so that the bits are always the same."""

from typing import NamedTuple

import torch
from torch import Tensor

from afterfit.errors import NumericalError
from afterfit.precision import CORE, one_thread


class Eigenpairs(NamedTuple):
    """In falling order."""

    values: Tensor  # (K,)
    vectors: Tensor  # (M, K), orthonormal columns


def eigenpairs(matrix_MM: Tensor) -> Eigenpairs:
    """All eigenpairs of a symmetric matrix, largest first.

    Raises:
        NumericalError: if an entry is not finite.

    Cost: about 9 M^3.
    """
    matrix_MM = matrix_MM.to(CORE)
    if not bool(torch.isfinite(matrix_MM).all()):
        raise NumericalError(
            "A curvature core is not finite; check the data and the network's outputs for overflow, "
            "or compute in a wider dtype."
        )
    with one_thread():
        values, vectors = torch.linalg.eigh((matrix_MM + matrix_MM.mT) / 2)
    return Eigenpairs(values.flip(0), vectors.flip(1))


def numerical_rank(values: Tensor, dtype: torch.dtype) -> int:
    """How many of the falling eigenvalues stand above the rounding of sums of products in `dtype`.

    The cut-off is relative, M eps lambda_1, as for a singular value decomposition of the factors' Gram.
    """
    if len(values) == 0 or float(values[0]) <= 0:
        return 0
    return int((values > len(values) * torch.finfo(dtype).eps * values[0]).sum())
