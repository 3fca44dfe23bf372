"""One natural-gradient step of a precision U U^T + D and its mean, for any run of the weights.

The precision moves to (1 - beta) (U U^T + D) + beta (G G^T N / (M S) + prior), whose low-rank part is cut back to L
columns; what is cut stays on the diagonal, so that the diagonal of the precision is kept exactly. Columns of
A = [sqrt(1 - beta) U, sqrt(beta N / (M S)) G] are combined by eigenvectors of A^T A.

Shapes: P weights of a run, L rank, X = M S columns of G, the gradients of M examples at S draws. Leading dimensions
are a batch of posteriors.

Source: Mishkin, Kunstner, Nielsen, Schmidt, Khan (2018), arXiv:1811.04504.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from afterfit.linalg.low_rank import leading
from afterfit.precision import CORE


class Shares(NamedTuple):
    """How much of the old factor and of the gradients the precision keeps."""

    kept: float  # of U U^T and D: 1 - beta
    taken: float  # of G G^T: beta N / (M S)


class Rates(NamedTuple):
    """Of one step."""

    mean: float  # alpha
    precision: float  # beta
    weight: float  # what one gradient counts for: N / (M S T)

    @property
    def shares(self) -> Shares:
        """Of the precision."""
        return Shares(1 - self.precision, self.precision * self.weight)


class Combination(NamedTuple):
    """U' = U of_factor + G of_gradients."""

    of_factor_LL: Tensor
    of_gradients_XL: Tensor
    gram_LL: Tensor  # U'^T U'


def combination(factor_LL: Tensor, cross_LX: Tensor, gradients_XX: Tensor, shares: Shares, rank: int) -> Combination:
    """The best rank-L part of A A^T, from U^T U, U^T G and G^T G; the Grams are summed over all weights.

    Cost: an eigenproblem of size L + X in float64.
    """
    kept, taken = shares.kept**0.5, shares.taken**0.5
    top = torch.cat([shares.kept * factor_LL, kept * taken * cross_LX], dim=-1)
    bottom = torch.cat([kept * taken * cross_LX.mT, shares.taken * gradients_XX], dim=-1)
    gram_nn = torch.cat([top, bottom], dim=-2).to(CORE)
    vectors_nL = leading(gram_nn, rank)
    return combined(vectors_nL, vectors_nL.mT @ gram_nn @ vectors_nL, factor_LL.shape[-1], shares)


def combined(vectors_nL: Tensor, gram_LL: Tensor, num_factor: int, shares: Shares) -> Combination:
    """A E for orthonormal E (L + X, L), with E^T A^T A E."""
    kept, taken = shares.kept**0.5, shares.taken**0.5
    return Combination(kept * vectors_nL[..., :num_factor, :], taken * vectors_nL[..., num_factor:, :], gram_LL)


def next_diagonal(
    diagonal_P: Tensor, before_P: Tensor, after_P: Tensor, prior_P: Tensor | float, beta: float
) -> Tensor:
    """D' = (1 - beta) D + beta prior + what the truncation cut.

    Args:
        diagonal_P: D.
        before_P: diagonal of A A^T.
        after_P: diagonal of U' U'^T, at most as large but for rounding.
        prior_P: precision of the prior.
        beta: step of the precision.
    """
    return (1 - beta) * diagonal_P + beta * prior_P + (before_P - after_P).clamp_min(0)
