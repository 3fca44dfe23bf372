"""Passes in mixed precision: the forward pass under autocast, and cotangents that do not underflow in float16."""

from collections.abc import Mapping

import torch
from torch import Tensor

from afterfit.arithmetic import Arithmetic
from afterfit.errors import ConfigError, NumericalError
from afterfit.network.functional import Network
from afterfit.precision import state_dtype

RAISED = 8
"""Cotangents in float16 are raised to less than 2^8: gradients may grow 256 times before they overflow, and those that
are 2^32 times smaller than the largest cotangent are still there."""
LARGEST = 120
"""Of exponents: 2^127 is what float32 holds."""


class Passes:
    """One network's forward pass, and what its backward passes start from.

    Raises:
        ConfigError: for autocast of a network in float64, which autocast would leave as it is.
    """

    def __init__(self, network: Network, arithmetic: Arithmetic):
        if arithmetic.autocast and network.dtype == torch.float64:
            raise ConfigError(
                f"Autocast to {arithmetic.autocast} does nothing to a network in float64; remove `rows.autocast`, or "
                "convert the network to float32."
            )
        self.network = network
        self.autocast = None if arithmetic.autocast is None else getattr(torch, arithmetic.autocast)

    @property
    def dtype(self) -> torch.dtype:
        """In which the passes round."""
        return self.autocast or self.network.dtype

    def forward(self, inputs: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Outputs (B, C); after a pass in mixed precision in the dtype of sums, so that cotangents are exact."""
        if self.autocast is None:
            return self.network(inputs, weights)
        # No cache of converted weights: one made without a graph would be found by a pass that needs it.
        with torch.autocast(self.network.device.type, dtype=self.autocast, cache_enabled=False):
            outputs_BC = self.network(inputs, weights)
        return outputs_BC.to(state_dtype(self.network.dtype))

    def raised(self, cotangents_XC: Tensor) -> tuple[Tensor, Tensor | None]:
        """Cotangents times powers of two, and the exponents (X,), where small ones would underflow; else as they are.

        The largest of each is raised to [2^7, 2^8). Gradients are linear in it, and are lowered in float32: exact.
        """
        if self.autocast != torch.float16:
            return cotangents_XC, None
        largest_X = cotangents_XC.abs().amax(dim=1)
        exponents_X = (RAISED - torch.frexp(largest_X).exponent).clamp(-LARGEST, LARGEST)
        return torch.ldexp(cotangents_XC, exponents_X[:, None]), exponents_X


def lowered(gradient: Tensor, exponents_X: Tensor | None) -> Tensor:
    """A gradient whose first dimension runs over X, several times each in a row, as if nothing had been raised.

    Raises:
        NumericalError: for a gradient that was too large for float16.
    """
    if exponents_X is None:
        return gradient
    if not bool(torch.isfinite(gradient).all()):
        raise NumericalError(
            "A gradient is too large for float16; set `rows.autocast` to bfloat16, or leave it out for float32."
        )
    each = torch.ldexp(gradient.float().reshape(len(exponents_X), -1), -exponents_X[:, None].to(gradient.device))
    return each.reshape(gradient.shape)
