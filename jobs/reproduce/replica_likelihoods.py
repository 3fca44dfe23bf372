"""Likelihoods of one output, for replicas that may each have a noise of their own."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Likelihood(Protocol):
    """Of a target given an output."""

    def slopes(self, outputs_RSM: Tensor, targets_RM: Tensor, part: float) -> Tensor:
        """d(-log p) / d output, (R, S, M), when `part` of all steps is made."""
        ...


class Gaussian(NamedTuple):
    """Normal noise of known precision.

    A precision too high for the step size freezes training, and then may rise geometrically over the first half of the
    steps. While it is low, hidden units may come to rest where they are linear, and stay there.
    """

    precision_R: Tensor
    first: float = math.inf  # that a higher precision rises from

    def slopes(self, outputs_RSM: Tensor, targets_RM: Tensor, part: float) -> Tensor:
        """See `Likelihood`."""
        start_R = self.precision_R.clamp_max(self.first)
        now_R = start_R * (self.precision_R / start_R) ** min(1.0, 2 * part)
        return (outputs_RSM - targets_RM[:, None]) * now_R[:, None, None]


class Bernoulli(NamedTuple):
    """Targets 0 and 1, outputs logits."""

    def slopes(self, outputs_RSM: Tensor, targets_RM: Tensor, part: float) -> Tensor:
        """See `Likelihood`."""
        return torch.sigmoid(outputs_RSM) - targets_RM[:, None]
