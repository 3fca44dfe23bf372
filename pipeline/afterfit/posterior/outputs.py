"""What every posterior predicts of the outputs of B examples, whether it has a formula or draws."""

from typing import Protocol

from torch import Tensor

from afterfit.posterior.links import Link, Observed


class Outputs(Protocol):
    """C outputs of B examples: moments, and what follows for the targets."""

    @property
    def mean(self) -> Tensor:
        """(B, C), outputs of the trained network."""
        ...

    @property
    def variance(self) -> Tensor:
        """(B, C)."""
        ...

    @property
    def covariance(self) -> Tensor:
        """(B, C, C), each example's own."""
        ...

    def probabilities(self, link: Link = ...) -> Tensor:
        """(B, C), averaged over the outputs' uncertainty as the link says; see `links`."""
        ...

    def observe(self, noise_variance: Tensor | float) -> Observed:
        """Moments of a regression target."""
        ...
