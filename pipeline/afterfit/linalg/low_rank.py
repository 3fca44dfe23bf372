"""Gaussians whose precision is U U^T + D, through cores of size L.

With V = D^-1/2 U, whatever has P rows may be cut into pieces by whoever calls: only V^T V (L, L) and V^T x (L, k) need
the sum over all of them. Leading dimensions are a batch of Gaussians.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from afterfit.precision import CORE, one_thread

SQUARINGS = 14
SQUARED = 64
"""Size up to which products are so much faster than eigenproblems that squaring pays."""
TINY = torch.finfo(CORE).tiny


class Core(NamedTuple):
    """What V^T V tells of the precision D^1/2 (I + V V^T) D^1/2."""

    values: Tensor  # (..., L), eigenvalues of V^T V
    vectors: Tensor  # (..., L, L)

    @classmethod
    def of(cls, gram_LL: Tensor) -> "Core":
        """From V^T V. Cost: about 9 L^3."""
        with one_thread():
            values, vectors = torch.linalg.eigh(gram_LL.to(CORE))
        return cls(values.clamp_min(0), vectors)

    @property
    def draw(self) -> Tensor:
        """C of the draws D^-1/2 (e + V C V^T e), for standard normal e.

        I + V C V^T is the symmetric root of (I + V V^T)^-1 for any V, whether or not its columns are orthogonal: on the
        eigenspace of s, 1 + c s = (1 + s)^-1/2. Without the division by s: c = -1 / (r (1 + r)), r = (1 + s)^1/2.
        """
        root = (1 + self.values).sqrt()
        return self._with(-1 / (root * (1 + root)))

    @property
    def solve(self) -> Tensor:
        """C of the solution D^-1/2 (w + V C V^T w), where w = D^-1/2 r: minus (I + V^T V)^-1, by Woodbury."""
        return self._with(-1 / (1 + self.values))

    @property
    def log_det(self) -> Tensor:
        """Of I + V V^T, (...); that of the precision has sum log D besides."""
        return torch.log1p(self.values).sum(dim=-1)

    def _with(self, values: Tensor) -> Tensor:
        return (self.vectors * values[..., None, :]) @ self.vectors.mT


def whitened(factor_PL: Tensor, diagonal_P: Tensor) -> Tensor:
    """V = D^-1/2 U."""
    return factor_PL * diagonal_P.rsqrt()[..., None]


def spread(noise_Pk: Tensor, whitened_PL: Tensor, mixed_Lk: Tensor, diagonal_P: Tensor) -> Tensor:
    """D^-1/2 (X + V M): draws of mean zero, or solutions, for M = C V^T X with C of a `Core`. Any rows of them."""
    return (noise_Pk + whitened_PL @ mixed_Lk.to(noise_Pk)) * diagonal_P.rsqrt()[..., None]


def variances(whitened_PL: Tensor, diagonal_P: Tensor, solve_LL: Tensor) -> Tensor:
    """The diagonal of the covariance, (..., P). Cost: P L^2 multiplications and additions."""
    taken_P = ((whitened_PL @ solve_LL.to(whitened_PL)) * whitened_PL).sum(dim=-1)
    return (1 + taken_P) / diagonal_P


def leading(gram_nn: Tensor, rank: int) -> Tensor:
    """Orthonormal eigenvectors of the largest eigenvalues, (..., n, L), columns in rising order.

    Where there are fewer than L, columns of zeros come first. Orthonormal columns E are all that a truncation
    A E E^T A^T needs to stay below A A^T, however many eigenvalues are zero or equal.

    Cost: one matrix: a tridiagonalisation, 4/3 n^3, and L vectors; a batch: 9 n^3 each, for one vector of a
    small one 28 n^3 of products, a fifth of the time.
    """
    wanted = min(rank, gram_nn.shape[-1])
    wide_nn = gram_nn.to(CORE)
    with one_thread():
        if gram_nn.dim() == 2 and wanted < gram_nn.shape[-1]:
            vectors = _some(wide_nn, wanted)
        elif wanted == 1 and gram_nn.shape[-1] <= SQUARED:
            vectors = _first(wide_nn)
        else:
            vectors = torch.linalg.eigh(wide_nn).eigenvectors[..., gram_nn.shape[-1] - wanted :]
    return torch.nn.functional.pad(vectors, (rank - wanted, 0))


def _some(gram_nn: Tensor, wanted: int) -> Tensor:
    from scipy.linalg import eigh  # takes a fifth of a second to import

    size = len(gram_nn)
    _, vectors = eigh(gram_nn.numpy(force=True), subset_by_index=(size - wanted, size - 1), driver="evr")
    return torch.from_numpy(vectors).to(gram_nn.device)


def _first(gram_nn: Tensor) -> Tensor:
    """The first eigenvectors of a batch, (..., n, 1), by squaring; zeros where the matrix is.

    Where the second eigenvalue is r times the first, its share of the vector falls by r^16384: with an r of .998 to
    rounding. The larger r is, the less is lost: never more than 1e-5 of the first eigenvalue.
    """
    power_nn = gram_nn
    for number in range(SQUARINGS):
        if number % 4 == 0:  # the trace of a 16th power is n^-15 at least, where that of the matrix is 1
            power_nn = power_nn / power_nn.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[..., None, None].clamp_min(TINY)
        power_nn = power_nn @ power_nn
    largest = power_nn.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)[..., None, None]
    column_n1 = power_nn.take_along_dim(largest, dim=-1)
    # What rounding of the powers brought in of other eigenvectors, once more the power of the matrix itself takes out.
    column_n1 = gram_nn @ (column_n1 / torch.linalg.vector_norm(column_n1, dim=-2, keepdim=True).clamp_min(TINY))
    return column_n1 / torch.linalg.vector_norm(column_n1, dim=-2, keepdim=True).clamp_min(TINY)


def entropy(log_det_precision: Tensor, num_weights: int) -> Tensor:
    """Of a Gaussian, in nats."""
    return (num_weights * (1 + math.log(2 * math.pi)) - log_det_precision) / 2


def divergence(log_det_precision: Tensor, parts: Tensor, num_weights: int) -> Tensor:
    """KL of the Gaussian to the prior N(0, diag(1 / prior)), in nats, from the sum of `divergence_part`."""
    return (log_det_precision - num_weights + parts) / 2


def divergence_part(mean_P: Tensor, variances_P: Tensor, prior_P: Tensor) -> Tensor:
    """What each run of weights adds: the sum of prior (mean^2 + variance) - log prior, in float64."""
    mean, variance, prior = (part.to(CORE) for part in (mean_P, variances_P, prior_P))
    return (prior * (mean.square() + variance) - prior.log()).sum(dim=-1)
