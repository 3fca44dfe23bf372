"""The noise of one weight tensor: what is fitted of it, its variances, its divergence, and draws.

A weight is (outputs, inputs), (outputs, inputs / groups, kernel) or, in Hugging Face's Conv1D, (inputs, outputs). Noise
is `independent`, w = theta + sigma e for each weight; or `correlated`, w = theta s for one s of every input unit.

Source: Kingma, Salimans, Welling (2015), arXiv:1506.02557.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from afterfit.methods.dropout.divergence import LOG_UNIFORM, Divergence, gaussian
from afterfit.precision import state_dtype
from afterfit.seeds import Seed, normals, uniforms

Noise = Literal["independent", "correlated", "bernoulli"]
Sharing = Literal["layer", "unit", "weight"]
LIMIT = 8.0
"""Of log alpha."""
TINY = 1e-16
"""Added to squared means, so that one that is zero has a rate."""


@dataclass(frozen=True)
class NoiseChoices:
    """Of a fit."""

    noise: Noise
    sharing: Sharing
    is_additive: bool
    divergence: Divergence
    prior_precision: float


class Site(NamedTuple):
    """Where a weight meets the data."""

    input_axis: int  # of the weight
    groups: int = 1


@dataclass(frozen=True)
class NoisyWeight:
    """One tensor and its kind."""

    choices: NoiseChoices
    site: Site
    shape: tuple[int, ...]

    @property
    def num_inputs(self) -> int:
        """Input units."""
        return self.shape[self.site.input_axis] * self.site.groups

    @property
    def free_shape(self) -> tuple[int, ...]:
        """Of what is fitted."""
        sharing = self.choices.sharing
        if sharing == "weight":
            return self.shape
        return (self.num_inputs,) if sharing == "unit" else (1,)

    def start(self, mean: Tensor, rate: float) -> Tensor:
        """Logarithms of alpha, or of variances, at a rate alpha: relative to each weight, or to their mean square."""
        square = float(mean.square().mean()) or 1 / self.num_inputs  # of a layer that starts at zero
        level = square * rate if self.choices.is_additive else rate
        return torch.full(self.free_shape, math.log(level), dtype=state_dtype(mean.dtype), device=mean.device)

    def spread_out(self, free: Tensor) -> Tensor:
        """What is fitted, so that it broadcasts against the weight."""
        return self._over_units(free) if self.choices.sharing == "unit" else free

    def _over_units(self, of_units: Tensor) -> Tensor:
        """Numbers of the input units, so that they broadcast against the weight."""
        per_group = of_units.view(self.site.groups, -1)
        if self.site.groups == 1:
            sizes = [1] * len(self.shape)
            sizes[self.site.input_axis] = self.num_inputs
            return of_units.view(sizes)
        outputs = self.shape[0] // self.site.groups
        each = per_group.repeat_interleave(outputs, dim=0)
        return each.view(self.shape[0], -1, *[1] * (len(self.shape) - 2))

    def log_alpha(self, mean: Tensor, free: Tensor) -> Tensor:
        """Of what is fitted, at most 8: all larger rates drown a weight alike; of additive noise, of every weight."""
        if not self.choices.is_additive:
            return free.clamp_max(LIMIT)
        return (self.spread_out(free) - (mean.to(free).square() + TINY).log()).clamp_max(LIMIT)

    def variance(self, mean: Tensor, free: Tensor) -> Tensor:
        """Of independent noise, shaped like the weight."""
        if self.choices.is_additive:
            return self.spread_out(free).exp().expand(self.shape)
        return self.spread_out(self.log_alpha(mean, free).exp()) * mean.square()

    def is_pruned(self, mean: Tensor, free: Tensor, level: float) -> Tensor:
        """Which weights are as good as absent, shaped like the weight: at that log alpha and above."""
        rates = self.log_alpha(mean, free)
        return ((rates if self.choices.is_additive else self.spread_out(rates)) >= level).expand(self.shape)

    def divergence(self, mean: Tensor, free: Tensor) -> Tensor:
        """The sum over all noise variables, nats: over weights, or over input units where noise is correlated.

        None is known of `bernoulli` noise, and it is zero.
        """
        choices = self.choices
        if choices.noise == "bernoulli":
            return mean.new_zeros(())
        if choices.divergence == "proper_prior":
            return gaussian(mean, self.variance(mean, free) + TINY, choices.prior_precision).sum()
        rates = self.log_alpha(mean, free)
        count = mean.numel() if choices.noise == "independent" else self.num_inputs
        return LOG_UNIFORM[choices.divergence](rates).sum() * (count / rates.numel())

    def drawn(self, mean: Tensor, free: Tensor, seed: Seed) -> Tensor:
        """A draw less the mean, of noise that the seed names."""
        if self.choices.noise == "independent":
            noise = normals(seed, mean.numel(), dtype=mean.dtype).view(self.shape)
            return self.variance(mean, free).to(mean).sqrt() * noise
        alpha = self.log_alpha(mean, free).exp().to(mean)
        if self.choices.noise == "bernoulli":
            kept = 1 / (1 + alpha)
            factors = (uniforms(seed.key(), range(1), self.num_inputs)[0] < kept).to(mean) / kept
        else:
            factors = 1 + alpha.sqrt() * normals(seed, self.num_inputs, dtype=mean.dtype)
        return mean * (self._over_units(factors) - 1)
