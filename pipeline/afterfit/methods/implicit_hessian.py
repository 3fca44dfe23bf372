"""Variances of outputs by conjugate gradients with the GGN or the Hessian: the oracle of Hessian-free Laplace."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from afterfit.frozen import Frozen, Positive
from afterfit.methods.ggn_nystrom import leading_ggn
from afterfit.methods.queries.covariance import QueryCovariances
from afterfit.network.likelihoods import Likelihood
from afterfit.network.workbench import Declaration, Outline


class ImplicitHessian(Frozen):
    """grad f^T (G + delta)^-1 grad f for each output that is asked for, by preconditioned conjugate gradients."""

    name: Literal["implicit_hessian"] = "implicit_hessian"
    posterior: ClassVar[Literal["subspace", "draws", "queries"]] = "queries"
    narrower: ClassVar[str] = "raise `method.prior_precision`"
    queries: int | None = Field(100, gt=0)
    """Examples of each evaluated data set, from its first, whose outputs get a covariance; null: all."""
    curvature: Literal["ggn", "hessian"] = "ggn"
    """G; `hessian` is refused where it is not positive."""
    tolerance: Positive = 1e-3
    """Residual, relative to the output's gradient; that of a variance is its square."""
    max_passes: int = Field(200, gt=0)
    """Over the training data, of a solution."""
    rank: int = Field(64, gt=0)
    """Leading eigenpairs of the GGN that precondition."""
    prior_precision: Positive | Literal["auto"] = "auto"
    """delta; `auto`: by the marginal likelihood of these eigenpairs."""
    seed: int = 0
    """Names the probes of the sketch."""

    def check(self, num_examples: int, num_outputs: int) -> None:
        """Any choices fit any data."""

    def stages(self, likelihood: Likelihood, outline: Outline) -> Mapping[str, Declaration]:
        """What preconditions."""
        return leading_ggn(likelihood, min(self.rank, outline.layout.num_weights), self.seed, outline)

    def plateau(self, likelihood: Likelihood) -> None:
        """There is no lambda."""

    def variances(self, role: str, likelihood: Likelihood) -> None:
        """Nothing is amortised."""

    def covariances(self, role: str, likelihood: Likelihood) -> QueryCovariances:
        """Of a data set."""
        return QueryCovariances(
            likelihood=likelihood,
            kind=self.curvature,
            sides="one",
            tolerance=self.tolerance,
            max_passes=self.max_passes,
            lambda_sd=1.0,
            role=role,
            num_examples=self.queries,
        )
