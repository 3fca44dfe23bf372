"""Hessian-free Laplace: variances of outputs from refits of the network, without a product with the Hessian."""

from typing import Annotated, Any, Literal

from pydantic import Field

from afterfit.errors import ConfigError
from afterfit.frozen import Positive
from afterfit.methods.queries.amortised import Amortised, AmortisedVariances
from afterfit.methods.queries.covariance import QueryCovariances
from afterfit.methods.queries.method import Querying
from afterfit.methods.queries.plateau import Plateau
from afterfit.methods.queries.refits import Sides
from afterfit.network.likelihoods import Likelihood

GRID = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


class HessianFree(Querying):
    """Refits that raise one output by lambda times the loss's unit: how far the output moves is its variance.

    The trained weights count as a minimum: the loss is tilted by its gradient there. Of the network linearised at them
    the loss is convex, and variances are those of the GGN; of the network itself those of the exact Hessian, where that
    is positive.

    Source: McInerney, Kallus (2024), arXiv:2403.10671.
    """

    name: Literal["hessian_free"] = "hessian_free"
    network: Literal["linearised", "exact", "auto"] = "linearised"
    """`exact`: the network itself, refused where its loss has negative curvature; `auto`: that where it has none, else
    linearised."""
    sides: Sides = "two"
    """Refits at lambda and -lambda, or at lambda only: half the passes, and a bias of first order in lambda."""
    lambda_sd: Positive | Literal["auto"] | Annotated[tuple[Positive, ...], Field(min_length=2)] = "auto"
    """lambda times the output's standard deviation; `auto`, or a grid: where variances are flat, on a few queries."""
    tolerance: Positive = 3e-3
    """Length of a refit's last gradient, relative to lambda times that of the output."""
    max_passes: int = Field(120, gt=1)
    """Over the training data, of a refit."""
    amortised: Amortised | None = None
    """`hutchinson`: variances of all queries from a few refits with signs, unbiased, with standard errors; `score`:
    from one, a score that orders queries, scaled by validation data."""
    num_refits: Annotated[int, Field(gt=1)] | Literal["auto"] = "auto"
    """Of `hutchinson`; `auto`: for a relative standard error of .2, refused where direct refits are cheaper."""

    def check(self, num_examples: int, num_outputs: int) -> None:
        """Refuse a grid out of order, refits that nobody asked for, and outputs as `Querying` does.

        Raises:
            ConfigError: for any.
        """
        super().check(num_examples, num_outputs)
        if self.outputs is not None and self.amortised is not None:
            raise ConfigError("`method.amortised` answers all outputs together; leave out it, or `method.outputs`.")
        if self.num_refits != "auto" and self.amortised != "hutchinson":
            raise ConfigError("`method.num_refits` is of signs; set `method.amortised: hutchinson`, or leave it out.")
        if isinstance(self.lambda_sd, tuple) and list(self.lambda_sd) != sorted(set(self.lambda_sd)):
            raise ConfigError("The lambdas of `method.lambda_sd` are not ascending; give each once, from the smallest.")

    @property
    def is_ggn(self) -> bool:
        """Of the network linearised."""
        return self.network == "linearised"

    def plateau(self, likelihood: Likelihood) -> Plateau | None:
        """Where lambda is not given."""
        if isinstance(self.lambda_sd, float) and self.network != "auto":
            return None
        grid = GRID if self.lambda_sd == "auto" else self.lambda_sd
        return Plateau(
            likelihood=likelihood,
            kind="linearised" if self.network == "linearised" else "exact",
            sides=self.sides,
            tolerance=self.tolerance,
            max_passes=self.max_passes,
            grid=grid if isinstance(grid, tuple) else (grid,),
            may_fall_back=self.network == "auto",
        )

    def covariances(self, role: str, likelihood: Likelihood) -> QueryCovariances:
        """Of a data set."""
        return QueryCovariances(**self._solving(likelihood), role=role, num_examples=self.queries, outputs=self.outputs)

    def variances(self, role: str, likelihood: Likelihood) -> AmortisedVariances | None:
        """The same from a few refits for all queries."""
        if self.amortised is None:
            return None
        return AmortisedVariances(
            **self._solving(likelihood),
            role=role,
            num_examples=self.queries,
            amortised=self.amortised,
            num_refits=self.num_refits,
            seed=self.seed,
            direction="validation" if self.amortised == "score" else role,
            num_raised=self.queries,
        )

    def _solving(self, likelihood: Likelihood) -> dict[str, Any]:
        is_found = self.plateau(likelihood) is not None
        return {
            "likelihood": likelihood,
            "kind": "linearised" if self.network == "linearised" else "exact",
            "sides": self.sides,
            "tolerance": self.tolerance,
            "max_passes": self.max_passes,
            "lambda_sd": None if is_found else self.lambda_sd,
        }
