"""Gradients of many examples at many weight draws, of many small networks at once, as factors and never as rows.

Shapes: R replicas, S draws, M examples, I inputs (the last is one, so that biases are weights), H hidden units,
P weights, L rank, X columns: gradients of one example's loss each. `slopes` are d loss / d output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from afterfit.seeds import Seed


class Columns(Protocol):
    """The matrix G (R, P, X)."""

    def gram(self) -> Tensor:
        """G^T G, (R, X, X)."""
        ...

    def cross(self, factor_RPL: Tensor) -> Tensor:
        """U^T G, (R, L, X)."""
        ...

    def times(self, weights_RXL: Tensor) -> Tensor:
        """G E, (R, P, L)."""
        ...

    def square(self) -> Tensor:
        """G G^T, (R, P, P)."""
        ...

    def squares(self) -> Tensor:
        """Its diagonal, (R, P)."""
        ...

    def total(self) -> Tensor:
        """The sum of the gradients, (R, P)."""
        ...


class Passed(Protocol):
    """A forward pass."""

    @property
    def outputs_RSM(self) -> Tensor:
        """Of each example under each draw."""
        ...

    def columns(self, slopes_RSM: Tensor) -> Columns:
        """Gradients of the examples' losses."""
        ...


class Network(Protocol):
    """One of the networks below."""

    @property
    def num_inputs(self) -> int:
        """I."""
        ...

    @property
    def num_weights(self) -> int:
        """P."""
        ...

    def columns_per_batch(self, num_draws: int, num_examples: int) -> int:
        """X."""
        ...

    def is_bias(self) -> Tensor:
        """Which weights are biases, (P,)."""
        ...

    def start(self, seed: Seed) -> Tensor:
        """Weights (P,) before training."""
        ...

    def passed(self, draws_RPS: Tensor, inputs_RMI: Tensor) -> Passed:
        """Run it."""
        ...


@dataclass(frozen=True)
class Linear:
    """One output that is linear in the inputs. Starts at zero."""

    num_inputs: int  # I

    @property
    def num_weights(self) -> int:
        """P = I."""
        return self.num_inputs

    def columns_per_batch(self, num_draws: int, num_examples: int) -> int:
        """Draws of one example share their direction, so they are one column."""
        return num_examples

    def is_bias(self) -> Tensor:
        """The last one."""
        return torch.arange(self.num_inputs) == self.num_inputs - 1

    def start(self, seed: Seed) -> Tensor:
        """Zeros."""
        return torch.zeros(self.num_inputs)

    def passed(self, draws_RPS: Tensor, inputs_RMI: Tensor) -> LinearPass:
        """Outputs."""
        return LinearPass((inputs_RMI @ draws_RPS).mT, inputs_RMI)


class LinearPass(NamedTuple):
    """A `Passed` of `Linear`."""

    outputs_RSM: Tensor
    inputs_RMI: Tensor

    def columns(self, slopes_RSM: Tensor) -> LinearColumns:
        """Column m is x_m times the root of the sum over draws of its squared slopes."""
        lengths_RM = slopes_RSM.square().sum(dim=1).sqrt()
        return LinearColumns(self.inputs_RMI * lengths_RM[..., None], self.inputs_RMI, slopes_RSM.sum(dim=1))


class LinearColumns(NamedTuple):
    """`Columns` with the same G G^T as one column for each draw would have."""

    rows_RMI: Tensor
    inputs_RMI: Tensor
    slopes_RM: Tensor

    def gram(self) -> Tensor:
        """See `Columns`."""
        return self.rows_RMI @ self.rows_RMI.mT

    def cross(self, factor_RPL: Tensor) -> Tensor:
        """See `Columns`."""
        return factor_RPL.mT @ self.rows_RMI.mT

    def times(self, weights_RXL: Tensor) -> Tensor:
        """See `Columns`."""
        return self.rows_RMI.mT @ weights_RXL

    def square(self) -> Tensor:
        """See `Columns`."""
        return self.rows_RMI.mT @ self.rows_RMI

    def squares(self) -> Tensor:
        """See `Columns`."""
        return self.rows_RMI.square().sum(dim=1)

    def total(self) -> Tensor:
        """See `Columns`."""
        return (self.slopes_RM[:, None] @ self.inputs_RMI)[:, 0]


@dataclass(frozen=True)
class OneHidden:
    """One hidden layer of ReLUs and one output. Weights: (H, I), then H of the output, then its bias."""

    num_inputs: int  # I
    num_hidden: int  # H

    @property
    def num_weights(self) -> int:
        """P = H I + H + 1."""
        return self.num_hidden * (self.num_inputs + 1) + 1

    def columns_per_batch(self, num_draws: int, num_examples: int) -> int:
        """X = S M."""
        return num_draws * num_examples

    def is_bias(self) -> Tensor:
        """The last column of the first layer, and the last of all."""
        biases_P = torch.zeros(self.num_weights, dtype=torch.bool)
        biases_P[self.num_inputs - 1 : self.num_hidden * self.num_inputs : self.num_inputs] = True
        biases_P[-1] = True
        return biases_P

    def start(self, seed: Seed) -> Tensor:
        """Uniform within 1 / sqrt(fan-in), as torch's linear layers start."""
        uniform_P = torch.rand(self.num_weights, generator=seed.generator()) * 2 - 1
        num_first = self.num_hidden * self.num_inputs
        uniform_P[:num_first] *= max(1, self.num_inputs - 1) ** -0.5
        uniform_P[num_first:] *= self.num_hidden**-0.5
        return uniform_P

    def passed(self, draws_RPS: Tensor, inputs_RMI: Tensor) -> HiddenPass:
        """Outputs, and what goes backward needs."""
        replicas, _, draws = draws_RPS.shape
        num_first = self.num_hidden * self.num_inputs
        first_RHIS = draws_RPS[:, :num_first].view(replicas, self.num_hidden, self.num_inputs, draws)
        first = first_RHIS.transpose(2, 3).reshape(replicas, self.num_hidden * draws, self.num_inputs)
        before = (first @ inputs_RMI.mT).view(replicas, self.num_hidden, draws, -1)
        second_RHS1 = draws_RPS[:, num_first:-1, :, None]
        hidden_RHSM = before.relu_()
        outputs_RSM = (hidden_RHSM * second_RHS1).sum(dim=1) + draws_RPS[:, -1, :, None]
        return HiddenPass(outputs_RSM, inputs_RMI, hidden_RHSM, second_RHS1)


class HiddenPass(NamedTuple):
    """A `Passed` of `OneHidden`."""

    outputs_RSM: Tensor
    inputs_RMI: Tensor
    hidden_RHSM: Tensor
    second_RHS1: Tensor

    def columns(self, slopes_RSM: Tensor) -> HiddenColumns:
        """One for each example under each draw."""
        replicas, hidden, draws, examples = self.hidden_RHSM.shape
        slopes = slopes_RSM[:, None]
        first = self.hidden_RHSM.sign().mul_(self.second_RHS1).mul_(slopes)
        second = torch.cat([self.hidden_RHSM * slopes, slopes], dim=1)
        return HiddenColumns(self.inputs_RMI, first, second.view(replicas, hidden + 1, draws * examples))


class HiddenColumns(NamedTuple):
    """`Columns`, the first layer's as outer products."""

    inputs_RMI: Tensor
    first_RHSM: Tensor  # gradients with respect to what goes into the hidden units
    second_RHX: Tensor  # rows of the output's weights and bias: H + 1

    def gram(self) -> Tensor:
        """By ghost products: Grams of both factors, entry by entry."""
        flat_RHX = self.first_RHSM.flatten(2)
        inputs_RXI = self.inputs_RMI.repeat(1, self.first_RHSM.shape[2], 1)
        of_first = (flat_RHX.mT @ flat_RHX).mul_(inputs_RXI @ inputs_RXI.mT)
        return of_first.add_(self.second_RHX.mT @ self.second_RHX)

    def cross(self, factor_RPL: Tensor) -> Tensor:
        """See `Columns`; the first layer's by its inputs first."""
        first_RLHI, second_RLH = self._cut(factor_RPL.mT)
        pushed_RLHM = (first_RLHI.flatten(1, 2) @ self.inputs_RMI.mT).unflatten(1, first_RLHI.shape[1:3])
        of_first = (pushed_RLHM[:, :, :, None] * self.first_RHSM[:, None]).sum(dim=2)
        return of_first.flatten(2) + second_RLH @ self.second_RHX

    def times(self, weights_RXL: Tensor) -> Tensor:
        """See `Columns`; draws are added up before the inputs come in."""
        weights_RLSM = weights_RXL.mT.unflatten(2, self.first_RHSM.shape[2:])
        pulled_RLHM = (self.first_RHSM[:, None] * weights_RLSM[:, :, None]).sum(dim=3)
        first = (pulled_RLHM.flatten(1, 2) @ self.inputs_RMI).view(*weights_RLSM.shape[:2], -1)
        return torch.cat([first.mT, self.second_RHX @ weights_RXL], dim=1)

    def square(self) -> Tensor:
        """See `Columns`; by explicit gradients."""
        ones = torch.eye(self.second_RHX.shape[-1], dtype=self.second_RHX.dtype).expand(len(self.inputs_RMI), -1, -1)
        explicit_RPX = self.times(ones)
        return explicit_RPX @ explicit_RPX.mT

    def squares(self) -> Tensor:
        """See `Columns`."""
        of_first = self.first_RHSM.square().sum(dim=2) @ self.inputs_RMI.square()
        return torch.cat([of_first.flatten(1), self.second_RHX.square().sum(dim=2)], dim=1)

    def total(self) -> Tensor:
        """See `Columns`."""
        of_first = self.first_RHSM.sum(dim=2) @ self.inputs_RMI
        return torch.cat([of_first.flatten(1), self.second_RHX.sum(dim=2)], dim=1)

    def _cut(self, factor_RLP: Tensor) -> tuple[Tensor, Tensor]:
        hidden, inputs = self.first_RHSM.shape[1], self.inputs_RMI.shape[-1]
        first, second = factor_RLP[..., : hidden * inputs], factor_RLP[..., hidden * inputs :]
        return first.unflatten(2, (hidden, inputs)), second
