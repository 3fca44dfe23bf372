"""SLANG: a Gaussian with a low-rank plus diagonal precision, fitted by natural-gradient steps through the network."""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from afterfit.errors import ConfigError
from afterfit.frozen import Frozen, Positive
from afterfit.methods.ella import Ella
from afterfit.methods.ggn_nystrom import leading_ggn
from afterfit.methods.natural_gradient.recipe import NaturalGradient
from afterfit.methods.natural_gradient.sampled import GaussianDraws
from afterfit.methods.projection.chunk import chunked
from afterfit.methods.projection.problem import draws_together
from afterfit.network.likelihoods import Gaussian, Likelihood
from afterfit.network.workbench import Declaration, Outline
from afterfit.training.epochs import Epochs

LANDMARKS = 10
"""Rows of the NTK to start from, for each of its features."""
BIASES = (("*bias", 1e-6),)


class Slang(Frozen):
    """q = N(mean, (U U^T + D)^-1), U of L columns, by natural-gradient steps on the variational objective.

    Source: Mishkin, Kunstner, Nielsen, Schmidt, Khan (2018), arXiv:1811.04504, with the exact truncation of the
    low-rank part, and draws that are exact for any U.
    """

    name: Literal["slang"] = "slang"
    posterior: ClassVar[Literal["subspace", "draws", "queries"]] = "draws"
    narrower: ClassVar[str] = "raise `method.prior_precision`"
    scale: ClassVar[float] = 1.0  # draws are displacements as they are
    loss: ClassVar[None] = None
    rank: int = Field(5, gt=0)
    """L: columns of U."""
    draws_per_step: int = Field(1, gt=0)
    """S: draws of the weights at which the gradients of a minibatch are taken."""
    batch_size: int = Field(32, gt=0)
    """M: examples of a step, at most: an epoch is cut into the fewest such batches, as even as possible."""
    epochs: int = Field(10, gt=0)
    """Passes over the training data."""
    learning_rate: Positive = 0.01
    """Step size of the mean; above .05 the precision may collapse, unless `precision_rate` is lower."""
    precision_rate: Positive | Literal["as mean"] = "as mean"
    """Step size of the precision, below 1. From a high initial precision a low one trains as gradient descent does."""
    decay: NonNegativeFloat = 0.0
    """Both step sizes are divided by 1 + t^decay at step t; 0 leaves them as they are."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of the data's gradient only."""
    initial_precision: Positive = 1.0
    """D before the first step; below 1 the steps may be too long."""
    prior_precision: Positive = 1.0
    """Of the weights that `group_precisions` does not name."""
    group_precisions: tuple[tuple[str, Positive], ...] = BIASES
    """Pairs of a glob of weight names and their prior precision; the last one that matches counts."""
    noise_ramp: Positive | None = None
    """Noise precision of a regression at the first step; it rises to its own over the first half of the steps. One that
    is high from the start freezes the mean."""
    temperature: Positive = 1.0
    """T divides the data's log density."""
    start: Literal["network", "ggn_nystrom", "ella"] = "network"
    """`network`: its weights, with U = 0; the others add the GGN's leading eigenvectors there, by the method of that
    name."""
    truncation: Literal["exact", "randomised"] = "exact"
    """`exact`: by the Gram of U and all gradients; `randomised`: by random columns, for steps of very many rows."""
    num_slices: int = Field(1, gt=0)
    """Parts of a step, and of the weights, that up to so many workers share. Fixes the order of addition."""
    num_draws: int = Field(32, gt=0)
    """Draws that are stored for prediction."""
    more_draws: tuple[int, ...] = ()
    """Numbers that the draws were raised to later, by `afterfit extend --more-draws`; none is made again."""
    seed: int = 0
    """Names the noise and the order of the examples."""

    def check(self, num_examples: int, num_outputs: int) -> None:
        """Slices need examples, and a step of the precision keeps some of it.

        Raises:
            ConfigError: with the remedy.
        """
        if not isinstance(self.precision_rate, str) and self.precision_rate >= 1:
            raise ConfigError(f"`precision_rate` is {self.precision_rate:g}; a step must keep some precision: below 1.")
        if self.rates[1] >= 1:
            raise ConfigError(f"`learning_rate` is {self.learning_rate:g}; set `precision_rate` below 1.")
        if self.start == "ella" and self.rank > num_examples * num_outputs:
            raise ConfigError(
                f"`rank` is {self.rank}, above the {num_examples * num_outputs} outputs of all training examples, "
                "which `start: ella` takes its columns from; lower it."
            )
        smallest = Epochs(num_examples, self.batch_size, self.epochs, self.seed).smallest_batch
        if smallest * self.draws_per_step < self.num_slices:
            raise ConfigError(
                f"A step of {smallest} examples at {self.draws_per_step} draws cannot be cut into {self.num_slices} "
                "slices; lower `num_slices`, or raise `batch_size` or `draws_per_step`."
            )

    @property
    def num_cotangents(self) -> int | None:
        """The gradient of an example's loss; those of the GGN that a fit may start from."""
        return 1 if self.start == "network" else None

    @property
    def rates(self) -> tuple[float, float]:
        """Step sizes of the mean and of the precision."""
        precision = self.learning_rate if isinstance(self.precision_rate, str) else self.precision_rate
        return self.learning_rate, precision

    def stages(self, likelihood: Likelihood, outline: Outline) -> Mapping[str, Declaration]:
        """The fit, after what it starts from, and draws by chunks."""
        self._check_meaning(likelihood, outline)
        declared = self._before(likelihood, outline)
        inputs = {role: role for role in ("basis", "curvature") if role in declared}
        declared["variational"] = Declaration(recipe=self._fit(likelihood), inputs=inputs, data=("train",))
        for chunk in chunked(self.num_draws, self.more_draws, draws_together(outline, "auto")):
            recipe = GaussianDraws(chunk.start, len(chunk), self.seed)
            declared[f"draws-{chunk.start:05d}"] = Declaration(recipe=recipe, inputs={"fitted": "variational"})
        return declared

    def _check_meaning(self, likelihood: Likelihood, outline: Outline) -> None:
        """Noise has to be known, and every glob has to name something."""
        if not isinstance(likelihood, Gaussian):
            if self.noise_ramp is not None:
                raise ConfigError(f"The {likelihood.name} likelihood has no noise; remove `method.noise_ramp`.")
        elif likelihood.noise_variance is None and self.start == "network":
            raise ConfigError(
                "SLANG needs the noise variance of a regression, since the residuals of a network that is not fitted "
                "yet do not tell it; set `likelihood.noise_variance`, in squared units of the target."
            )
        names = [block.name for block in outline.layout.blocks]
        for glob, _ in self.group_precisions if self.group_precisions != BIASES else ():
            if not any(fnmatchcase(name, glob) for name in names):
                raise ConfigError(
                    f"The pattern {glob!r} in `group_precisions` chooses no weights; they are named like "
                    f"{', '.join(names[:3])}."
                )

    def _before(self, likelihood: Likelihood, outline: Outline) -> dict[str, Declaration]:
        """Leading eigenvectors of the GGN, where the fit starts from them."""
        if self.start == "network":
            return {}
        if self.start == "ggn_nystrom":
            return dict(leading_ggn(likelihood, self.rank, self.seed, outline))
        num_rows = min(LANDMARKS * self.rank, outline.num_examples("train") * outline.num_outputs)
        method = Ella(num_landmarks=num_rows, num_features=self.rank, seed=self.seed)
        return {name: replace(each, extended_by=None) for name, each in method.stages(likelihood, outline).items()}

    def _fit(self, likelihood: Likelihood) -> NaturalGradient:
        mean_rate, precision_rate = self.rates
        return NaturalGradient(
            likelihood=likelihood,
            rank=self.rank,
            draws_per_step=self.draws_per_step,
            batch_size=self.batch_size,
            epochs=self.epochs,
            learning_rate=mean_rate,
            precision_rate=precision_rate,
            decay=self.decay,
            momentum=self.momentum,
            initial_precision=self.initial_precision,
            prior_precision=self.prior_precision,
            group_precisions=self.group_precisions,
            noise_ramp=self.noise_ramp,
            temperature=self.temperature,
            has_start=self.start != "network",
            truncation=self.truncation,
            num_slices=self.num_slices,
            seed=self.seed,
        )
