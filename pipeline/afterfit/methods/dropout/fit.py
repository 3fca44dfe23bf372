"""Training with noise on the weights: the steps of a point estimate, sampled and priced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from afterfit.algebra import Gang, Progress, Result, State
from afterfit.errors import NetworkError
from afterfit.linalg.low_rank import entropy
from afterfit.methods.dropout.local import Fitted
from afterfit.methods.dropout.noise import CHECKPOINTED, MARK, WeightNoise
from afterfit.methods.dropout.pruning import sparsity
from afterfit.methods.dropout.recipe import DropoutFit
from afterfit.methods.dropout.sites import first_inputs
from afterfit.network.workbench import Workbench, bound_likelihood
from afterfit.precision import CORE
from afterfit.training.point_estimate import Training
from afterfit.training.schedule import Schedule

SPENT = "epoch/loss"
"""Of the state: the sum of an epoch's losses, and how many."""


class DropoutTraining(Training):
    """See `DropoutFit`."""

    noise: WeightNoise

    def __init__(self, recipe: DropoutFit, bench: Workbench) -> None:
        self.recipe = replace(recipe, likelihood=bound_likelihood(recipe.likelihood, bench))
        self.bench = bench
        steps = Schedule(recipe.settings, bench.num_examples("train")).epochs.num_steps
        inputs = first_inputs(bench.data("train"), bench.micro_batch)
        noise = WeightNoise(self.recipe, bench.network, inputs, steps)
        super().__init__(self.recipe.settings, self.recipe.likelihood, bench, noise)

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

    def _slice(self, state: State, number: int, which: int) -> State:
        try:
            return super()._slice(state, number, which)
        except CheckpointError as error:
            raise NetworkError(CHECKPOINTED) from error

    def finalise(self, state: State, progress: pa.Table) -> Result:
        """The weights, what was fitted of the noise, and what to know of it."""
        made = super().finalise(state, progress)
        shaped = self._shaped(state)
        entries = {name: entry for name, entry in made.facts["state"].items() if not name.endswith(MARK)}
        fitted = self.noise.fitted(shaped)
        num_weights = sum(value.numel() for value in self.network.module.parameters())
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
            "notes": list(self.noise.notes()),
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
