"""From covariances of queries to a posterior and its predictions; the counterpart of `drawn`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, cast

import pyarrow as pa
import torch
from torch import Tensor

from afterfit.algebra import Artifact, Cursor, Result, Unit
from afterfit.errors import NumericalError
from afterfit.methods.queries.refits import told
from afterfit.methods.queries.response import Kind
from afterfit.network.likelihoods import Likelihood
from afterfit.network.workbench import Outline, Workbench, bound_likelihood
from afterfit.plan.predictions import Predictions, gaussian_table, likelihood_facts
from afterfit.plan.tuning import Features, validation_nll
from afterfit.posterior.gaussian import Gaussian
from afterfit.posterior.links import Link, Meaning


@dataclass(frozen=True)
class CollectQueries:
    """What queries are answered with. Holds facts only.

    They are `prior_precision`, `likelihood`, `kind`, of refits `lambda_sd`, and `spread` and `decades` of the plateau.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    likelihood: Likelihood
    kind: Kind
    lambda_sd: float | None  # None: as the plateau says

    def units(self, outline: Outline) -> Sequence[Unit]:
        """One."""
        return [Unit("all")]

    def on(self, bench: Workbench) -> "_CollectTask":
        """Needs the tuning, and the plateau if there is one."""
        return _CollectTask(replace(self, likelihood=bound_likelihood(self.likelihood, bench)), bench)


@dataclass(frozen=True)
class _CollectTask:
    recipe: CollectQueries
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        facts: dict[str, Any] = {"prior_precision": self.bench.input("tuning").facts["prior_precision"]}
        facts["kind"] = self.recipe.kind
        if self.recipe.lambda_sd is None:
            plateau = self.bench.input("plateau").facts
            facts |= {name: plateau[name] for name in ("kind", "lambda_sd", "spread", "decades")}
        elif self.recipe.kind in ("linearised", "exact"):
            facts["lambda_sd"] = self.recipe.lambda_sd
        return Result(facts=facts | likelihood_facts(self.recipe.likelihood))


SCALES = tuple(10 ** (quarter / 4) for quarter in range(-24, 25))
"""That a score is tried with, relative to the one at which its mean is 1."""


@dataclass(frozen=True)
class ScoreScale:
    """What a score is multiplied by so that it serves as a variance: by the NLL of validation data.

    Leaves behind the fact scale, and the table `grid`.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    likelihood: Likelihood
    link: Link

    def units(self, outline: Outline) -> Sequence[Unit]:
        """One."""
        return [Unit("all")]

    def on(self, bench: Workbench) -> "_ScaleTask":
        """Needs the scores of the validation data."""
        return _ScaleTask(replace(self, likelihood=bound_likelihood(self.likelihood, bench)), bench)


@dataclass(frozen=True)
class _ScaleTask:
    recipe: ScoreScale
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        asked = Asked.of(self.bench.input("covariance"))
        if asked.targets is None:
            raise NumericalError("The validation data have no targets; name their `label` or `target` column.")
        mean = asked.mean_variance
        rows = []
        for relative in SCALES:
            scale = relative / mean if mean > 0 else relative
            outputs = asked.outputs(self.recipe.likelihood, scale)
            nll = validation_nll(outputs, asked.targets, self.recipe.likelihood, self.recipe.link)
            rows.append({"scale": scale, "nll": nll})
        best = min(rows, key=lambda row: row["nll"])
        return Result(tables={"grid": pa.Table.from_pylist(rows)}, facts=best)


class Asked(NamedTuple):
    """Outputs that were asked about, N examples."""

    mean_NC: Tensor
    covariance_NCC: Tensor  # (N, C, C), or variances (N, C)
    index_N: Tensor
    targets: Tensor | None

    @classmethod
    def of(cls, made: Artifact) -> "Asked":
        """As a stage left them."""
        targets = made.tensor("target") if "target" in made.families else None
        found = made.tensor("covariance" if "covariance" in made.families else "variance")
        return cls(made.tensor("mean"), found, made.tensor("index"), targets)

    @property
    def mean_variance(self) -> float:
        """Over all outputs."""
        found = self.covariance_NCC
        return float((found.diagonal(dim1=1, dim2=2) if found.dim() == 3 else found).mean())

    def outputs(self, likelihood: Likelihood, scale: float = 1.0) -> Gaussian:
        """With covariances times a scale."""
        found = scale * self.covariance_NCC
        covariance_NCC = found if found.dim() == 3 else torch.diag_embed(found)
        return outputs_of(self.mean_NC, covariance_NCC, self.index_N, likelihood)


@dataclass(frozen=True)
class QueryPredictions(Predictions):
    """Predictions of the examples that were asked about, an example a row; the columns are those of `Predictions`."""

    is_score: bool = False  # whether what was found is to be scaled

    def units(self, outline: Outline) -> Sequence[Unit]:
        """One."""
        return [Unit("all")]

    def on(self, bench: Workbench) -> "_PredictionsTask":  # type: ignore[override]
        """Needs the covariances, and the scale of a score."""
        return _PredictionsTask(replace(self, likelihood=bound_likelihood(self.likelihood, bench)), bench)


@dataclass(frozen=True)
class _PredictionsTask:
    recipe: QueryPredictions
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        recipe, made = self.recipe, self.bench.input("covariance")
        asked = Asked.of(made)
        scale = float(self.bench.input("scale").facts["scale"]) if recipe.is_score else 1.0
        places = Features(asked.mean_NC, asked.mean_NC[..., :0], None, asked.targets, asked.index_N)
        table = gaussian_table(recipe, asked.outputs(recipe.likelihood, scale), places)
        return Result(tables={"predictions": table}, facts={"notes": list(_notes(made))})


def _notes(made: Artifact) -> Iterator[str]:
    if "tolerance" in made.facts:
        queries = made.table("queries")
        residual, error = (torch.tensor(queries[name].to_pylist()) for name in ("residual", "error"))
        yield from told(residual, error, made.facts["tolerance"])
        num, outputs = made.tensor("mean").shape
        estimated = outputs - queries.num_rows // max(num, 1)
        if estimated:
            yield (
                f"Variances of {estimated} of {outputs} outputs of each example are estimates; those of the others are "
                "solved for."
            )


def outputs_of(mean_BC: Tensor, covariance_BCC: Tensor, indexes_B: Tensor, likelihood: Likelihood) -> Gaussian:
    """Outputs whose covariances are each example's own."""
    none_BC0 = mean_BC.new_zeros(*mean_BC.shape, 0)
    return Gaussian(mean_BC, none_BC0, covariance_BCC, cast(Meaning, likelihood.name), indexes_B)
