"""SLANG of many small networks at once: splits, settings and seeds are a leading dimension.

The steps are those of `afterfit.methods.natural_gradient`; only the gradients are made here.

Source: Mishkin, Kunstner, Nielsen, Schmidt, Khan (2018), arXiv:1811.04504.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from afterfit.algebra import Cursor, State
from afterfit.linalg.low_rank import Core, leading, spread, whitened
from afterfit.methods.natural_gradient.update import Shares, combination, next_diagonal
from afterfit.precision import CORE
from gradient_columns import Columns, Network
from replica_likelihoods import Likelihood
from replicas import Batch, Noise, Replicas


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Of a fit; the same for all its replicas."""

    rank: int
    num_draws: int
    epochs: int
    mean_step: float  # alpha
    precision_step: float  # beta
    decay: float | None = None  # step t of both is divided by 1 + t^decay; None leaves them as they are
    momentum: float = 0.9  # of the data's gradient, with the correction for its start at zero
    initial_precision: float = 1.0


class Steps(NamedTuple):
    """Of one step."""

    mean: float
    precision: float
    unbiased: float  # momentum is divided by it


class Posterior(NamedTuple):
    """Gaussians N(mean, (U U^T + D)^-1), with the momentum that goes on with them."""

    mean_RP: Tensor
    momentum_RP: Tensor
    factor_RPL: Tensor
    diagonal_RP: Tensor
    whitened_RPL: Tensor
    core: Core

    @classmethod
    def of(cls, mean_RP: Tensor, momentum_RP: Tensor, factor_RPL: Tensor, diagonal_RP: Tensor) -> Posterior:
        """With what follows from the precision."""
        whitened_RPL = whitened(factor_RPL, diagonal_RP)
        core = Core.of(whitened_RPL.mT @ whitened_RPL)
        return cls(mean_RP, momentum_RP, factor_RPL, diagonal_RP, whitened_RPL, core)

    @classmethod
    def of_state(cls, state: State) -> Posterior:
        """As it was saved."""
        return cls.of(*(state[name] for name in cls._fields[:4]))

    def state(self) -> State:
        """To be saved."""
        return {name: getattr(self, name) for name in self._fields[:4]}

    def one(self, replica: int) -> Posterior:
        """That of one replica, R = 1."""
        only = slice(replica, replica + 1)
        return Posterior.of(*(part[only] for part in self[:4]))

    def draws(self, noise_RPS: Tensor) -> Tensor:
        """Weights (R, P, S) from standard normals."""
        mixed = self.core.draw.to(noise_RPS) @ (self.whitened_RPL.mT @ noise_RPS)
        return spread(noise_RPS, self.whitened_RPL, mixed, self.diagonal_RP) + self.mean_RP[..., None]

    def solve(self, right_RP: Tensor) -> Tensor:
        """Covariance times a vector for each replica."""
        scaled_RP1 = (right_RP * self.diagonal_RP.rsqrt())[..., None]
        mixed = self.core.solve.to(scaled_RP1) @ (self.whitened_RPL.mT @ scaled_RP1)
        return spread(scaled_RP1, self.whitened_RPL, mixed, self.diagonal_RP)[..., 0]


@dataclass(frozen=True)
class Slang:
    """Fits of all replicas."""

    network: Network
    likelihood: Likelihood
    replicas: Replicas
    prior_RP: Tensor
    choices: Choices

    def start(self) -> Posterior:
        """Weights as the network starts, no factor."""
        starts = [self.network.start(seed.child("start")) for seed in self.replicas.seeds]
        mean_RP = torch.stack(starts).to(self.prior_RP)
        none_RPL = torch.zeros(*mean_RP.shape, self.choices.rank, dtype=mean_RP.dtype)
        diagonal_RP = torch.full_like(mean_RP, self.choices.initial_precision)
        return Posterior.of(mean_RP, torch.zeros_like(mean_RP), none_RPL, diagonal_RP)

    def fit(self, cursor: Cursor) -> Posterior:
        """All epochs, from where the cursor stands."""
        saved = cursor.resume()
        first, posterior = (saved[0], Posterior.of_state(saved[1])) if saved else (0, self.start())
        for number in range(first, self.choices.epochs):
            posterior = self._epoch(posterior, number)
            cursor.reached(number + 1, self.choices.epochs, posterior.state())
        return posterior

    def _epoch(self, posterior: Posterior, number: int) -> Posterior:
        steps = self.replicas.steps_per_epoch
        epoch = self.replicas.epoch(number)
        noise = Noise(self.replicas, number, self.network.num_weights, self.choices.num_draws)
        for inside in range(steps):
            made = number * steps + inside
            posterior = self.step(
                posterior,
                epoch.batch(inside),
                noise.step(inside),
                self.steps(made + 1),
                made / (self.choices.epochs * steps),
            )
        return posterior

    def steps(self, number: int) -> Steps:
        """Of step `number`, counted from 1."""
        slower = 1.0 if self.choices.decay is None else 1 + number**self.choices.decay
        unbiased = 1 - self.choices.momentum**number
        return Steps(self.choices.mean_step / slower, self.choices.precision_step / slower, unbiased)

    def step(self, posterior: Posterior, batch: Batch, noise_RPS: Tensor, steps: Steps, part: float) -> Posterior:
        """One step of every replica.

        Args:
            posterior: before it.
            batch: of every replica.
            noise_RPS: standard normals.
            steps: its sizes.
            part: of all steps, made before this one.
        """
        passed = self.network.passed(posterior.draws(noise_RPS), batch.inputs_RMI)
        slopes_RSM = self.likelihood.slopes(passed.outputs_RSM, batch.targets_RM, part) * batch.weights_RM[:, None]
        root_R = (batch.scale_R / self.choices.num_draws).sqrt()
        columns = passed.columns(slopes_RSM * root_R[:, None, None])

        factor_RPL, diagonal_RP = self._precision(posterior, columns, steps.precision)
        gradient_RP = columns.total() * root_R[:, None]
        momentum_RP = torch.lerp(gradient_RP, posterior.momentum_RP, self.choices.momentum)
        after = Posterior.of(posterior.mean_RP, momentum_RP, factor_RPL, diagonal_RP)
        downhill_RP = after.solve(momentum_RP / steps.unbiased + self.prior_RP * posterior.mean_RP)
        return after._replace(mean_RP=posterior.mean_RP - steps.mean * downhill_RP)

    def _precision(self, posterior: Posterior, columns: Columns, beta: float) -> tuple[Tensor, Tensor]:
        """U' and D'; `columns` carry the root of N / (M S)."""
        factor_RPL, rank = posterior.factor_RPL, self.choices.rank
        shares = Shares(kept=1 - beta, taken=beta)
        num_columns = self.network.columns_per_batch(self.choices.num_draws, self.replicas.batch_size)
        if self.network.num_weights <= rank + num_columns:
            square = shares.kept * factor_RPL @ factor_RPL.mT + shares.taken * columns.square()
            next_RPL = truncated(square, rank)
        else:
            products = factor_RPL.mT @ factor_RPL, columns.cross(factor_RPL), columns.gram()
            made = combination(*products, shares, rank)
            next_RPL = factor_RPL @ made.of_factor_LL.to(factor_RPL)
            next_RPL += columns.times(made.of_gradients_XL.to(factor_RPL))
        before_RP = shares.kept * factor_RPL.square().sum(dim=-1) + shares.taken * columns.squares()
        after_RP = next_RPL.square().sum(dim=-1)
        return next_RPL, next_diagonal(posterior.diagonal_RP, before_RP, after_RP, self.prior_RP, beta)


def truncated(square_PP: Tensor, rank: int) -> Tensor:
    """U' (..., P, L) from A A^T itself: for fewer weights than A has columns.

    Cost: an eigenproblem of size P in float64.
    """
    wide_PP = square_PP.to(CORE)
    vectors_PL = leading(wide_PP, rank)
    values_L = (vectors_PL * (wide_PP @ vectors_PL)).sum(dim=-2, keepdim=True)
    return (vectors_PL * values_L.clamp_min(0).sqrt()).to(square_PP)
