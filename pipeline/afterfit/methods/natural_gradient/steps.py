"""The steps of a natural-gradient fit, made by a gang: slices of the minibatch and the draws, shards of the weights.

A slice runs the network at some draws on some examples; the shard of the same number holds U, D, the mean and the
momentum of a run of tiles. Between them travel draws of the weights and factors of the gradients; what is summed over
shards is of L x L, L x X and X x X numbers, X = M S.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial

import pyarrow as pa
import torch
from torch import Tensor

from afterfit.algebra import Gang, Progress, Result, State, Stop
from afterfit.errors import DataError, NetworkError, NumericalError
from afterfit.layout import Tile
from afterfit.lazy import LazyMapping
from afterfit.linalg.low_rank import Core, divergence, leading
from afterfit.methods.natural_gradient.fitted import fitted
from afterfit.methods.natural_gradient.passes import DrawnPasses, pairs_of, runs_of
from afterfit.methods.natural_gradient.recipe import NaturalGradient, Shards
from afterfit.methods.natural_gradient.shard import Scratch, Shard
from afterfit.methods.natural_gradient.truncation import exact, randomised
from afterfit.methods.natural_gradient.update import Rates
from afterfit.network.workbench import Workbench, bound_likelihood
from afterfit.precision import CORE
from afterfit.seeds import Seed

TINY = torch.finfo(CORE).tiny
SHARDED = ("factor", "diagonal", "mean", "momentum")
"""Families of the state that a shard's worker holds alone."""


class NaturalGradientSteps:
    """See `NaturalGradient`."""

    def __init__(self, recipe: NaturalGradient, bench: Workbench):
        self.recipe = replace(recipe, likelihood=bound_likelihood(recipe.likelihood, bench))
        self.bench = bench
        if bench.network.away:
            raise NetworkError(
                "SLANG draws all chosen weights, which have to be in memory; load the network without offloading, or "
                "choose fewer with `network.choose`."
            )
        examples = bench.data("train")
        recipe.likelihood.check(examples.targets(), bench.num_outputs)
        self.epochs = recipe.schedule(examples.num_examples)
        self.num_slices = recipe.num_slices
        self.num_steps = self.epochs.num_steps
        if self.epochs.smallest_batch * recipe.draws_per_step < recipe.num_slices:
            raise DataError(
                f"A step of {self.epochs.smallest_batch} examples at {recipe.draws_per_step} draws cannot be cut into "
                f"{recipe.num_slices} slices; lower `method.num_slices` or give more data."
            )
        self.shards = Shards(bench.layout, recipe.num_slices)
        self.seed = Seed(recipe.seed, ("slang",))
        self._scratch = Scratch()
        self.dtype = torch.float64 if bench.state_bytes == CORE.itemsize else torch.float32

    @cached_property
    def _passes(self) -> DrawnPasses:
        return DrawnPasses(self.bench)

    def owner(self, name: str) -> int | None:
        """The shard of a tile."""
        family, _, tile = name.partition("/")
        return self.shards.owners[tile] if family in SHARDED else None

    def init(self) -> State:
        """The mean at the network's weights, U = 0 or that of a GGN there, D at its initial precision."""
        makers = {}
        for tile in self.bench.layout.tiles:
            makers |= {
                f"factor/{tile.name}": partial(self._factor, tile),
                f"diagonal/{tile.name}": partial(
                    torch.full, (tile.size,), self.recipe.initial_precision, dtype=self.dtype
                ),
                f"mean/{tile.name}": partial(self._weights, tile),
                f"momentum/{tile.name}": partial(torch.zeros, tile.size, dtype=self.dtype),
            }
        makers["core/factor"] = lambda: self._gram_LL
        makers["core/gram"] = lambda: self._gram_LL / self.recipe.initial_precision
        makers["core/density"] = partial(torch.zeros, 2, dtype=CORE)  # of the epoch: sum, and of how many
        return LazyMapping(makers)

    def _factor(self, tile: Tile) -> Tensor:
        """Basis times the root of the curvature in it; zeros beyond its rank."""
        rank = self.recipe.rank
        if self._root_KL is None:
            return torch.zeros(tile.size, rank, dtype=self.dtype)
        return (self.bench.input("basis").tiles("basis")[tile.name].to(CORE) @ self._root_KL).to(self.dtype)

    @cached_property
    def _root_KL(self) -> Tensor | None:
        """Of the leading part of the data's curvature in an orthonormal basis; None where there is none to start from.

        Both methods' bases are orthonormal: eigenvectors, and J^T U Lambda^-1/2 for the kernel U Lambda U^T.
        """
        if not self.recipe.has_start:
            return None
        total_KK = self.bench.input("curvature").tensor("curvature").sum(dim=0) / self.recipe.temperature
        vectors_KL = leading(total_KK, self.recipe.rank)
        return vectors_KL * torch.linalg.vecdot(vectors_KL, total_KK @ vectors_KL, dim=0).clamp_min(0).sqrt()

    @cached_property
    def _gram_LL(self) -> Tensor:
        """U^T U at the start."""
        rank = self.recipe.rank
        total = torch.zeros(rank, rank, dtype=CORE)
        for tile in self.bench.layout.tiles if self.recipe.has_start else ():
            factor_pL = self._factor(tile).to(CORE)
            total += factor_pL.mT @ factor_pL
        return total

    def _weights(self, tile: Tile) -> Tensor:
        network = self.bench.network
        return network.layout.cut(network.weights, tile).to("cpu", self.dtype)

    def step(self, state: State, number: int, gang: Gang) -> tuple[State, Progress]:
        """One step of the precision, and one of the mean by the new precision. Reuses the memory of the state.

        Raises:
            NumericalError: if a density or a gradient is not finite.
        """
        recipe, device = self.recipe, self.bench.network.device
        held = {name: tensor if name.startswith("core/") else tensor.to(device) for name, tensor in state.items()}
        shards = [Shard(recipe, self.shards.runs[which], held, self._scratch) for which in gang.mine]
        batch = self.epochs.batch(number)
        num_rows = len(batch) * recipe.draws_per_step
        rates = self._rates(number, num_rows)
        density, runs = self._gradients(shards, Core.of(held["core/gram"]), number, batch, gang)
        rows = [shard.rows(of_shard) for shard, of_shard in zip(shards, runs, strict=True)]
        if not math.isfinite(density):
            raise NumericalError(
                f"The log density is {density} at step {number}; lower `method.learning_rate` and "
                "`method.precision_rate`, or raise `method.initial_precision`."
            )
        if recipe.truncation == "exact":
            cut = exact(shards, rows, rates.shares, held["core/factor"], num_rows, gang)
        else:
            seed = self.seed.child("truncation", number)
            cut = randomised(shards, rows, rates.shares, recipe.rank, num_rows, gang, seed)
        parts = [shard.move_precision(of, cut.combination, rates) for shard, of in zip(shards, rows, strict=True)]
        moved = gang.gather(parts)
        held["core/factor"] = cut.combination.gram_LL
        held["core/gram"] = torch.stack([part["gram"] for part in moved]).sum(dim=0)
        core = Core.of(held["core/gram"])
        coefficients_L1 = core.solve @ torch.stack([part["solved"] for part in moved]).sum(dim=0)
        lengths = gang.sum([shard.move_mean(coefficients_L1, rates) for shard in shards])["lengths"]
        held["core/density"] = held["core/density"] + torch.tensor([density, num_rows], dtype=CORE)
        figures = {
            "log_density": density / num_rows,
            "smallest_diagonal": float(torch.cat([part["smallest"] for part in moved]).min()),
            "moved": math.sqrt(float(lengths[0]) / max(float(lengths[1]), TINY)),
            "diagonal_added": float(torch.cat([part["added"] for part in moved]).max()),
        }
        if recipe.truncation != "exact":
            figures["truncation_residual"] = cut.residual
        if (number + 1) % self.epochs.steps_an_epoch == 0:
            evidence = self._evidence(shards, core, held, gang)
            figures |= evidence if self._is_final(number) else {"divergence": evidence["divergence"]}
        return held, Progress(Stop.FINISHED if number + 1 == self.num_steps else None, figures)

    def _is_final(self, number: int) -> bool:
        """Whether an epoch that ends with this step had the likelihood itself, or is the last."""
        start = number + 1 - self.epochs.steps_an_epoch
        return number + 1 == self.num_steps or self.recipe.at(start, self.num_steps) == self.recipe.likelihood

    def _rates(self, number: int, num_rows: int) -> Rates:
        recipe = self.recipe
        weight = self.epochs.num_examples / (num_rows * recipe.temperature)
        return Rates(
            recipe.decayed(recipe.learning_rate, number), recipe.decayed(recipe.precision_rate, number), weight
        )

    def _gradients(
        self, shards: Sequence[Shard], core: Core, number: int, batch: Sequence[int], gang: Gang
    ) -> tuple[float, list[list[dict[str, Tensor]]]]:
        """The sum of log densities, and for each shard the factors of all rows in its tiles."""
        noises = [shard.noise(self.seed.child(number)) for shard in shards]
        sketches = [{"sketch": shard.sketch(noise)} for shard, noise in zip(shards, noises, strict=True)]
        mixed_LS = core.draw @ gang.sum(sketches)["sketch"]
        slices = range(self.num_slices)
        pairs = [pairs_of(len(batch), self.recipe.draws_per_step, which, self.num_slices) for which in slices]
        draws = [slice(of_slice[0][0], of_slice[-1][0] + 1) for of_slice in pairs]  # views: nothing is copied here
        sent = [
            [{name: drawn_Sp[draws[to]] for name, drawn_Sp in drawn.items()} for to in slices]
            for drawn in (shard.drawn(noise, mixed_LS) for shard, noise in zip(shards, noises, strict=True))
        ]
        likelihood = self.recipe.at(number, self.num_steps)
        passed = []
        for which, parts in zip(gang.mine, gang.exchange(sent), strict=True):
            drawn = {name: tensor for part in parts for name, tensor in part.items()}
            passed.append(self._passes.run(drawn, pairs[which], batch, likelihood, self.shards.runs))
        density = gang.sum([{"density": of_slice.density} for of_slice in passed])["density"]
        met = gang.exchange([of_slice.factors for of_slice in passed])
        return float(density), [runs_of(parts) for parts in met]

    def _evidence(self, shards: Sequence[Shard], core: Core, held: dict[str, Tensor], gang: Gang) -> dict[str, float]:
        """After an epoch: the ELBO, with the epoch's mean log density, which is a little behind."""
        total = gang.sum([shard.evidence(core) for shard in shards])
        log_det = total["log_det"] + core.log_det
        apart = float(divergence(log_det, total["divergence"], self.bench.layout.num_weights))
        density, count = held["core/density"].tolist()
        held["core/density"] = torch.zeros(2, dtype=CORE)
        share = self.recipe.temperature / self.epochs.num_examples
        return {"elbo": density / count - share * apart, "divergence": apart, "log_det_precision": float(log_det)}

    def finalise(self, state: State, progress: pa.Table) -> Result:
        """See `NaturalGradient`."""
        return fitted(state, progress, self.bench)
