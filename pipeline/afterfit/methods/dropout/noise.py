"""The noise of a whole network while it is trained: which weights have it, what is fitted of it, and its price."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from typing import Final

import torch
from torch import Tensor

from afterfit.errors import ConfigError, NetworkError
from afterfit.methods.dropout.local import Fitted, NoisyProducts
from afterfit.methods.dropout.recipe import DropoutFit
from afterfit.methods.dropout.sites import Sites, sites_of
from afterfit.methods.dropout.weights import NoisyWeight
from afterfit.network.functional import Network
from afterfit.training.point_estimate import trained_weights

NAMED: Final = 3
"""Tensors that a note names."""
MARK: Final = "#rate"
"""Ends the name of what is fitted of a block's noise."""
CHECKPOINTED: Final = (
    "Layers that are checkpointed run again in the backward pass, without their noise; train without checkpointing (in "
    "transformers: `network.gradient_checkpointing_disable()`)."
)


class WeightNoise:
    """See `afterfit.training.point_estimate.Noisy`.

    Args:
        recipe: of the fit.
        network: that is trained.
        inputs: of some examples, for a pass that finds where weights meet data.
        num_steps: of the training.

    Raises:
        ConfigError: for globs that choose nothing, or noise on weights that are not trained.
        NetworkError: for layers that are checkpointed, or a network in float16.
    """

    def __init__(self, recipe: DropoutFit, network: Network, inputs: Mapping[str, Tensor], num_steps: int) -> None:
        self.recipe = recipe
        self.num_steps = num_steps
        _check_network(network)
        self.sites = sites_of(network, inputs, recipe.weights)
        _check_names(recipe, self.sites, network)
        self.blocks = {
            name: NoisyWeight(recipe.choices, site, tuple(network.weights[name].shape))
            for name, site in self.sites.noisy.items()
        }
        self._start = {
            name + MARK: noisy.start(network.weights[name], recipe.rate_of(name)) for name, noisy in self.blocks.items()
        }

    @property
    def free(self) -> Mapping[str, Tensor]:
        """Rates, if they are fitted."""
        return self._start if self.recipe.is_fitted else {}

    def fitted(self, weights: Mapping[str, Tensor]) -> dict[str, Fitted]:
        """Block -> its noise at some parameters."""
        rates = self._start | {name: weight for name, weight in weights.items() if name in self._start}
        return {
            name: Fitted(noisy, weights[name], rates[name + MARK].to(weights[name].device))
            for name, noisy in self.blocks.items()
        }

    def sampled(self, weights: Mapping[str, Tensor], num_examples: int) -> AbstractContextManager[object]:
        """See `Noisy.sampled`."""
        return NoisyProducts(list(self.fitted(weights).values()), self.recipe.estimator, num_examples)

    def divergence(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Of all noise from its prior, nats."""
        parts = [one.noisy.divergence(one.mean, one.free) for one in self.fitted(weights).values()]
        return torch.stack([part.to(parts[0]) for part in parts]).sum()

    def price(self, weights: Mapping[str, Tensor], step: int) -> Tensor:
        """The divergence, in part while it warms up."""
        recipe = self.recipe
        risen = min(1.0, (step + 1) / max(1.0, recipe.warm_up * self.num_steps))
        return recipe.price * risen * self.divergence(weights)

    def notes(self) -> Iterator[str]:
        """For people."""
        if self.sites.still:
            yield (
                f"{len(self.sites.still)} weight tensors have no noise, since linear layers or convolutions do not "
                f"multiply data by them, or not alone: {_shown(self.sites.still)}."
            )
        if self.sites.spread and self.recipe.choices.noise == "independent" and self.recipe.estimator == "local":
            yield (
                f"{len(self.sites.spread)} weight tensors meet an example at several positions, where training draws "
                "their noise anew and a stored draw does not, so that the bound is not quite of the draws: "
                f"{_shown(self.sites.spread)}."
            )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _check_network(network: Network) -> None:
    if any(getattr(part, "gradient_checkpointing", False) is True for part in network.module.modules()):
        raise NetworkError(CHECKPOINTED)
    if any(weight.dtype == torch.float16 for weight in network.weights.values()):
        raise NetworkError(
            "Variances of noise are too small for float16 and end in numbers that are not finite; load the network in "
            "float32 or bfloat16, and set `method.training.autocast: bfloat16` for speed."
        )


def _check_names(recipe: DropoutFit, sites: Sites, network: Network) -> None:
    for glob, _ in recipe.rates:
        if not any(fnmatchcase(name, glob) for name in sites.noisy):
            raise ConfigError(
                f"The pattern {glob!r} in `method.layer_rates` chooses no weight with noise; those are "
                f"{', '.join(list(sites.noisy)[:3])}."
            )
    trained = trained_weights(network.module, recipe.settings.train)
    still = [name for name in sites.noisy if name not in trained]
    if still:
        raise ConfigError(
            f"{still[0]!r} would have noise, and `method.training.train` leaves it as it is; leave it out of "
            "`method.weights` too."
        )
