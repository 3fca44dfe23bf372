"""What a recipe finds on the worker it runs on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

from afterfit.algebra import Artifact, Examples, Reducer, Rounds, Steps, Task, Unit
from afterfit.arithmetic import Arithmetic
from afterfit.layout import Layout, Tile
from afterfit.network.functional import Network
from afterfit.network.likelihoods import Gaussian, Likelihood
from afterfit.resources import GB


class Outline(Protocol):
    """What is known of a fit without loading its weights; the driver plans units from it."""

    @property
    def layout(self) -> Layout:
        """Of the chosen weights."""
        ...

    @property
    def num_outputs(self) -> int:
        """C."""
        ...

    @property
    def memory_gb(self) -> float:
        """Budget of one worker for what is explicit at once."""
        ...

    @property
    def micro_batch(self) -> int:
        """Examples of a micro-batch, a pure function of layout, outputs and memory."""
        ...

    @property
    def forward_flops(self) -> float:
        """Of one example, counted."""
        ...

    @property
    def state_bytes(self) -> int:
        """Of one number of a sum over data: 8 where the network computes in float64, else 4."""
        ...

    def num_examples(self, role: str) -> int:
        """Length of the data set that plays `role` ("train", "validation", ...)."""
        ...

    def shards(self, role: str) -> Sequence[range]:
        """The fixed shard table of a data set: consecutive ranges of examples."""
        ...

    def input(self, role: str) -> Artifact:
        """The finished artifact of an input stage, by the role it plays for this recipe."""
        ...


class Workbench(Outline, Protocol):
    """An outline with the weights and the data at hand."""

    @property
    def network(self) -> Network:
        """The trained network, in eval mode, loaded once a worker."""
        ...

    @property
    def arithmetic(self) -> Arithmetic:
        """In which its rows are made."""
        ...

    def data(self, role: str) -> Examples:
        """The data set that plays `role`."""
        ...


class Recipe(Protocol):
    """A frozen record of choices that a stage is made from. Its fields and VERSION are the stage's key."""

    VERSION: ClassVar[int]  # raised when the numbers change
    verb: ClassVar[str]  # "map", "reduce" or "iterate": how the engine runs what `on` returns

    def units(self, outline: Outline) -> Sequence[Unit]:
        """The pieces of work, from sizes only."""
        ...

    def on(self, bench: Workbench) -> Task | Reducer | Rounds | Steps:
        """Bind the choices to a worker's network and data."""
        ...


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """A stage as a method declares it: what to run, on which other stages and data sets."""

    recipe: Recipe
    inputs: Mapping[str, str] = field(default_factory=dict)  # role for the recipe -> name of another stage
    data: Sequence[str] = ()  # roles of the data sets that it reads
    extended_by: Callable[[tuple[str, ...]], Recipe] | None = None
    """Of a sum over "train": from the roles of the first sum and of those over data added later, to their union."""


def shard_units(outline: Outline, role: str) -> list[Unit]:
    """One unit for each shard of a data set."""
    return [
        Unit(f"shard-{number:05d}", {"start": shard.start, "stop": shard.stop}, cost=len(shard))
        for number, shard in enumerate(outline.shards(role))
    ]


def tile_units(outline: Outline, num_columns: int, share: float, **details: Any) -> list[Unit]:
    """One unit for each group of tiles, whole sub-trees of the sum over tiles.

    Args:
        outline: of the fit.
        num_columns: numbers held for each weight of a group, in the dtype of sums over data.
        share: part of `memory_gb` for one group.
        details: further ones, the same for every unit.
    """
    groups = outline.layout.groups(num_columns * outline.state_bytes, share * outline.memory_gb * GB)
    return [Unit(f"tiles-{group[0].name}", {"tiles": [tile.name for tile in group], **details}) for group in groups]


def tiles_of(layout: Layout, unit: Unit) -> list[Tile]:
    """The tiles of such a unit, or of one made from it."""
    wanted = set(unit.details["tiles"])
    return [tile for tile in layout if tile.name in wanted]


def bound_likelihood(likelihood: Likelihood, outline: Outline) -> Likelihood:
    """The likelihood with its noise known: a Gaussian's unknown variance is the artifact that plays `noise`."""
    if isinstance(likelihood, Gaussian) and likelihood.noise_variance is None:
        return replace(likelihood, noise_variance=float(outline.input("noise").facts["noise_variance"]))
    return likelihood
