"""Displacements of the weights that refits give, and variances from them.

With theta_lambda = argmin L - lambda f_q, lim (theta_lambda - theta) / lambda = H^-1 grad f_q: a refit gives the
covariance of output q with every other one. lambda is set through its product with the output's standard deviation,
since by itself it means nothing.

Source: McInerney, Kallus (2024), arXiv:2403.10671.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from afterfit.algebra import Batch, Cursor, pieces_of
from afterfit.errors import NumericalError
from afterfit.methods.queries.preconditioner import dots, scaled
from afterfit.methods.queries.solving import Solved, Solver, beside, split
from afterfit.precision import CORE

Tiles = Mapping[str, Tensor]
Sides = Literal["two", "one"]
LACKING = 0.05
"""Part of a variance that may be missing before people are told."""


@dataclass(frozen=True)
class Influence:
    """H^-1 times some right-hand sides, as refits or conjugate gradients found it."""

    refits: list[dict[str, Tensor]]  # displacements by tiles (P_tile, k): of one side or both
    weights_k: list[Tensor]  # of each in the sum
    residual_k: Tensor
    error_k: Tensor  # bound on what a variance lacks, relative, or NaN; see `Solved`
    is_positive_k: Tensor
    passes: int

    def checked(self) -> Influence:
        """Itself.

        Raises:
            NumericalError: if the loss has negative curvature along a refit.
        """
        failed = int((~self.is_positive_k).sum())
        if failed:
            raise NumericalError(
                f"The loss has negative curvature along {failed} of {len(self.is_positive_k)} queries, so that the "
                "trained weights are no minimum and its inverse is no covariance; take the GGN (`method.network: "
                "linearised`, or `method.curvature: ggn`), or raise `method.prior_precision`."
            )
        return self

    def moved(self, solver: Solver, batch: Batch) -> Tensor:
        """What H^-1 B changes the outputs of some examples by, (B, C, k): their covariances with the queries."""
        both = solver.response.moved(batch, beside(self.refits))
        parts = both.split(both.shape[2] // len(self.refits), dim=2)
        total = torch.zeros_like(parts[0], dtype=CORE)
        for part, weights_k in zip(parts, self.weights_k, strict=True):
            total = total + part.to(CORE) * weights_k.to(part.device)
        return total

    def own(self, solver: Solver, batch: Batch) -> Tensor:
        """Where the queries are A of each of these examples: covariances with all its outputs, (B, C, A) in float64."""
        width, first, parts = len(self.residual_k) // len(batch), 0, []
        for part in pieces_of(batch, solver.bench.micro_batch):
            chosen = slice(first * width, (first + len(part)) * width)
            mine = replace(
                self,
                refits=[{name: tile[:, chosen] for name, tile in refit.items()} for refit in self.refits],
                weights_k=[weights_k[chosen] for weights_k in self.weights_k],
            )
            moved = mine.moved(solver, part).unflatten(2, (len(part), width)).cpu()
            parts += [moved[number, :, number] for number in range(len(part))]
            first += len(part)
        return torch.stack(parts)


def unended(residual_k: Tensor, tolerance: float, what: str) -> Iterator[str]:
    """That some did not get to their end."""
    short = int((~(residual_k <= tolerance)).sum())
    if short:
        yield (
            f"{short} of {len(residual_k)} {what} ended above `method.tolerance: {tolerance:g}` (the worst at "
            f"{float(residual_k.nan_to_num(torch.inf).max()):.1e}); raise `method.max_passes`, `method.rank` or "
            "`method.prior_precision`, or take the network to float64, if it is rounding that is in the way."
        )


def told(residual_k: Tensor, error_k: Tensor, tolerance: float) -> Iterator[str]:
    """What people should know of queries that did not get where they should."""
    yield from unended(residual_k, tolerance, "queries")
    lacking = int((error_k > LACKING).sum())  # of what is known of it
    if lacking:
        yield (
            f"Of the variances of {lacking} of {len(error_k)} queries more than {LACKING:.0%} may be missing; lower "
            "`method.tolerance`, or raise `method.rank`."
        )


def influence(solver: Solver, rhs: Tiles, sides: Sides, lambda_sd: float | Tensor, cursor: Cursor) -> Influence:
    """H^-1 B for B by tiles (P_tile, k).

    Args:
        solver: a linear one solves at once; another refits with each column's lambda, on one side or both.
        rhs: gradients of outputs, or of sums of them.
        sides: the difference of two refits, at lambda and -lambda, has no bias of first order in lambda.
        lambda_sd: lambda times the standard deviation by the leading eigenpairs, one for all columns or (k,).
        cursor: of the passes.
    """
    if solver.is_linear:
        solved = solver.solve(rhs, cursor)
        ones_k = torch.ones_like(solved.residual_k)
        return Influence(
            [solved.columns], [ones_k], solved.residual_k, solved.error_k, solved.is_positive_k, solved.passes
        )
    # By the low-rank part, from above: lambda is rather too small than too large.
    deviations_k = dots(rhs, solver.preconditioner.low_rank()(rhs)).clamp_min(0).sqrt()
    lambdas_k = torch.where(deviations_k > 0, lambda_sd / deviations_k, 1.0)
    signs = (1.0, -1.0) if sides == "two" else (1.0,)
    solved = solver.solve(beside([scaled(rhs, sign * lambdas_k) for sign in signs]), cursor, len(signs))
    return _from_refits(solved, lambdas_k, signs)


def _from_refits(solved: Solved, lambdas_k: Tensor, signs: tuple[float, ...]) -> Influence:
    width = len(lambdas_k)
    return Influence(
        list(split(solved.columns, width)),
        [
            sign / (len(signs) * lambdas_k * shrunk_k)
            for sign, shrunk_k in zip(signs, solved.shrunk_k.view(len(signs), width), strict=True)
        ],
        solved.residual_k.view(len(signs), width).amax(dim=0),
        solved.error_k.view(len(signs), width).amax(dim=0),
        solved.is_positive_k.view(len(signs), width).all(dim=0),
        solved.passes * len(signs),
    )
