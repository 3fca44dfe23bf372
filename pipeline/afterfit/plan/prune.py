"""The pruned network of a variational dropout fit: written as safetensors, and scored beside the mean network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import save
from torch import Tensor

from afterfit.algebra import Examples, batches, micro_batches
from afterfit.errors import ConfigError
from afterfit.methods.dropout.pruning import PRUNED, fitted_noise, pruned_state, sparsity, with_all_names
from afterfit.methods.dropout.weights import LIMIT
from afterfit.network.functional import Network
from afterfit.network.likelihoods import Categorical
from afterfit.plan.api import load
from afterfit.plan.bench import Bench
from afterfit.plan.predict import folder_and_name
from afterfit.plan.record import read_record
from afterfit.plan.request import VARIATIONAL
from afterfit.store.directory import Store
from afterfit.store.files import files_at
from afterfit.training.point_estimate import targets_of

AT_ONCE = 64
"""Examples of a forward pass."""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What was written, and what it is worth."""

    out: str
    sparsity: float  # of the weights with noise
    compression: float  # all weights over those that are left
    accuracy: Mapping[str, tuple[float, float]]  # data set -> of the mean network, and of the pruned one


def prune(store: Store, out: str, level: float = PRUNED) -> Pruned:
    """Write the weights of a finished run with zeros for what is pruned.

    Args:
        store: of the run.
        out: path or URI of the safetensors file; one that is there is replaced.
        level: log alpha from which weights are pruned.

    Raises:
        ConfigError: if the run's method has no rates of noise, `out` names no file, or the level is beyond all rates.

    Cost: two forward passes over every data set that was evaluated.
    """
    folder, name = folder_and_name(out, "pruned.safetensors")
    record = read_record(store)
    posterior = load(store.uri)
    artifact = store.read(posterior.record.stages[VARIATIONAL]) if VARIATIONAL in posterior.record.stages else None
    if artifact is None or "rates" not in artifact.families:
        raise ConfigError(
            f"The method {record.config.method['name']} has no rates of noise to prune by; prune a "
            "run of `method: variational_dropout`."
        )
    if not -LIMIT <= level <= LIMIT:
        raise ConfigError(f"The level is {level:g}, and log alpha is within {LIMIT:g} of 0; give one there, usually 3.")
    request, weights = record.request(), pruned_state(artifact, level)
    bench, network = Bench(request.bench(store.uri, {})), posterior.network
    accuracy = {}
    for role in request.in_distribution if isinstance(request.likelihood, Categorical) else ():
        examples = bench.data(role)
        accuracy[role] = _accuracy(network, examples), _accuracy(network, examples, weights)
    files_at(folder).replace(name, save(with_all_names(weights, network.module)))
    fitted = fitted_noise(artifact)
    num_weights = sum(value.numel() for value in network.module.parameters())
    left = sparsity(fitted, num_weights, level)
    return Pruned(out=out, sparsity=left.sparsity, compression=left.compression, accuracy=accuracy)


def _accuracy(network: Network, examples: Examples, weights: Mapping[str, Tensor] | None = None) -> float:
    """Of the network with some weights replaced."""
    right = 0
    weights = None if weights is None else {name: value.to(network.device) for name, value in weights.items()}
    for piece in batches(examples, micro_batches(examples, range(examples.num_examples), AT_ONCE)):
        with torch.no_grad():
            predicted = network(piece.inputs, weights).argmax(dim=1).cpu()
        right += int((predicted == targets_of(piece)).sum())
    return right / examples.num_examples
