"""Divergences of noisy weights from their priors, in nats, one number for each noise variable.

alpha is the variance of a weight over the square of its mean. The log-uniform prior is improper: its divergence is
known up to a constant, and is zero here for alpha without end.

Source: Kingma, Salimans, Welling (2015), arXiv:1506.02557; Molchanov, Ashukha, Vetrov (2017), arXiv:1701.05369.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final, Literal

import torch
from torch import Tensor

Divergence = Literal["molchanov", "kingma", "proper_prior"]

SIGMOID: Final = (0.63576, 1.87320, 1.48695)
CUBIC: Final = (1.16145124, -1.50204118, 0.58629921)
CONSTANT: Final = (0.5772156649015329 + math.log(2)) / 2
"""Minus the mean log length of a standard normal number: of the divergence + log(alpha) / 2 as alpha goes to 0."""


def molchanov(log_alpha: Tensor) -> Tensor:
    """Log-uniform prior, by a sigmoid; within .0094 nats for log alpha in [-8, 8]."""
    height, shift, slope = SIGMOID
    return height * (1 - torch.sigmoid(shift + slope * log_alpha)) + torch.nn.functional.softplus(-log_alpha) / 2


def kingma(log_alpha: Tensor) -> Tensor:
    """Log-uniform prior, by a cubic in alpha; within .04 nats up to alpha = 1, which larger ones count as."""
    kept = log_alpha.clamp_max(0)
    alpha, (first, second, third) = kept.exp(), CUBIC
    return CONSTANT - (kept / 2 + alpha * (first + alpha * (second + alpha * third)))


def gaussian(mean: Tensor, variance: Tensor, prior_precision: float) -> Tensor:
    """Prior N(0, 1 / prior_precision)."""
    ratio = prior_precision * variance
    return (ratio - 1 - ratio.log() + prior_precision * mean.square()) / 2


LOG_UNIFORM: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {"molchanov": molchanov, "kingma": kingma}
"""By log alpha alone."""
