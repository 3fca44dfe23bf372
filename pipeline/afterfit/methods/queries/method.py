"""What methods that answer queries have in common."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from afterfit.frozen import Frozen, Positive
from afterfit.methods.ggn_nystrom import leading_ggn
from afterfit.network.likelihoods import Likelihood
from afterfit.network.workbench import Declaration, Outline


class Querying(Frozen):
    """Covariances of outputs, one query at a time, preconditioned by leading eigenpairs of the GGN."""

    posterior: ClassVar[Literal["subspace", "draws", "queries"]] = "queries"
    narrower: ClassVar[str] = "raise `method.prior_precision`"
    queries: int | None = Field(100, gt=0)
    """Examples of each evaluated data set, from its first, whose outputs get a covariance; null: all."""
    rank: int = Field(64, gt=0)
    """Leading eigenpairs of the GGN that precondition."""
    prior_precision: Positive | Literal["auto"] = "auto"
    """Inverse prior variance; `auto`: by the marginal likelihood of these eigenpairs."""
    seed: int = 0
    """Names the probes of the sketch."""

    def stages(self, likelihood: Likelihood, outline: Outline) -> Mapping[str, Declaration]:
        """What preconditions."""
        return leading_ggn(likelihood, min(self.rank, outline.layout.num_weights), self.seed, outline)
