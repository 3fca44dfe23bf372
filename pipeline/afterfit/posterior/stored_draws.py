"""Outputs under draws of the weights that are stored: exactly these draws are averaged, none is made.

Shapes: B examples, C outputs, S draws.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from afterfit.errors import ConfigError, NumericalError
from afterfit.posterior.gaussian import Gaussian
from afterfit.posterior.links import DRAW_BYTES, Link, Meaning, Observed, observe, squash
from afterfit.precision import CORE


@dataclass(frozen=True, eq=False)
class StoredDraws:
    """Outputs of B examples under S draws: mean + displacements[..., s].

    Raises:
        ConfigError: if the shapes do not fit each other, or there are no draws.
    """

    mean: Tensor
    """(B, C), outputs of the trained network, which the draws are around."""

    displacements: Tensor
    """(B, C, S); column s is how draw s moves the outputs."""

    likelihood: Meaning = "categorical"
    """What the outputs are, as for a `Gaussian`."""

    def __post_init__(self):
        batch, outputs = self.mean.shape
        if self.displacements.shape[:2] != (batch, outputs) or self.displacements.dim() != 3:
            raise ConfigError(
                f"The displacements have shape {tuple(self.displacements.shape)}; the mean asks for "
                f"({batch}, {outputs}, S)."
            )
        if not self.num_draws:
            raise ConfigError("There are no draws; give at least one.")

    @property
    def num_draws(self) -> int:
        """S."""
        return self.displacements.shape[2]

    @property
    def draws(self) -> Tensor:
        """Outputs under every draw, (S, B, C)."""
        return self.mean + self.displacements.movedim(2, 0)

    @property
    def variance(self) -> Tensor:
        """(B, C), mean squares of the displacements: about the trained network's outputs, over S and not S - 1."""
        return torch.linalg.vecdot(self.displacements, self.displacements) / self.num_draws

    @property
    def covariance(self) -> Tensor:
        """(B, C, C), mean products of the displacements of each example. Cost: B C^2 S multiplications."""
        return self.displacements @ self.displacements.mT / self.num_draws

    @property
    def gaussian(self) -> Gaussian:
        """With the same mean and covariance."""
        return Gaussian(self.mean, self.displacements / math.sqrt(self.num_draws), None, self.likelihood)

    def probabilities(self, link: Link = "monte_carlo") -> Tensor:
        """Probabilities (B, C), the draws averaged out.

        Args:
            link: "monte_carlo" is the mean of the softmax, or of the sigmoid, over the stored draws, never of its
                logarithm; the others take the Gaussian with the draws' mean and covariance, see `links`.

        Raises:
            ConfigError: for numbers instead of logits, or one categorical output.
            NumericalError: if an output is not finite.
        """
        if link != "monte_carlo" or self.likelihood == "gaussian":
            return self.gaussian.probabilities(link)
        self._check_probable()
        return self._squashed_mean.to(self.mean.dtype)

    @cached_property
    def disagreement(self) -> Tensor:
        """(B,), variance of the softmax, or of the sigmoid, over the draws, summed over the outputs.

        It scores how far an example is from what was fitted on.

        Source: Miani, Roy, Hauberg (2024), arXiv:2410.16901.
        """
        self._check_probable()
        total = torch.zeros(len(self.mean), dtype=CORE, device=self.mean.device)
        for examples, squashed_SBC in self._pieces():
            # About the mean: squares of probabilities near one would cancel.
            total[examples] += (squashed_SBC.to(CORE) - self._squashed_mean[examples]).square().sum(dim=(0, 2))
        return (total / self.num_draws).to(self.mean.dtype)

    def observe(self, noise_variance: Tensor | float) -> Observed:
        """Moments of a regression target; see `links.observe`."""
        return observe(self, noise_variance)

    @cached_property
    def _squashed_mean(self) -> Tensor:
        """(B, C) in float64."""
        total = torch.zeros(self.mean.shape, dtype=CORE, device=self.mean.device)
        for examples, squashed_SBC in self._pieces():
            total[examples] += squashed_SBC.sum(dim=0, dtype=CORE)
        return total / self.num_draws

    def _pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Probabilities of some draws of some examples, (s, b, C), few enough that `DRAW_BYTES` hold them."""
        num_examples, num_outputs = self.mean.shape
        one_draw = 3 * num_outputs * CORE.itemsize  # the draw, its softmax, one temporary
        group = max(1, DRAW_BYTES // one_draw)
        for first in range(0, num_examples, group):
            examples = slice(first, min(first + group, num_examples))
            held = examples.stop - examples.start
            chunk = max(1, DRAW_BYTES // (held * one_draw))
            for start in range(0, self.num_draws, chunk):
                moved_SBC = self.displacements[examples, :, start : start + chunk].movedim(2, 0)
                yield examples, squash(self.mean[examples] + moved_SBC, self.likelihood)

    def _check_probable(self) -> None:
        if self.likelihood == "gaussian":
            raise ConfigError(
                "A regression has no class probabilities; call `observe(noise_variance)` for its moments."
            )
        if self.likelihood == "categorical" and self.mean.shape[1] < 2:
            raise ConfigError("One output cannot be categorical; set the likelihood to `bernoulli`.")
        finite = torch.isfinite(self.mean).all() & torch.isfinite(self.displacements).all()
        if not bool(finite):
            raise NumericalError("Outputs under the draws are not finite; lower the scale, or use a float64 network.")
