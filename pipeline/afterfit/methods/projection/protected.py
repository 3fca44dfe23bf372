"""Which rows of the training Jacobian a null-space posterior protects, and the losses that it must not change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from afterfit.algebra import Batch, Unit
from afterfit.errors import ConfigError
from afterfit.layout import Layout
from afterfit.network.likelihoods import Likelihood
from afterfit.network.loading import imported
from afterfit.network.workbench import Outline, bound_likelihood
from afterfit.precision import CORE
from afterfit.rows.protocol import Cotangents, unit_cotangents
from afterfit.seeds import Seed

Kernel = Literal["predictive", "loss", "per_layer"]


@dataclass(frozen=True)
class Protected:
    """The rows whose common kernel draws lie in.

    Source: Miani, Roy, Hauberg (2024), arXiv:2410.16901.
    """

    kernel: Kernel
    """`predictive`: a row for each output of each example; `loss`: one for each example; `per_layer`: those of
    `predictive`, in each layer alone."""
    likelihood: Likelihood
    loss: str | None = None
    """`package.module:function` in place of the likelihood's negative log density; see `losses`."""
    num_examples: int | None = None
    """Of the training data, chosen at random; all by default."""
    seed: int = 0

    def on(self, outline: Outline) -> "Protected":
        """With the likelihood's noise known."""
        return replace(self, likelihood=bound_likelihood(self.likelihood, outline))

    def units(self, outline: Outline) -> list[Unit]:
        """Shards of the training data that have protected examples."""
        found = []
        for number, shard in enumerate(outline.shards("train")):
            if count := len(self.indexes(outline, shard.start, shard.stop)):
                details = {"start": shard.start, "stop": shard.stop}
                found.append(Unit(f"shard-{number:05d}", details, cost=count))
        return found

    def indexes(self, outline: Outline, start: int, stop: int) -> Sequence[int]:
        """Protected examples among start to stop - 1, ascending."""
        if self.num_examples is None:
            return range(start, stop)
        chosen = _chosen(self.seed, outline.num_examples("train"), self.num_examples)
        first, last = torch.searchsorted(chosen, torch.tensor([start, stop])).tolist()
        return chosen[first:last].tolist()

    def count(self, outline: Outline) -> int:
        """How many examples are protected."""
        return outline.num_examples("train") if self.num_examples is None else self.num_examples

    def num_cotangents(self, outline: Outline) -> int:
        """S, of one example: its rows in each layer that has rows of its own."""
        return 1 if self.kernel == "loss" else outline.num_outputs

    def rows_each(self, outline: Outline) -> int:
        """R, of one example: those of all layers."""
        return self.num_cotangents(outline) * self.num_layers(outline)

    def num_layers(self, outline: Outline) -> int:
        """That have rows of their own; one where rows are whole."""
        return len(set(layers(outline.layout).values())) if self.kernel == "per_layer" else 1

    def num_rows(self, outline: Outline) -> int:
        """Of all protected examples."""
        return self.count(outline) * self.rows_each(outline)

    def most_rank(self, outline: Outline) -> int:
        """At most, of all rows."""
        return min(self.num_rows(outline), outline.layout.num_weights)

    def cotangents(self, batch: Batch) -> Cotangents:
        """For a micro-batch, (B, C, C) or (B, 1, C); those of a loss have a largest entry of one, or are zero.

        A loss's own gradients differ by thirty orders of magnitude where a network fits well, and the square of a row
        would underflow. Their size does not matter to a kernel.
        """
        return unit_cotangents if self.kernel != "loss" else lambda outputs_BC: self._slopes(outputs_BC, batch)

    def _slopes(self, outputs_BC: Tensor, batch: Batch) -> Tensor:
        wide_BC = outputs_BC.detach().to(CORE)
        if self.loss is None:
            slopes_BC = self.likelihood.gradient(wide_BC, _targets(batch, wide_BC))
        else:
            with torch.enable_grad():
                total = self.losses(wide_BC.requires_grad_(), batch).sum()
            (slopes_BC,) = torch.autograd.grad(total, wide_BC)
        largest_B1 = slopes_BC.abs().amax(dim=1, keepdim=True)
        return (slopes_BC / largest_B1.where(largest_B1 > 0, 1.0))[:, None].to(outputs_BC)

    def losses(self, outputs_BC: Tensor, batch: Batch) -> Tensor:
        """Of each example, (B,), in nats: minus the log density of its target, or what the named function gives.

        The function is called as `function(outputs, inputs, targets)`: outputs (B, C), inputs by forward's argument
        names, targets or None; it returns (B,), differentiable in the outputs.

        Raises:
            ConfigError: for data without targets, or a function that does not return one number for each example.
        """
        if self.loss is None:
            return -self.likelihood.log_density(outputs_BC, _targets(batch, outputs_BC))
        inputs = {name: value.to(outputs_BC.device) for name, value in batch.inputs.items()}
        targets = None if batch.targets is None else batch.targets.to(outputs_BC.device)
        losses_B = imported(self.loss)(outputs_BC, inputs, targets)
        if not isinstance(losses_B, Tensor) or losses_B.shape != (len(batch),):
            given = tuple(losses_B.shape) if isinstance(losses_B, Tensor) else type(losses_B).__name__
            raise ConfigError(
                f"The loss {self.loss!r} returned {given} for {len(batch)} examples; return one number for each, "
                "without a mean or a sum over them."
            )
        return losses_B


@dataclass(frozen=True)
class OverProtected:
    """What recipes that go over the protected examples have in common."""

    protected: Protected

    @property
    def likelihood(self) -> Likelihood:
        """Whose noise they need, where it is not known yet."""
        return self.protected.likelihood

    def units(self, outline: Outline) -> Sequence[Unit]:
        """Shards that have protected examples."""
        return self.protected.units(outline)


def _targets(batch: Batch, outputs: Tensor) -> Tensor:
    if batch.targets is None:
        raise ConfigError(
            "The training data have no targets, so their losses are not known; name their `label` or `target` column, "
            "or set `method.kernel: predictive`."
        )
    return batch.targets.to(outputs.device)


def layers(layout: Layout) -> Mapping[str, int]:
    """Block -> the number of its layer: weights and bias of one module belong together."""
    names: dict[str, int] = {}
    return {block.name: names.setdefault(block.name.rpartition(".")[0], len(names)) for block in layout.blocks}


@lru_cache(maxsize=4)
def _chosen(seed: int, num_examples: int, num_chosen: int) -> Tensor:
    order_N = Seed(seed, ("protected",)).numpy().permutation(num_examples)
    return torch.from_numpy(order_N[:num_chosen]).sort().values
