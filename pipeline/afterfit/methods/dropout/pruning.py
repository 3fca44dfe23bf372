"""The network that is left where noise drowns a weight: log alpha of 3 and above, where alpha is variance over square.

Source: Molchanov, Ashukha, Vetrov (2017), arXiv:1701.05369.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from torch import Tensor, nn

from afterfit.algebra import Artifact
from afterfit.methods.dropout.local import Fitted
from afterfit.methods.dropout.weights import NoiseChoices, NoisyWeight, Site
from afterfit.training.point_estimate import trained_state

PRUNED: Final = 3.0
"""Log alpha from which a weight is as good as absent."""


class Sparsity(NamedTuple):
    """How little is left."""

    sparsity: float  # part of the noisy weights that is pruned
    compression: float  # all weights over those that are left


def sparsity(fitted: Mapping[str, Fitted], num_weights: int, level: float = PRUNED) -> Sparsity:
    """Of noise at some parameters, among `num_weights` in all."""
    noisy = sum(one.mean.numel() for one in fitted.values())
    pruned = sum(int(one.noisy.is_pruned(one.mean, one.free, level).sum()) for one in fitted.values())
    return Sparsity(pruned / noisy, num_weights / max(num_weights - pruned, 1))


def fitted_noise(artifact: Artifact) -> dict[str, Fitted]:
    """Block -> its noise, as a fit left it."""
    state, choices = trained_state(artifact), NoiseChoices(**artifact.facts["choices"])
    made = {}
    for name, site in artifact.facts["noisy"].items():
        noisy = NoisyWeight(choices, Site(*site), tuple(state[name].shape))
        made[name] = Fitted(noisy, state[name], artifact.tiles("rates")[name].reshape(noisy.free_shape))
    return made


def pruned_state(artifact: Artifact, level: float = PRUNED) -> dict[str, Tensor]:
    """Weights and buffers by name, as `state_dict` has them, with zeros for what is pruned.

    Args:
        artifact: the stage `variational` of a fit.
        level: log alpha from which weights are pruned.
    """
    pruned = {
        name: one.mean.masked_fill(one.noisy.is_pruned(one.mean, one.free, level), 0)
        for name, one in fitted_noise(artifact).items()
    }
    return trained_state(artifact) | pruned


def with_all_names(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Copies, as `module.load_state_dict` wants them: tied tensors under each of their names."""
    own = {name: value for name, value in module.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    names = {id(tensor): name for name, tensor in own.items() if name in weights}
    return {name: weights[names[id(tensor)]].clone().contiguous() for name, tensor in own.items()}
