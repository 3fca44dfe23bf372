"""From the tuned posterior to predictions and scores, all from cached features."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from afterfit.algebra import Artifact, Cursor, Result, Unit
from afterfit.network.likelihoods import Gaussian, Likelihood
from afterfit.network.workbench import Outline, Workbench, bound_likelihood
from afterfit.plan.tuning import Choice, Curvature, Features, posterior_at
from afterfit.posterior.gaussian import Gaussian as GaussianOutputs
from afterfit.posterior.links import Link, squash
from afterfit.posterior.outputs import Outputs
from afterfit.posterior.subspace import Complement, SubspacePosterior
from afterfit.predict.scores import (
    confidence_table,
    disagreement_table,
    ood_table,
    regression_table,
    reliability_table,
    score_table,
    scores_as_table,
)
from afterfit.seeds import Seed

PREDICTORS = {"map": "map_probabilities", "posterior": "probabilities"}
DISAGREEMENT = "disagreement"
"""Column that predictions by stored draws have besides."""


@dataclass(frozen=True)
class FitPosterior:
    """The posterior at the tuned choice: eigenpairs of the curvature in the basis, and numbers.

    Leaves behind `curvature` (K,) and `rotation` (K, K) in float64, and as facts the prior precision, temperature,
    complement, log evidence (nats) and, for a regression, the noise variance.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    likelihood: Likelihood
    complement: Complement

    def units(self, outline: Outline) -> Sequence[Unit]:
        """One."""
        return [Unit("all")]

    def on(self, bench: Workbench) -> "_PosteriorTask":
        """Needs the curvature, the tuning and the network's weights."""
        return _PosteriorTask(replace(self, likelihood=bound_likelihood(self.likelihood, bench)), bench)


@dataclass(frozen=True)
class _PosteriorTask:
    recipe: FitPosterior
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        curvature = Curvature.of(self.bench.input("curvature"))
        tuned = self.bench.input("tuning").facts
        choice = Choice(tuned["num_chunks"], tuned["temperature"], tuned["prior_precision"])
        posterior = posterior_at(curvature, choice, self.recipe.complement)
        log_density = curvature.log_density(choice.num_chunks)
        evidence = posterior.log_evidence(log_density / choice.temperature, self.bench.network.squared_norm)
        facts = {
            "prior_precision": choice.prior_precision,
            "temperature": choice.temperature,
            "data_fraction": tuned["data_fraction"],
            "complement": self.recipe.complement,
            "num_features": len(posterior.curvature_K),
            "log_evidence_nats": evidence,
            **likelihood_facts(self.recipe.likelihood),
        }
        return Result(
            tensors={"curvature": [("all", posterior.curvature_K)], "rotation": [("all", posterior.rotation_KK)]},
            facts=facts,
        )


def likelihood_facts(likelihood: Likelihood) -> dict[str, Any]:
    """What a posterior says of its likelihood: the name and, for a regression, the noise variance."""
    facts: dict[str, Any] = {"likelihood": likelihood.name}
    return {**facts, "noise_variance": likelihood.variance} if isinstance(likelihood, Gaussian) else facts


def read_posterior(artifact: Artifact) -> SubspacePosterior:
    """The posterior that `FitPosterior` left behind."""
    facts = artifact.facts
    return SubspacePosterior(
        artifact.tensor("curvature"), artifact.tensor("rotation"), facts["prior_precision"], facts["complement"]
    )


@dataclass(frozen=True)
class Predictions:
    """Predictions of one data set as a table, an example a row, by the point estimate and by the posterior.

    Classes: `index`, `label`, `map_probabilities` and `probabilities` (lists over classes), `mean` and `variance` of
    the logits. Numbers: `index`, `target`, `mean`, `variance` (epistemic) and `noise`.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    role: str
    likelihood: Likelihood
    link: Link
    num_draws: int
    seed: int = 0

    def units(self, outline: Outline) -> Sequence[Unit]:
        """Shards of the data set."""
        return [Unit(f"shard-{number:05d}") for number, _ in enumerate(outline.shards(self.role))]

    def on(self, bench: Workbench) -> "_PredictionsTask":
        """Needs the features and the posterior."""
        return _PredictionsTask(replace(self, likelihood=bound_likelihood(self.likelihood, bench)), bench)


@dataclass(frozen=True)
class _PredictionsTask:
    recipe: Predictions
    bench: Workbench

    @cached_property
    def posterior(self) -> SubspacePosterior:
        return read_posterior(self.bench.input("posterior"))

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        features = Features.of(self.bench.input("features"), unit.name)
        table = prediction_table(self.recipe, self.posterior, features)
        return Result(tables={"predictions": table})


def prediction_table(recipe: Predictions, posterior: SubspacePosterior, features: Features) -> pa.Table:
    """Predictions of some examples; see `Predictions` for the columns."""
    return gaussian_table(recipe, features.outputs(posterior, recipe.likelihood), features)


def gaussian_table(recipe: Predictions, outputs: GaussianOutputs, features: Features) -> pa.Table:
    """The same of outputs that are Gaussian."""

    def averaged() -> Tensor:
        seed = Seed(recipe.seed, ("predict",))
        return outputs.probabilities(recipe.link, num_draws=recipe.num_draws, seed=seed)

    return outputs_table(recipe.likelihood, outputs, features, averaged)


def outputs_table(
    likelihood: Likelihood, outputs: Outputs, features: Features, averaged: Callable[[], Tensor]
) -> pa.Table:
    """Predictions of N examples as a table; see `Predictions` for the columns.

    Args:
        likelihood: with its noise known.
        outputs: of the examples.
        features: say where the examples lie in the data set, and their answers where there are any.
        averaged: gives probabilities (N, C); called for classes only.
    """
    columns: dict[str, pa.Array] = {"index": pa.array(features.index_N.numpy())}
    if features.targets is not None:
        name = "target" if isinstance(likelihood, Gaussian) else "label"
        columns[name] = column_of(features.targets)
    if isinstance(likelihood, Gaussian):
        moments = outputs.observe(likelihood.variance)
        columns |= {
            "mean": column_of(moments.mean),
            "variance": column_of(moments.epistemic),
            "noise": column_of(moments.noise.contiguous()),
        }
    else:
        columns |= {
            "map_probabilities": column_of(squash(outputs.mean, likelihood.name)),  # type: ignore[arg-type]
            "probabilities": column_of(averaged()),
            "mean": column_of(outputs.mean),
            "variance": column_of(outputs.variance),
        }
    return pa.table(columns)


def column_of(values: Tensor) -> pa.Array:
    """(N,) as a plain column, (N, C) as lists of one length."""
    flat = pa.array(values.contiguous().flatten().numpy())
    return flat if values.dim() == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def matrix(column: pa.ChunkedArray) -> Tensor:
    """The inverse: a column of numbers or of lists as a tensor."""
    whole = column.combine_chunks()
    if pa.types.is_fixed_size_list(whole.type):
        values = np.array(whole.flatten()).reshape(len(whole), whole.type.list_size)
    else:
        values = np.array(whole)
    return torch.from_numpy(values)


@dataclass(frozen=True)
class Scores:
    """Scores of point estimate and posterior on every data set, as tables for people and for pictures.

    Leaves behind `scores` (predictor, dataset, metric, value), `reliability` and `confidence`.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    likelihood: str
    in_distribution: tuple[str, ...]
    out_of_distribution: tuple[str, ...]

    def units(self, outline: Outline) -> Sequence[Unit]:
        """One."""
        return [Unit("all")]

    def on(self, bench: Workbench) -> "_ScoresTask":
        """Needs the predictions of every data set."""
        return _ScoresTask(self, bench)


@dataclass(frozen=True)
class _ScoresTask:
    recipe: Scores
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        tables = {
            role: self.bench.input(role).table("predictions")
            for role in (*self.recipe.in_distribution, *self.recipe.out_of_distribution)
        }
        if self.recipe.likelihood == "gaussian":
            return Result(tables={"scores": pa.concat_tables(self._regression(tables))})
        scores, confidence, reliability = [], [], []
        for predictor, column in PREDICTORS.items():
            of = {role: self._scored(table[column]) for role, table in tables.items()}
            for role in self.recipe.in_distribution:
                labels = self._scored(tables[role]["label"])
                scores.append(scores_as_table(predictor, role, score_table(of[role], labels)))
                table = reliability_table(of[role], labels, predictor)
                reliability.append(table.append_column("dataset", pa.array([role] * table.num_rows)))
            for role in self.recipe.out_of_distribution:
                for inside in self.recipe.in_distribution[:1]:
                    figures = ood_table(of[inside], of[role])
                    if predictor == "posterior" and DISAGREEMENT in tables[role].column_names:
                        near, far = (matrix(tables[one][DISAGREEMENT]) for one in (inside, role))
                        figures |= disagreement_table(near, far)
                    scores.append(scores_as_table(predictor, role, figures))
            confidence += [confidence_table(of[role], predictor, role) for role in of]
        return Result(
            tables={
                "scores": pa.concat_tables(scores),
                "confidence": pa.concat_tables(confidence),
                "reliability": pa.concat_tables(reliability),
            }
        )

    def _scored(self, column: pa.ChunkedArray) -> Tensor:
        """Probabilities, or labels. Several yes-or-no answers of an example count as one example each."""
        values = matrix(column)
        return values.flatten() if self.recipe.likelihood == "bernoulli" else values

    def _regression(self, tables: Mapping[str, pa.Table]) -> Iterator[pa.Table]:
        for role in self.recipe.in_distribution:
            table = tables[role]
            mean, targets = matrix(table["mean"]), matrix(table["target"])
            noise = matrix(table["noise"])
            for predictor, variance in (("map", noise), ("posterior", noise + matrix(table["variance"]))):
                figures = regression_table(mean, variance, targets.reshape(mean.shape))
                yield scores_as_table(predictor, role, figures)
