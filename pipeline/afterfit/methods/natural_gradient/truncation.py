"""How U and the gradients of a step are cut back to L columns: by the Gram of all, or by random columns."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from afterfit.algebra import Gang
from afterfit.errors import NumericalError
from afterfit.linalg.low_rank import leading
from afterfit.methods.natural_gradient.shard import Shard, StepRows
from afterfit.methods.natural_gradient.update import Combination, Shares, combination, combined
from afterfit.precision import CORE, one_thread
from afterfit.seeds import Seed, signs

OVERSAMPLING = 8
"""Random columns beyond L."""
POWERS = 2
"""Products with A^T A before the last."""


class Truncation(NamedTuple):
    """What a step's truncation gave."""

    combination: Combination
    residual: float  # |A^T A e - lambda e| / lambda_1 of the worst kept pair; zero where it is exact


def exact(
    shards: Sequence[Shard], rows: Sequence[StepRows], shares: Shares, factor_LL: Tensor, num_rows: int, gang: Gang
) -> Truncation:
    """By the Gram of A = [U, G], scaled; U^T U is known from the step before.

    Cost: X^2 p for explicit rows, X^2 (r + c) for factors, in each tile; an eigenproblem of size L + X.
    """
    grams = gang.sum([shard.grams(of, num_rows) for shard, of in zip(shards, rows, strict=True)])
    check_finite(grams["gradients"])
    made = combination(factor_LL, grams["cross"], grams["gradients"], shares, len(factor_LL))
    return Truncation(made, 0.0)


def randomised(
    shards: Sequence[Shard],
    rows: Sequence[StepRows],
    shares: Shares,
    rank: int,
    num_rows: int,
    gang: Gang,
    seed: Seed,
) -> Truncation:
    """By subspace iteration with A^T A, of which no entry is formed. Columns stay orthonormal, so nothing is lost.

    Cost: 4 P (L + X) (L + 8) multiplications and additions for each of three products.
    Source: Halko, Martinsson, Tropp (2011), arXiv:0909.4061.
    """
    size = rank + num_rows
    columns_nk = signs(seed.key(), range(size), min(rank + OVERSAMPLING, size), dtype=CORE)
    image_nk = columns_nk
    for power in range(POWERS + 1):
        with one_thread():
            columns_nk = torch.linalg.qr(image_nk if power else columns_nk).Q
        parts = [{"image": shard.image(of, columns_nk, shares)} for shard, of in zip(shards, rows, strict=True)]
        image_nk = gang.sum(parts)["image"]
        check_finite(image_nk)
    core_kk = columns_nk.mT @ image_nk
    core_kk = (core_kk + core_kk.mT) / 2
    turned_kL = leading(core_kk, rank)
    vectors_nL, moved_nL = columns_nk @ turned_kL, image_nk @ turned_kL
    values_L = torch.linalg.vecdot(vectors_nL, moved_nL, dim=0)
    worst = (moved_nL - vectors_nL * values_L).norm(dim=0).max()
    largest = values_L.max()
    made = combined(vectors_nL, turned_kL.mT @ core_kk @ turned_kL, rank, shares)
    return Truncation(made, float(worst / largest) if float(largest) > 0 else 0.0)


def check_finite(sums: Tensor) -> None:
    """Refuse to go on with gradients that are not finite.

    Raises:
        NumericalError: with the remedy.
    """
    if not bool(torch.isfinite(sums).all()):
        raise NumericalError(
            "A gradient is not finite at the weights that were drawn; lower `method.learning_rate` and "
            "`method.precision_rate`, or raise `method.initial_precision`."
        )
