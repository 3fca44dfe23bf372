"""Prior precision, temperature and data fraction from cached features: never another pass over the data."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple, cast

import pyarrow as pa
import torch
from torch import Tensor

from afterfit.algebra import Artifact, Cursor, Result, Unit
from afterfit.errors import NumericalError
from afterfit.network.likelihoods import Gaussian, Likelihood
from afterfit.network.workbench import Outline, Workbench, bound_likelihood
from afterfit.posterior.gaussian import Gaussian as GaussianOutputs
from afterfit.posterior.links import Link, Meaning
from afterfit.posterior.subspace import Complement, SubspacePosterior
from afterfit.precision import CORE
from afterfit.seeds import Seed

AUTO_PRIORS = [10 ** (half / 2) for half in range(-8, 17)]
AUTO_TEMPERATURES = [10 ** (half / 2) for half in range(11)]
NUM_PREFIXES = 12
TUNING_DRAWS = 128
REFINEMENTS = (10**0.25, 10**0.125)


class Features(NamedTuple):
    """Cached outputs of a data set, N examples."""

    mean_NC: Tensor
    features_NCK: Tensor
    kernel_NCC: Tensor | None
    targets: Tensor | None
    index_N: Tensor

    @classmethod
    def of(cls, artifact: Artifact, shard: str | None = None) -> "Features":
        """All shards of a features artifact, or one."""

        def read(family: str) -> Tensor:
            return artifact.tensor(family) if shard is None else artifact.tiles(family)[shard]

        return cls(
            read("mean"),
            read("features"),
            read("kernel") if "kernel" in artifact.families else None,
            read("target") if "target" in artifact.families else None,
            read("index"),
        )

    def outputs(self, posterior: SubspacePosterior, likelihood: Likelihood) -> GaussianOutputs:
        """The posterior's Gaussian over these outputs."""
        return posterior.outputs(
            self.mean_NC,
            self.features_NCK,
            self.kernel_NCC,
            likelihood=cast(Meaning, likelihood.name),
            indexes=self.index_N,
        )


class Curvature(NamedTuple):
    """The data's curvature by chunks, in their fixed order."""

    chunks_nKK: Tensor
    log_density_n: Tensor
    count_n: Tensor

    @classmethod
    def of(cls, artifact: Artifact) -> "Curvature":
        """All chunks of a curvature artifact."""
        return cls(artifact.tensor("curvature"), artifact.tensor("log_density"), artifact.tensor("count"))

    def prefix(self, num_chunks: int) -> Tensor:
        """Curvature (K, K) of the first chunks, summed in order."""
        total_KK = torch.zeros_like(self.chunks_nKK[0])
        for chunk_KK in self.chunks_nKK[:num_chunks]:
            total_KK += chunk_KK
        return total_KK

    def log_density(self, num_chunks: int) -> float:
        """Of the first chunks, in nats."""
        return self.log_density_n[:num_chunks].sum().item()


@dataclass(frozen=True)
class Choice:
    """A point of the grid."""

    num_chunks: int
    temperature: float
    prior_precision: float


@dataclass(frozen=True)
class Tuning:
    """Choose what a method left to `auto`, by validation NLL or by marginal likelihood.

    Leaves behind the choice as facts, and the table `grid` of every point tried with its objective (nats).
    A point whose objective is not finite is never chosen.
    """

    VERSION: ClassVar[int] = 2
    verb: ClassVar[str] = "map"

    likelihood: Likelihood
    prior_precision: float | Literal["auto"]
    temperature: float | Literal["auto"]
    data_fraction: float | Literal["auto"]
    complement: Complement
    objective: Literal["validation", "marginal_likelihood"]
    link: Link

    def units(self, outline: Outline) -> Sequence[Unit]:
        """One: a small computation on cached features."""
        return [Unit("all")]

    def on(self, bench: Workbench) -> "_TuningTask":
        """Needs the curvature, and the validation features or the network."""
        return _TuningTask(replace(self, likelihood=bound_likelihood(self.likelihood, bench)), bench)


@dataclass(frozen=True)
class _TuningTask:
    recipe: Tuning
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        recipe = self.recipe
        curvature = Curvature.of(self.bench.input("curvature"))
        if recipe.objective == "validation" and _has_auto(recipe):
            features = Features.of(self.bench.input("validation"))
            score = validation_objective(recipe, curvature, features)
        else:
            score = evidence_objective(recipe, curvature, self.bench.network.squared_norm)
        best, grid = search(recipe, curvature, score)
        num_examples = int(curvature.count_n.sum())
        seen = int(curvature.count_n[: best.num_chunks].sum())
        return Result(
            tables={"grid": pa.Table.from_pylist(grid)},
            facts={
                "num_chunks": best.num_chunks,
                "num_examples": seen,
                "data_fraction": seen / max(num_examples, 1),
                "temperature": best.temperature,
                "prior_precision": best.prior_precision,
                "objective": recipe.objective,
                "notes": list(_notes(recipe, best)),
            },
        )


def _has_auto(recipe: Tuning) -> bool:
    return "auto" in (recipe.prior_precision, recipe.temperature, recipe.data_fraction)


def validation_objective(
    recipe: Tuning, curvature: Curvature, features: Features, num_draws: int = TUNING_DRAWS
) -> Callable[[Choice], float]:
    """Validation NLL (nats an example) of a choice, with the same noise for every choice."""
    if features.targets is None:
        raise NumericalError("The validation data have no targets; name their `label` or `target` column.")
    targets = features.targets
    posteriors = _posteriors(curvature, recipe.complement)

    def nll(choice: Choice) -> float:
        outputs = features.outputs(posteriors(choice), recipe.likelihood)
        return validation_nll(outputs, targets, recipe.likelihood, recipe.link, num_draws)

    return nll


def validation_nll(
    outputs: GaussianOutputs, targets: Tensor, likelihood: Likelihood, link: Link, num_draws: int = TUNING_DRAWS
) -> float:
    """Nats an example; the same noise for all outputs."""
    if isinstance(likelihood, Gaussian):
        moments = outputs.observe(likelihood.variance)
        residual = targets.reshape(moments.mean.shape) - moments.mean
        density = -(residual.square() / moments.variance + (2 * math.pi * moments.variance).log()).sum(1) / 2
        return -density.double().mean().item()
    probabilities = outputs.probabilities(link, num_draws=num_draws, seed=Seed(0, ("tuning",)))
    if likelihood.name == "bernoulli":
        answered = torch.where(targets.reshape(probabilities.shape) > 0.5, probabilities, 1 - probabilities)
        return -answered.double().log().sum(1).mean().item()
    return -probabilities.double().gather(1, targets.long()[:, None]).log().mean().item()


def evidence_objective(recipe: Tuning, curvature: Curvature, norm_squared: float) -> Callable[[Choice], float]:
    """Minus the log marginal likelihood an example, of a choice."""
    posteriors = _posteriors(curvature, recipe.complement)

    def loss(choice: Choice) -> float:
        posterior = posteriors(choice)
        log_density = curvature.log_density(choice.num_chunks)
        seen = int(curvature.count_n[: choice.num_chunks].sum())
        return -posterior.log_evidence(log_density / choice.temperature, norm_squared) / max(seen, 1)

    return loss


def posterior_at(curvature: Curvature, choice: Choice, complement: Complement) -> SubspacePosterior:
    """The posterior of a choice."""
    return _posteriors(curvature, complement)(choice)


def _posteriors(curvature: Curvature, complement: Complement) -> Callable[[Choice], SubspacePosterior]:
    """Posteriors of choices; eigenpairs are found again only where more than the prior precision changes."""

    @lru_cache(maxsize=8)
    def at_any_prior(num_chunks: int, temperature: float) -> SubspacePosterior:
        return SubspacePosterior.of(curvature.prefix(num_chunks).to(CORE), 1.0, temperature, complement)

    return lambda choice: replace(
        at_any_prior(choice.num_chunks, choice.temperature), prior_precision=choice.prior_precision
    )


def search(
    recipe: Tuning, curvature: Curvature, objective: Callable[[Choice], float]
) -> tuple[Choice, list[dict[str, float]]]:
    """Coarse grid over what is `auto`, then two finer ones around the best point.

    Raises:
        NumericalError: if no point has a finite objective.
    """
    tried: dict[Choice, float] = {}

    def attempt(points: Iterator[Choice]) -> Choice:
        for point in points:
            if point not in tried:
                value = objective(point)
                tried[point] = value if math.isfinite(value) else math.inf
        return min(tried, key=lambda point: tried[point])

    best = attempt(_coarse(recipe, curvature))
    for factor in REFINEMENTS:
        best = attempt(_around(recipe, best, factor))
    if not math.isfinite(tried[best]):
        raise NumericalError(
            "No prior precision gave finite predictions; check the network's outputs, or set `prior_precision`."
        )
    rows = [
        {
            "num_chunks": float(point.num_chunks),
            "temperature": point.temperature,
            "prior_precision": point.prior_precision,
            "objective_nats": value,
        }
        for point, value in tried.items()
    ]
    return best, rows


def _coarse(recipe: Tuning, curvature: Curvature) -> Iterator[Choice]:
    auto_temperatures = AUTO_TEMPERATURES if recipe.objective == "validation" else [1.0]
    temperatures = auto_temperatures if recipe.temperature == "auto" else [float(recipe.temperature)]
    priors = AUTO_PRIORS if recipe.prior_precision == "auto" else [float(recipe.prior_precision)]
    for num_chunks in _prefixes(recipe, curvature):
        for temperature in temperatures:
            for prior in priors:
                yield Choice(num_chunks, temperature, prior)


def _around(recipe: Tuning, best: Choice, factor: float) -> Iterator[Choice]:
    tune_temperature = recipe.temperature == "auto" and recipe.objective == "validation"
    temperatures = [best.temperature * step for step in ((1 / factor, 1, factor) if tune_temperature else (1,))]
    steps = (factor**-2, 1 / factor, 1, factor, factor**2) if recipe.prior_precision == "auto" else (1,)
    for temperature in temperatures:
        for step in steps:
            yield Choice(best.num_chunks, temperature, best.prior_precision * step)


def _prefixes(recipe: Tuning, curvature: Curvature) -> list[int]:
    """Numbers of chunks to try: a geometric ladder for `auto`, else the one nearest to the fraction asked for."""
    seen_n = curvature.count_n.cumsum(0).double()
    if recipe.data_fraction == "auto":
        ladder = torch.logspace(math.log10(seen_n[0].item()), math.log10(seen_n[-1].item()), NUM_PREFIXES)
        chosen = {int((seen_n - rung).abs().argmin()) + 1 for rung in ladder.tolist()}
        return sorted(chosen)
    return [int((seen_n - float(recipe.data_fraction) * seen_n[-1]).abs().argmin()) + 1]


def _notes(recipe: Tuning, best: Choice) -> Iterator[str]:
    if recipe.prior_precision == "auto":
        low, high = AUTO_PRIORS[0], AUTO_PRIORS[-1]
        if not low < best.prior_precision < high:
            yield (
                f"The prior precision chosen, {best.prior_precision:.3g}, lies at the end of the range tried "
                f"({low:.0e} to {high:.0e}): the data say little about it."
            )
