"""What methods that answer queries have in common."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from afterfit.errors import ConfigError
from afterfit.frozen import Frozen, Positive
from afterfit.methods.ggn_nystrom import leading_ggn
from afterfit.network.likelihoods import Likelihood
from afterfit.network.workbench import Declaration, Outline
from afterfit.rows.protocol import check_outputs

USUAL, FEW = 64, 1024
"""Eigenpairs, and weights of which all are taken."""


class Querying(Frozen):
    """Covariances of outputs, one query at a time, preconditioned by leading eigenpairs of the GGN."""

    posterior: ClassVar[Literal["subspace", "draws", "queries"]] = "queries"
    narrower: ClassVar[str] = "raise `method.prior_precision`"
    queries: int | None = Field(100, gt=0)
    """Examples of each evaluated data set, from its first, whose outputs get a covariance; null: all."""
    outputs: PositiveInt | tuple[NonNegativeInt, ...] | None = None
    """Of each of these, what is solved for: so many of the largest, or these by number; null: all. Variances of the
    others are then estimates, by the leading eigenpairs and what is solved for."""
    rank: PositiveInt | Literal["auto"] = "auto"
    """Leading eigenpairs of the GGN that precondition; `auto`: 64, or all of up to 1024 weights."""
    prior_precision: Positive | Literal["auto"] = "auto"
    """Inverse prior variance; `auto`: by the marginal likelihood of these eigenpairs."""
    seed: int = 0
    """Names the probes of the sketch."""

    def check(self, num_examples: int, num_outputs: int) -> None:
        """Refuse outputs that there are not, or of which nothing is known if they are not solved for.

        Raises:
            ConfigError: for either.
        """
        if isinstance(self.outputs, tuple):
            check_outputs(self.outputs, num_outputs)
        if self.outputs is not None and not self.is_ggn:
            raise ConfigError(
                "Variances of outputs that are not solved for are estimated by the GGN; take it (`method.network: "
                "linearised`, or `method.curvature: ggn`), or leave out `method.outputs`."
            )

    @property
    @abstractmethod
    def is_ggn(self) -> bool:
        """Whether the curvature is surely that of the network linearised."""

    def stages(self, likelihood: Likelihood, outline: Outline) -> Mapping[str, Declaration]:
        """What preconditions."""
        num_weights = outline.layout.num_weights
        rank = (num_weights if num_weights <= FEW else USUAL) if self.rank == "auto" else self.rank
        return leading_ggn(likelihood, min(rank, num_weights), self.seed, outline)
