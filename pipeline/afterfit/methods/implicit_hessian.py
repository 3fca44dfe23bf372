"""Variances of outputs by conjugate gradients with the GGN or the Hessian: the oracle of Hessian-free Laplace."""

from typing import Literal

from pydantic import Field

from afterfit.frozen import Positive
from afterfit.methods.queries.covariance import QueryCovariances
from afterfit.methods.queries.method import Querying
from afterfit.network.likelihoods import Likelihood


class ImplicitHessian(Querying):
    """grad f^T (G + delta)^-1 grad f for each output that is asked for, by preconditioned conjugate gradients."""

    name: Literal["implicit_hessian"] = "implicit_hessian"
    curvature: Literal["ggn", "hessian"] = "ggn"
    """G; `hessian` is refused where it is not positive."""
    tolerance: Positive = 1e-3
    """Residual, relative to the output's gradient; that of a variance is its square."""
    max_passes: int = Field(200, gt=0)
    """Over the training data, of a solution."""

    @property
    def is_ggn(self) -> bool:
        """As chosen."""
        return self.curvature == "ggn"

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
            outputs=self.outputs,
        )
