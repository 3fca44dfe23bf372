"""Logistic regression with a full Gaussian over the weights: its ELBO, predictions, divergences, and the best one.

Logits are normal, so every expectation is one of a single variable, by quadrature. All in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from afterfit.errors import NumericalError

REACH = 9.0
"""Standard deviations on either side that a quadrature covers: beyond is 2e-19."""
FINENESS = 0.6
"""Logits between two nodes. Sigmoids have poles at i pi, so the trapezoidal rule's error is exp(-2 pi^2 / FINENESS)."""
MOST_NODES = 1 << 22
"""Held at once."""
SLOPE_BOUND = 1e-9
"""Of the gradient in the metric of the posterior, and of relative changes of its precision, where it has converged."""
ROUNDS = 5000
STEP = 0.5


class FullGaussian(NamedTuple):
    """N(mean, precision^-1)."""

    mean_P: Tensor
    precision_PP: Tensor

    def logits(self, inputs_NP: Tensor) -> Logits:
        """Means and standard deviations."""
        root_PP = torch.linalg.cholesky(self.precision_PP)
        deviations_PN = torch.linalg.solve_triangular(root_PP, inputs_NP.mT, upper=False)
        return Logits(inputs_NP @ self.mean_P, torch.linalg.vector_norm(deviations_PN, dim=0))


class Logits(NamedTuple):
    """Independent normals."""

    mean_N: Tensor
    deviation_N: Tensor

    def expected(self, of: Callable[[Tensor], Tensor]) -> Tensor:
        """The expectation of a smooth function, (N,)."""
        step = min(FINENESS / max(float(self.deviation_N.max()), 1.0), 0.25)
        node_Q = torch.arange(-math.ceil(REACH / step), math.ceil(REACH / step) + 1, dtype=torch.float64) * step
        weight_Q = torch.softmax(-node_Q.square() / 2, dim=0)
        rows = max(1, MOST_NODES // len(node_Q))
        parts = zip(self.mean_N.split(rows), self.deviation_N.split(rows), strict=True)
        return torch.cat([of(mean[:, None] + deviation[:, None] * node_Q) @ weight_Q for mean, deviation in parts])


class Problem(NamedTuple):
    """Training rows and the prior N(0, diag(1 / prior))."""

    inputs_NP: Tensor
    targets_N: Tensor  # 0 or 1
    prior_P: Tensor

    def negative_elbo(self, posterior: FullGaussian) -> float:
        """In nats, of all rows."""
        logits = posterior.logits(self.inputs_NP)
        expected_N = logits.expected(torch.nn.functional.softplus) - self.targets_N * logits.mean_N
        prior = FullGaussian(torch.zeros_like(self.prior_P), self.prior_P.diag())
        return float(expected_N.sum()) + divergence(posterior, prior)

    def best(self) -> FullGaussian:
        """The Gaussian of the lowest negative ELBO, by natural-gradient steps with exact expectations.

        Raises:
            NumericalError: if it does not converge.
        """
        inputs_NP, prior_PP = self.inputs_NP, self.prior_P.diag()
        posterior = FullGaussian(torch.zeros_like(self.prior_P), prior_PP + inputs_NP.mT @ inputs_NP / 4)
        for _ in range(ROUNDS):
            logits = posterior.logits(inputs_NP)
            curvature_N = logits.expected(lambda logit: torch.sigmoid(logit) * torch.sigmoid(-logit))
            wanted_PP = (inputs_NP * curvature_N[:, None]).mT @ inputs_NP + prior_PP
            slope_P = inputs_NP.mT @ (logits.expected(torch.sigmoid) - self.targets_N) + self.prior_P * posterior.mean_P
            precision_PP = torch.lerp(posterior.precision_PP, wanted_PP, STEP)
            root_PP = torch.linalg.cholesky(precision_PP)
            moved_P = torch.cholesky_solve(slope_P[:, None], root_PP)[:, 0]
            changed = torch.linalg.norm(wanted_PP - posterior.precision_PP) / torch.linalg.norm(wanted_PP)
            if max(float(slope_P @ moved_P) ** 0.5, float(changed)) <= SLOPE_BOUND:
                return posterior
            posterior = FullGaussian(posterior.mean_P - STEP * moved_P, precision_PP)
        raise NumericalError(f"The full Gaussian has not converged after {ROUNDS} rounds; raise ROUNDS or lower STEP.")


def divergence(left: FullGaussian, right: FullGaussian) -> float:
    """KL of left to right, in nats."""
    left_root, right_root = (torch.linalg.cholesky(side.precision_PP) for side in (left, right))
    mixed_PP = torch.linalg.solve_triangular(left_root, right_root, upper=False)
    apart_P = right_root.mT @ (left.mean_P - right.mean_P)
    log_dets = 2 * (left_root.diagonal().log().sum() - right_root.diagonal().log().sum())
    return float(mixed_PP.square().sum() + apart_P @ apart_P - len(apart_P) + log_dets) / 2


def symmetric_divergence(left: FullGaussian, right: FullGaussian) -> float:
    """The mean of both divergences, in nats."""
    return (divergence(left, right) + divergence(right, left)) / 2


def negative_log_likelihood(posterior: FullGaussian, inputs_NP: Tensor, targets_N: Tensor) -> float:
    """Mean over rows of minus the log of the predictive probability, in nats."""
    logits = posterior.logits(inputs_NP)
    signed = Logits(logits.mean_N * (2 * targets_N - 1), logits.deviation_N)
    return -float(signed.expected(torch.sigmoid).log().mean())
