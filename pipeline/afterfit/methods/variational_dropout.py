"""Variational dropout: weights and the rates of the noise on them, trained together, for any network."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from afterfit.algebra import Examples
from afterfit.errors import ConfigError
from afterfit.frozen import Frozen, Positive
from afterfit.methods.dropout.divergence import Divergence
from afterfit.methods.dropout.draws import DropoutDraws
from afterfit.methods.dropout.local import Estimator
from afterfit.methods.dropout.noise import WeightNoise
from afterfit.methods.dropout.recipe import DropoutFit
from afterfit.methods.dropout.sites import first_inputs
from afterfit.methods.dropout.weights import LIMIT, Noise, NoiseChoices, Sharing
from afterfit.methods.projection.chunk import chunked
from afterfit.methods.projection.problem import draws_together
from afterfit.network.functional import Network
from afterfit.network.likelihoods import Categorical, Gaussian, Likelihood
from afterfit.network.workbench import Declaration, Outline
from afterfit.training.settings import TrainingSettings


class NoisyTraining(TrainingSettings):
    """As for a point estimate; the prior takes the place of weight decay."""

    epochs: PositiveInt = 20
    weight_decay: NonNegativeFloat = 0.0


class VariationalDropout(Frozen):
    """w = theta + sigma e for each weight, or w = theta s for one s of every input unit, of rates that are fitted.

    Source: Kingma, Salimans, Welling (2015), arXiv:1506.02557; Molchanov, Ashukha, Vetrov (2017), arXiv:1701.05369.
    """

    name: Literal["variational_dropout"] = "variational_dropout"
    posterior: ClassVar[Literal["subspace", "draws", "queries"]] = "draws"
    narrower: ClassVar[str] = "lower `method.rate`, or `method.kl_weight`"
    scale: ClassVar[float] = 1.0  # draws are displacements as they are
    loss: ClassVar[None] = None
    noise: Noise = "independent"
    """`independent`: of each weight; `correlated`: of input units, normal around 1; `bernoulli`: input units are
    dropped, the others are raised."""
    sharing: Sharing = "weight"
    """What has a rate of its own: a `layer`, an input `unit`, or a `weight`."""
    parametrisation: Literal["auto", "additive", "multiplicative"] = "auto"
    """What is fitted: logarithms of variances, or of rates alpha. `auto`: of variances where noise is independent."""
    estimator: Estimator = "local"
    """`local`: what comes out of a layer is drawn; `per_example` and `per_batch` draw weights, for comparison."""
    kl: Divergence = "molchanov"
    """Divergence from the log-uniform prior, by two approximations, or from N(0, 1 / prior_precision)."""
    prior_precision: Positive = 1.0
    """Of `kl: proper_prior`."""
    kl_weight: NonNegativeFloat = 1.0
    """What the divergence counts for."""
    warm_up: float = Field(0.0, ge=0, le=1)
    """Part of all steps over which the divergence rises to its weight."""
    rate: Positive = 0.05
    """alpha, variance over squared mean, at the start; of dropping with probability p: p / (1 - p)."""
    layer_rates: tuple[tuple[str, Positive], ...] = ()
    """Pairs of a glob of weight names and their rate at the start; the last one that matches counts."""
    learn: bool = True
    """Whether rates are fitted; else they stay."""
    weights: tuple[str, ...] = ("*",)
    """Globs of the weights with noise, among those of linear layers and convolutions."""
    training: NoisyTraining = NoisyTraining()
    """Of weights and rates, from the weights of the point estimate."""
    num_draws: int = Field(32, gt=0)
    """Draws that are stored for prediction."""
    more_draws: tuple[int, ...] = ()
    """Numbers that the draws were raised to later, by `afterfit extend --more-draws`; none is made again."""
    seed: int = 0
    """Names the noise of the stored draws; that of training is named by `training.seed`."""

    def check(self, num_examples: int, num_outputs: int) -> None:
        """Refuse what has no meaning together.

        Raises:
            ConfigError: with the remedy.
        """
        if self.noise != "independent":
            if self.sharing == "weight":
                raise ConfigError(f"Noise that is {self.noise} is of input units; set `sharing` to unit or layer.")
            if self.parametrisation == "additive":
                raise ConfigError(f"Noise that is {self.noise} multiplies; set `parametrisation` to multiplicative.")
            if self.kl == "proper_prior":
                raise ConfigError(
                    f"Noise that is {self.noise} leaves weights no density of their own; set `kl` to molchanov."
                )
        if self.noise == "bernoulli" and self.learn:
            raise ConfigError("The rates of bernoulli noise cannot be fitted; set `learn: false`.")
        highest = max(self.rate, *(rate for _, rate in self.layer_rates), 0.0)
        if self.kl == "kingma" and (highest > 1 or self._choices.is_additive):
            raise ConfigError(
                "`kl: kingma` holds for rates up to 1; lower them and set `parametrisation` to multiplicative, or set "
                "`kl` to molchanov."
            )
        if highest > math.exp(LIMIT):
            raise ConfigError(f"A rate is {highest:g}; from {math.exp(LIMIT):.0f} on weights are drowned: lower it.")

    def check_network(self, network: Network, examples: Examples, micro_batch: int) -> None:
        """Refuse what the fit would refuse.

        Raises:
            ConfigError: for globs that choose nothing, or noise on weights that are not trained.
            NetworkError: for layers that are checkpointed, or a network in float16.
        """
        WeightNoise(self._fit(Categorical()), network, first_inputs(examples, micro_batch), 1)

    def stages(self, likelihood: Likelihood, outline: Outline) -> Mapping[str, Declaration]:
        """The fit, and draws by chunks."""
        if isinstance(likelihood, Gaussian) and likelihood.noise_variance is None:
            raise ConfigError(
                "Variational dropout needs the noise variance of a regression, since the residuals of a network that "
                "is not fitted yet do not tell it; set `likelihood.noise_variance`, in squared units of the target."
            )
        declared = {"variational": Declaration(recipe=self._fit(likelihood), data=("train",))}
        for chunk in chunked(self.num_draws, self.more_draws, draws_together(outline, "auto")):
            recipe = DropoutDraws(chunk.start, len(chunk), self.seed, self._choices)
            declared[f"draws-{chunk.start:05d}"] = Declaration(recipe=recipe, inputs={"fitted": "variational"})
        return declared

    def _fit(self, likelihood: Likelihood) -> DropoutFit:
        return DropoutFit(
            settings=self.training,
            likelihood=likelihood,
            choices=self._choices,
            weights=self.weights,
            estimator=self.estimator,
            rate=self.rate,
            rates=self.layer_rates,
            is_fitted=self.learn,
            price=self.kl_weight,
            warm_up=self.warm_up,
        )

    @property
    def _choices(self) -> NoiseChoices:
        is_additive = self.parametrisation == "additive"
        return NoiseChoices(
            noise=self.noise,
            sharing=self.sharing,
            is_additive=is_additive or (self.parametrisation == "auto" and self.noise == "independent"),
            divergence=self.kl,
            prior_precision=self.prior_precision,
        )
