"""Variances of the gradient under each estimator of the noise, along one training run."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Final, cast

import torch
from torch import Tensor

from afterfit.engine.gang import LoneGang
from afterfit.methods.dropout.fit import DropoutTraining
from afterfit.methods.dropout.local import Estimator, NoisyProducts
from afterfit.network.noise import named_noise
from afterfit.seeds import Seed
from afterfit.training.point_estimate import targets_of

ESTIMATORS: Final[tuple[Estimator, ...]] = ("local", "per_example", "per_batch")
BATCH = 1000
"""Examples of a gradient, as in the paper's table."""
PER_EXAMPLE = 50
"""Of these, whose weights are drawn at once."""


def variances(fit: DropoutTraining, state: Mapping[str, Tensor], block: str, repeats: int) -> dict[str, float]:
    """The mean over a block's weights of the variance of the gradient of the loss, nats of all examples squared.

    Args:
        fit: whose network and noise they are.
        state: of its training.
        block: name of the weight.
        repeats: gradients, of other examples and other noise.
    """
    found = {}
    for kind in (*ESTIMATORS, "none"):
        gradients = torch.stack([_gradient(fit, state, block, kind, number) for number in range(repeats)])
        found[kind] = float(gradients.double().var(dim=0).mean())
    return found


def _gradient(fit: DropoutTraining, state: Mapping[str, Tensor], block: str, kind: str, number: int) -> Tensor:
    num_examples = fit.examples.num_examples
    order = torch.randperm(num_examples, generator=Seed(0, ("gradient", str(number))).generator())
    leaves = fit.leaves(state)
    at_once = PER_EXAMPLE if kind == "per_example" else BATCH  # as many tensors of the weights
    total = torch.zeros_like(leaves[block])
    with named_noise(Seed(0, ("noise", str(number)))):
        for chosen in order[:BATCH].split(at_once):
            batch = fit.examples.batch(chosen.tolist())
            fitted = list(fit.noise.fitted(leaves).values())
            noisy = nullcontext() if kind == "none" else NoisyProducts(fitted, cast(Estimator, kind), len(chosen))
            with noisy:
                outputs = fit.network(batch.inputs, {name: leaves[name] for name in fit.network.weights})
            loss = -fit.likelihood.log_density(outputs, targets_of(batch)).sum() * (num_examples / BATCH)
            total += torch.autograd.grad(loss, [leaves[block]])[0]
    return total.flatten()


def trained(fit: DropoutTraining, epochs: int) -> Mapping[str, Tensor]:
    """The state after some epochs."""
    state, gang = dict(fit.init()), LoneGang(fit.num_slices)
    for number in range(min(fit.num_steps, epochs * fit.schedule.epochs.steps_an_epoch)):
        state, _ = fit.step(state, number, gang)
    return state
