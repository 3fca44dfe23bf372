"""Scores of regression by draws of outputs, with normal noise of known precision."""

import math

import torch
from torch import Tensor


def log_densities(outputs_SN: Tensor, targets_N: Tensor, precision: Tensor | float) -> Tensor:
    """Log N(y | f, 1 / precision), (..., S, N), in float64; `precision` is a number or (..., 1, 1)."""
    precision = torch.as_tensor(precision, dtype=torch.float64)
    missed = (targets_N - outputs_SN).double()
    return (precision.log() - math.log(2 * math.pi) - precision * missed.square()) / 2


def rmse(outputs_SN: Tensor, targets_N: Tensor) -> float:
    """Of the mean output."""
    return float((outputs_SN.double().mean(dim=0) - targets_N).square().mean().sqrt())


def pointwise(densities_SN: Tensor) -> Tensor:
    """Mean over examples of the log of the mean density over draws, (...)."""
    return (torch.logsumexp(densities_SN, dim=-2) - math.log(densities_SN.shape[-2])).mean(dim=-1)


def joint(densities_SN: Tensor) -> Tensor:
    """The log of the mean over draws of the joint density of all examples, by their number, (...).

    Draws have to explain all examples at once: with few draws it is lower than `pointwise`. The SLANG paper prints it.
    """
    draws, examples = densities_SN.shape[-2:]
    return (torch.logsumexp(densities_SN.sum(dim=-1), dim=-1) - math.log(draws)) / examples
