"""A method whose stored draws are normal noise named by tile and number: what follows draws is tested with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from afterfit.algebra import Cursor, Result, Unit
from afterfit.frozen import Frozen, Positive
from afterfit.network.likelihoods import Likelihood
from afterfit.network.workbench import Declaration, Outline, Workbench
from afterfit.seeds import Seed, normals

CHUNK = 3
SCALE_BY_VALIDATION = 0.25
CERTIFIED = {"isotropic": 2e-2, "num_rows": 5, "rank": 5, "cut_off": 1e-12}


class ToyDraws(Frozen):
    """Isotropic noise.

    Source: none.
    """

    posterior: ClassVar[Literal["subspace", "draws"]] = "draws"
    narrower: ClassVar[str] = "lower `method.scale`"
    name: Literal["toy_draws"] = "toy_draws"
    num_draws: int = 6
    """S."""
    loss: None = None
    """The likelihood's."""
    more_draws: tuple[int, ...] = ()
    """Raised to."""
    scale: Positive | Literal["validation"] = 0.1
    """Standard deviation."""
    seed: int = 0
    """Names the noise."""

    def check(self, num_examples: int, num_outputs: int) -> None:
        """Any data do."""

    def stages(self, likelihood: Likelihood, outline: Outline) -> Mapping[str, Declaration]:
        """Chunks of `CHUNK` draws, with their certificates, and the scale."""
        declared: dict[str, Declaration] = {}
        total = max((self.num_draws, *self.more_draws))
        for first in range(0, total, CHUNK):
            chunk = f"{first:05d}"
            recipe = ToyNoise(first, min(CHUNK, total - first), self.seed)
            declared[f"draws-{chunk}"] = Declaration(recipe=recipe)
            declared[f"certificate-{chunk}"] = Declaration(
                recipe=ToyCertificate((first + 1) * 1e-8), inputs={"draws": f"draws-{chunk}"}
            )
        validated = {"validation": "features-validation-00000"} if self.scale == "validation" else {}
        declared["scale"] = Declaration(recipe=ToyScale(self.scale), inputs={"draws": "draws-00000", **validated})
        return declared


def noise(seed: int, tile: str, size: int, number: int) -> torch.Tensor:
    """One tile (P_tile,) of a draw, in float64."""
    return normals(Seed(seed, ("toy", tile)).child(number), size, dtype=torch.float64)


@dataclass(frozen=True)
class ToyNoise:
    """`draws` by tiles."""

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    first: int
    num: int
    seed: int

    def units(self, outline: Outline) -> Sequence[Unit]:
        """Tiles."""
        return [Unit(tile.name, {"size": tile.size}) for tile in outline.layout]

    def on(self, bench: Workbench) -> "_Noise":
        """Needs sizes only."""
        return _Noise(self, torch.float64 if bench.state_bytes == 8 else torch.float32)


@dataclass(frozen=True)
class _Noise:
    recipe: ToyNoise
    dtype: torch.dtype

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        numbers = range(self.recipe.first, self.recipe.first + self.recipe.num)
        columns = [noise(self.recipe.seed, unit.name, unit.details["size"], number) for number in numbers]
        facts = {"first": self.recipe.first, "num": self.recipe.num, "solver": "toy", "residual": 0.0, "passes": 0.0}
        return Result(
            tensors={"draws": [(unit.name, torch.stack(columns, dim=1).to(self.dtype))]},
            facts={**facts, "rank": 5, "rank_is_bound": False, "cut_off": 1e-12},
        )


@dataclass(frozen=True)
class ToyCertificate:
    """Made up."""

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    residual: float

    def units(self, outline: Outline) -> Sequence[Unit]:
        """One."""
        return [Unit("all")]

    def on(self, bench: Workbench) -> "_Facts":
        """Needs nothing."""
        return _Facts({"residual": self.residual, **CERTIFIED})


@dataclass(frozen=True)
class ToyScale:
    """As asked for; by validation, `SCALE_BY_VALIDATION` once the features are there."""

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    asked: float | str

    def units(self, outline: Outline) -> Sequence[Unit]:
        """One."""
        return [Unit("all")]

    def on(self, bench: Workbench) -> "_Facts":
        """Needs the features of the validation data if it is chosen by them."""
        scale = float(self.asked) if self.asked != "validation" else SCALE_BY_VALIDATION
        if self.asked == "validation":
            assert bench.input("validation").tensor("features").shape[2] <= CHUNK
        return _Facts({"scale": scale, "largest_loss_change": 0.05, "relative_length": 0.3, "rule": str(self.asked)})


@dataclass(frozen=True)
class _Facts:
    facts: Mapping[str, Any]

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        return Result(facts=self.facts)
