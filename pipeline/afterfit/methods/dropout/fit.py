"""Training with noise on the weights: the steps of a point estimate, sampled and priced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from fnmatch import fnmatchcase

import pyarrow as pa
import torch
from torch import Tensor

from afterfit.algebra import Gang, Progress, Result, State
from afterfit.errors import ConfigError, NetworkError
from afterfit.linalg.low_rank import entropy
from afterfit.methods.dropout.local import Fitted, NoisyProducts
from afterfit.methods.dropout.pruning import sparsity
from afterfit.methods.dropout.recipe import DropoutFit
from afterfit.methods.dropout.sites import sites_of
from afterfit.methods.dropout.weights import NoisyWeight
from afterfit.network.functional import Network
from afterfit.network.workbench import Workbench, bound_likelihood
from afterfit.precision import CORE
from afterfit.training.point_estimate import Training
from afterfit.training.schedule import Schedule

MARK = "#rate"
"""Ends the name of what is fitted of a block's noise."""
NAMED = 3
"""Of weights without noise."""
SPENT = "epoch/loss"
"""Of the state: the sum of an epoch's losses, and how many."""


class WeightNoise:
    """See `afterfit.training.point_estimate.Noisy`."""

    def __init__(self, recipe: DropoutFit, network: Network, inputs: Mapping[str, Tensor], num_steps: int) -> None:
        self.recipe = recipe
        self.num_steps = num_steps
        sites = sites_of(network, inputs, recipe.weights)
        self.still = sites.still
        for glob, _ in recipe.rates:
            if not any(fnmatchcase(name, glob) for name in sites.noisy):
                raise ConfigError(
                    f"The pattern {glob!r} in `method.layer_rates` chooses no weight with noise; those are "
                    f"{', '.join(list(sites.noisy)[:3])}."
                )
        self.blocks = {
            name: NoisyWeight(recipe.choices, site, tuple(network.weights[name].shape))
            for name, site in sites.noisy.items()
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


class DropoutTraining(Training):
    """See `DropoutFit`."""

    noise: WeightNoise

    def __init__(self, recipe: DropoutFit, bench: Workbench) -> None:
        self.recipe = replace(recipe, likelihood=bound_likelihood(recipe.likelihood, bench))
        self.bench = bench
        steps = Schedule(recipe.settings, bench.num_examples("train")).epochs.num_steps
        if any(getattr(part, "gradient_checkpointing", False) is True for part in bench.network.module.modules()):
            raise NetworkError(
                "Layers that are checkpointed run again in the backward pass, without their noise; call "
                "`network.gradient_checkpointing_disable()`."
            )
        first = bench.data("train").batch([0])
        noise = WeightNoise(self.recipe, bench.network, first.inputs, steps)
        super().__init__(self.recipe.settings, self.recipe.likelihood, bench, noise)
        still = [name for name in noise.blocks if name not in self._weights]
        if still:
            raise ConfigError(
                f"{still[0]!r} would have noise, and `method.training.train` leaves it as it is; leave it out of "
                "`method.weights` too."
            )

    def init(self) -> State:
        """As for a point estimate."""
        return {**super().init(), SPENT: torch.zeros(2, dtype=CORE)}

    def step(self, state: State, number: int, gang: Gang) -> tuple[State, Progress]:
        """As for a point estimate; the bound once an epoch, with the epoch's mean loss, which is a little behind."""
        moved, progress = super().step(state, number, gang)
        spent = moved[SPENT] + torch.tensor([progress.figures["loss"], 1.0], dtype=CORE).to(moved[SPENT].device)
        figures = dict(progress.figures)
        if (number + 1) % self.schedule.epochs.steps_an_epoch == 0:
            divergence = float(self.noise.divergence(self._shaped(moved)).detach())
            figures["divergence"] = divergence
            if self.is_bound:
                figures["elbo"] = -float(spent[0] / spent[1]) - divergence / self.examples.num_examples
            spent = torch.zeros_like(spent)
        return {**moved, SPENT: spent}, Progress(progress.stop, figures)

    def finalise(self, state: State, progress: pa.Table) -> Result:
        """The weights, what was fitted of the noise, and what to know of it."""
        made = super().finalise(state, progress)
        shaped = self._shaped(state)
        entries = {name: entry for name, entry in made.facts["state"].items() if not name.endswith(MARK)}
        fitted = self.noise.fitted(shaped)
        num_weights = sum(value.numel() for name, value in shaped.items() if not name.endswith(MARK))
        names = [name for name in ("elbo", "divergence") if name in progress.column_names]
        known = {name: progress.column(name).drop_null().to_pylist()[-1] for name in names}
        facts = {
            **made.facts,
            **known,
            **self._gaussian(fitted),
            **sparsity(fitted, num_weights)._asdict(),
            "choices": asdict(self.recipe.choices),
            "state": entries,
            "scale": 1.0,
            "noisy": {name: list(one.noisy.site) for name, one in fitted.items()},
            "notes": list(self._notes()),
        }
        kept = {
            family: [(name, tensor) for name, tensor in tensors if not name.endswith(MARK)]
            for family, tensors in made.tensors.items()
        }
        for name, value in self.network.module.named_parameters():  # what was not trained, so that all can be loaded
            if name not in entries:
                family = f"frozen_{str(value.dtype).removeprefix('torch.')}"
                kept.setdefault(family, []).append((name, value.detach().reshape(-1).cpu()))
                entries[name] = [family, list(value.shape)]
        rates = [(name, one.free.reshape(-1)) for name, one in fitted.items()]
        return replace(made, tensors={**kept, "rates": rates}, facts=facts)

    @property
    def is_bound(self) -> bool:
        """Whether loss and divergence bound the evidence: not by smoothed labels, or where no divergence is known."""
        return self.recipe.choices.noise != "bernoulli" and not self.settings.label_smoothing

    def _notes(self) -> Iterator[str]:
        if self.noise.still:
            shown = ", ".join(self.noise.still[:NAMED]) + (", ..." if len(self.noise.still) > NAMED else "")
            yield (
                f"{len(self.noise.still)} weight tensors have no noise, since no linear layer or convolution (alone) "
                f"multiplies data by them: {shown}."
            )

    def _gaussian(self, fitted: Mapping[str, Fitted]) -> dict[str, float]:
        """Of independent noise, over the noisy weights."""
        if self.recipe.choices.noise != "independent":
            return {}
        log_det = -sum(
            one.noisy.variance(one.mean, one.free).to(CORE).clamp_min(1e-300).log().sum() for one in fitted.values()
        )
        count = sum(one.mean.numel() for one in fitted.values())
        return {"log_det_precision": float(log_det), "entropy": float(entropy(torch.as_tensor(log_det), count))}

    def _shaped(self, state: State) -> dict[str, Tensor]:
        return {name: leaf.detach() for name, leaf in self.leaves(state).items()}
