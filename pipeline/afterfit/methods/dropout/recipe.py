"""The choices of a fit with noisy weights, as its stage's key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from afterfit.algebra import Unit
from afterfit.layout import of_last_match
from afterfit.methods.dropout.local import Estimator
from afterfit.methods.dropout.weights import NoiseChoices
from afterfit.network.likelihoods import Likelihood
from afterfit.network.workbench import Outline, Workbench
from afterfit.training.settings import TrainingSettings

if TYPE_CHECKING:
    from afterfit.methods.dropout.fit import DropoutTraining


@dataclass(frozen=True, kw_only=True)
class DropoutFit:
    """Trains weights and the rates of the noise on them, by AdamW.

    Leaves behind the weights as `trained_state` reads them; what was fitted of the noise, `rates` by blocks; facts
    `noisy` (block -> its site), elbo and divergence (nats an example and nats), log_det_precision and entropy of
    independent noise, sparsity and compression; the table `progress`.

    Cost of a step: three passes for `local` and independent noise in place of two, else as for a point estimate.

    Source: Kingma, Salimans, Welling (2015), arXiv:1506.02557; Molchanov, Ashukha, Vetrov (2017), arXiv:1701.05369.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "iterate"

    settings: TrainingSettings
    likelihood: Likelihood
    choices: NoiseChoices
    weights: tuple[str, ...]  # globs
    estimator: Estimator = "local"
    rate: float = 0.05  # alpha at the start
    rates: tuple[tuple[str, float], ...] = ()  # of the weights that a glob matches; the last one counts
    is_fitted: bool = True  # whether rates are
    price: float = 1.0
    warm_up: float = 0.0  # of all steps, over which the price rises

    def rate_of(self, name: str) -> float:
        """Alpha of a weight tensor at the start."""
        return of_last_match(self.rates, name, self.rate)

    def units(self, outline: Outline) -> Sequence[Unit]:
        """None: a gang cuts steps into slices instead."""
        return []

    def on(self, bench: Workbench) -> DropoutTraining:
        """Needs the network and the training data.

        Raises:
            ConfigError: for globs that choose no weight which products of data are made with.
        """
        from afterfit.methods.dropout.fit import DropoutTraining

        return DropoutTraining(self, bench)
