"""From stored draws to a posterior and its predictions; the counterpart of the stages that follow a subspace."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import pyarrow as pa
import torch

from afterfit.algebra import Artifact, Cursor, Result, Unit
from afterfit.network.likelihoods import Gaussian, Likelihood
from afterfit.network.workbench import Outline, Workbench, bound_likelihood
from afterfit.plan.predictions import DISAGREEMENT, column_of, likelihood_facts, outputs_table
from afterfit.plan.request import By
from afterfit.plan.tuning import Features
from afterfit.posterior.links import Link, Meaning
from afterfit.posterior.stored_draws import StoredDraws


@dataclass(frozen=True)
class Collecting:
    """A posterior by its chunks of draws. Holds facts only."""

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    likelihood: Likelihood
    chunks: tuple[str, ...]  # by their first draws, "00000", "00016"

    def units(self, outline: Outline) -> Sequence[Unit]:
        """One."""
        return [Unit("all")]


@dataclass(frozen=True)
class CollectDraws(Collecting):
    """The posterior of stored draws: all of them at one scale, and what is certified of them.

    Leaves behind `scale` (standard deviation, in units of the weights), `num_draws`, `solver`, `rank`, `rank_is_bound`,
    `cut_off`, `residual` and `isotropic` (the largest of all chunks), `largest_loss_change` (nats), `relative_length`,
    `rule`, `likelihood` and, for a regression, `noise_variance`.
    """

    def on(self, bench: Workbench) -> "_CollectTask":
        """Needs the chunks, their certificates and the scale."""
        return _CollectTask(replace(self, likelihood=bound_likelihood(self.likelihood, bench)), bench)


@dataclass(frozen=True)
class _CollectTask:
    recipe: CollectDraws
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        scale = self.bench.input("scale").facts
        draws = [self.bench.input(f"draws-{chunk}").facts for chunk in self.recipe.chunks]
        certificates = [self.bench.input(f"certificate-{chunk}").facts for chunk in self.recipe.chunks]
        facts: dict[str, Any] = {
            "scale": scale["scale"],
            "rule": scale["rule"],
            "num_draws": sum(chunk["num"] for chunk in draws),
            **{name: draws[0][name] for name in ("solver", "rank", "rank_is_bound", "cut_off")},
            **{name: max(chunk[name] for chunk in certificates) for name in ("residual", "isotropic")},
            **{name: scale[name] for name in ("largest_loss_change", "relative_length")},
            **likelihood_facts(self.recipe.likelihood),
        }
        return Result(facts={**facts, "notes": [certified(facts)]})


def certified(facts: Mapping[str, Any]) -> str:
    """The certificate in a sentence."""
    rank = f"at most {facts['rank']}" if facts["rank_is_bound"] else str(facts["rank"])
    return (
        f"No protected row moves by more than {facts['residual']:.1e} of its length and the draw's, for any of "
        f"{facts['num_draws']} draws (plain noise: {facts['isotropic']:.1e}; rank {rank}); at |displacement| = "
        f"{facts['relative_length']:.2g} |weights| no protected loss looked at changes by more than "
        f"{facts['largest_loss_change']:.2g} nats."
    )


@dataclass(frozen=True)
class CollectGaussian(Collecting):
    """The posterior of a variational fit, by its draws.

    Leaves behind `scale` (1), `num_draws`, `elbo` (nats an example), `divergence` from the prior, `log_det_precision`,
    `entropy`, `likelihood` and, for a regression, `noise_variance`.
    """

    def on(self, bench: Workbench) -> "_CollectGaussianTask":
        """Needs the fit and the chunks of draws."""
        return _CollectGaussianTask(replace(self, likelihood=bound_likelihood(self.likelihood, bench)), bench)


@dataclass(frozen=True)
class _CollectGaussianTask:
    recipe: CollectGaussian
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        fitted = self.bench.input("fitted").facts
        names = ("scale", "elbo", "divergence", "log_det_precision", "entropy", "sparsity", "compression")
        facts = {name: fitted[name] for name in names if name in fitted} | likelihood_facts(self.recipe.likelihood)
        num_draws = sum(self.bench.input(f"draws-{chunk}").facts["num"] for chunk in self.recipe.chunks)
        return Result(facts={**facts, "num_draws": num_draws, "notes": list(fitted["notes"])})


@dataclass(frozen=True)
class DrawPredictions:
    """Predictions of one data set by the point estimate and by all stored draws, an example a row.

    The columns are those of `Predictions`, where `variance` is the mean square over the draws; for classes also
    `disagreement`, see `StoredDraws`.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    role: str
    likelihood: Likelihood
    link: Link
    by: By
    chunks: tuple[str, ...]

    def units(self, outline: Outline) -> Sequence[Unit]:
        """Shards of the data set."""
        return [Unit(f"shard-{number:05d}") for number, _ in enumerate(outline.shards(self.role))]

    def on(self, bench: Workbench) -> "_PredictionsTask":
        """Needs the outputs under every chunk, and the posterior."""
        return _PredictionsTask(replace(self, likelihood=bound_likelihood(self.likelihood, bench)), bench)


@dataclass(frozen=True)
class _PredictionsTask:
    recipe: DrawPredictions
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        made = {chunk: self.bench.input(f"features-{chunk}") for chunk in self.recipe.chunks}
        scale = self.bench.input("posterior").facts["scale"]
        return Result(tables={"predictions": draws_table(self.recipe, made, scale, unit.name)})


def draws_table(recipe: DrawPredictions, made: Mapping[str, Artifact], scale: float, shard: str) -> pa.Table:
    """Predictions of one shard; holds its outputs under all draws, n C S numbers.

    Args:
        recipe: what is predicted.
        made: chunk -> outputs of the data set under it.
        scale: of the posterior.
        shard: name of the shard.
    """
    parts = [Features.of(artifact, shard) for artifact in made.values()]
    # J d is linear in the scale; the plain network was evaluated at it.
    moved = torch.cat([part.features_NCK for part in parts], dim=2) * (scale if recipe.by == "linearised" else 1.0)
    outputs = StoredDraws(parts[0].mean_NC, moved, cast(Meaning, recipe.likelihood.name))
    table = outputs_table(recipe.likelihood, outputs, parts[0], lambda: outputs.probabilities(recipe.link))
    if isinstance(recipe.likelihood, Gaussian):
        return table
    return table.append_column(DISAGREEMENT, column_of(outputs.disagreement))
