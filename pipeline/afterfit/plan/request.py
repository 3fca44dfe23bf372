"""What is asked for, resolved: the same record from a configuration file and from Python."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, runtime_checkable

from afterfit.algebra import Examples
from afterfit.arithmetic import PLAIN, Arithmetic
from afterfit.errors import ConfigError
from afterfit.layout import Layout
from afterfit.methods.queries.amortised import AmortisedVariances
from afterfit.methods.queries.covariance import QueryCovariances
from afterfit.methods.queries.plateau import Plateau
from afterfit.network.functional import Network
from afterfit.network.likelihoods import Likelihood
from afterfit.network.workbench import Declaration, Outline, Recipe
from afterfit.plan.bench import BenchSpec, DataSource, NetworkSource
from afterfit.posterior.links import Link
from afterfit.posterior.subspace import Complement
from afterfit.rows.coverage import Coverage
from afterfit.rows.planning import micro_batch

PosteriorKind = Literal["subspace", "draws", "queries"]
"""What a method leaves behind: a Gaussian in a subspace of the weights, draws of the weights that are stored, or
covariances of the outputs that it was asked about."""

By = Literal["linearised", "network"]
"""What predicts under a draw: the network linearised at the trained weights, or the network with the draw's weights."""


class Method(Protocol):
    """A method of the table: choices, and the stages they make."""

    posterior: ClassVar[PosteriorKind]
    """What its stages end in, and so what follows them."""

    narrower: ClassVar[str]
    """How its posterior is made narrower, for people: "raise ..."."""

    @property
    def name(self) -> str:
        """Its name in the table."""
        ...

    def check(self, num_examples: int, num_outputs: int) -> None:
        """Refuse choices that the training data cannot meet, before any work.

        Raises:
            ConfigError: with the number that fits.
        """
        ...

    def stages(self, likelihood: Likelihood, outline: Outline) -> Mapping[str, Declaration]:
        """Its stages by name; the outline has no inputs yet."""
        ...


@runtime_checkable
class FewRows(Protocol):
    """A method whose stages may take fewer rows of an example than it has outputs, and so larger micro-batches."""

    @property
    def num_cotangents(self) -> int | None:
        """Of an example, at most; None: one for each output."""
        ...


@runtime_checkable
class Choosy(Protocol):
    """A method that does not fit every network."""

    def check_network(self, network: Network, examples: Examples, micro_batch: int) -> None:
        """Refuse one that it does not fit, before any work, by a pass over some examples.

        Raises:
            ConfigError: with the remedy.
        """
        ...


@runtime_checkable
class Telling(Protocol):
    """A method that has something to say under its plan."""

    def sentence(self, likelihood: Likelihood, outline: Outline) -> str:
        """For people, with what it chose and why; empty where there is nothing to say."""
        ...


class SubspaceMethod(Method, Protocol):
    """One whose stages end in `basis` and `curvature`."""

    @property
    def prior_precision(self) -> float | Literal["auto"]:
        """Inverse prior variance."""
        ...

    @property
    def temperature(self) -> float | Literal["auto"]:
        """T."""
        ...

    @property
    def data_fraction(self) -> float | Literal["auto"]:
        """Part of the data that is summed."""
        ...

    @property
    def complement(self) -> Complement:
        """What is outside the subspace."""
        ...

    @property
    def tuning(self) -> Literal["auto", "validation", "marginal_likelihood"]:
        """What chooses the other `auto`s."""
        ...


VARIATIONAL = "variational"
"""The stage of a Gaussian that was fitted with a mean of its own, which the posterior is around."""


def centre_of(stages: Container[str]) -> str:
    """The stage that leaves the weights which a posterior is around: a variational fit, else the point estimate."""
    return VARIATIONAL if VARIATIONAL in stages else "point_estimate"


class DrawsMethod(Method, Protocol):
    """One whose stages end in `draws-00000` and further chunks.

    Beside them stand a `certificate-` of each and `scale`; or `variational`, around whose mean the draws are, with a
    scale of one.
    """

    @property
    def num_draws(self) -> int:
        """S: draws that are stored, before more were added."""
        ...

    @property
    def loss(self) -> str | None:
        """Of the training data, in place of the likelihood's; then these need no targets."""
        ...

    @property
    def more_draws(self) -> tuple[int, ...]:
        """Numbers that they were raised to later; chunks that were there stay as they are."""
        ...

    @property
    def scale(self) -> float | str:
        """Standard deviation of the draws, or the rule that chooses it; `validation` reads the validation data."""
        ...


class QueryMethod(Method, Protocol):
    """One that finds covariances of single outputs, each by passes of its own; its stages end in leading eigenpairs."""

    @property
    def prior_precision(self) -> float | Literal["auto"]:
        """Inverse prior variance."""
        ...

    def plateau(self, likelihood: Likelihood) -> Plateau | None:
        """The stage that finds lambda, where it is not given."""
        ...

    def covariances(self, role: str, likelihood: Likelihood) -> QueryCovariances:
        """The stage that answers the queries of a data set, each by itself."""
        ...

    def variances(self, role: str, likelihood: Likelihood) -> AmortisedVariances | None:
        """In its place the one that answers all of them by a few refits, if that was asked for."""
        ...


def check_linearised(by: By) -> None:
    """Refuse the plain network where there are no draws to evaluate it at.

    Raises:
        ConfigError: for it.
    """
    if by == "network":
        raise ConfigError(
            "The plain network is evaluated at stored draws only, and this method's posterior is a Gaussian over "
            "outputs of the linearised network; set `prediction.by: linearised`."
        )


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """A fit, with everything opened and measured that its plan depends on."""

    network: NetworkSource
    training: Recipe  # how the point estimate is made
    layout: Layout
    num_outputs: int
    state_bytes: int
    likelihood: Likelihood
    method: Method
    data: Mapping[str, DataSource]  # "train", maybe "validation", and those to evaluate on
    in_distribution: tuple[str, ...] = ()  # roles that have targets
    out_of_distribution: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()  # roles that are answered whole by a method that answers for the first examples only
    extensions: tuple[str, ...] = ()  # roles of data added to "train" later
    link: Link = "monte_carlo"
    num_draws: int = 512
    by: By = "linearised"  # what predicts under stored draws
    memory_gb: float = 2.0
    micro_batch: int = 1
    has_auto_micro_batch: bool = True  # whether it follows from sizes and memory
    arithmetic: Arithmetic = PLAIN  # in which rows are made
    forward_flops: float = 0.0  # of one example
    coverage: Coverage | None = None  # of the tape's rules
    device: str | None = None  # that workers put the network on; never part of a key

    @property
    def evaluated(self) -> tuple[str, ...]:
        """Roles of the data that are predicted."""
        return (*self.in_distribution, *self.out_of_distribution)

    def with_memory(self, memory_gb: float) -> "FitRequest":
        """The same fit with another budget, and the micro-batch that follows from it, unless it was given."""
        numbers = self.coverage.gradient_numbers if self.coverage else 0
        fewer = self.method.num_cotangents if isinstance(self.method, FewRows) else None
        cotangents = fewer or self.num_outputs
        sizes = (self.layout, cotangents, memory_gb, self.state_bytes, numbers)
        size = micro_batch(*sizes) if self.has_auto_micro_batch else self.micro_batch
        return replace(self, memory_gb=memory_gb, micro_batch=size)

    def bench(self, store_uri: str, inputs: Mapping[str, str], roles: Mapping[str, str] | None = None) -> BenchSpec:
        """What the workers of one stage need; `roles` lets other data play a role for it."""
        return BenchSpec(
            store_uri=store_uri,
            network=self.network,
            data={**self.data, **{role: self.data[played] for role, played in (roles or {}).items()}},
            layout=self.layout,
            num_outputs=self.num_outputs,
            state_bytes=self.state_bytes,
            memory_gb=self.memory_gb,
            micro_batch=self.micro_batch,
            forward_flops=self.forward_flops,
            arithmetic=self.arithmetic,
            device=self.device,
            inputs=inputs,
        )
