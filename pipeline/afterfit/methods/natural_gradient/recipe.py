"""The choices of a natural-gradient fit, as its stage's key."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from afterfit.algebra import Unit
from afterfit.layout import MAX_TILES, Layout, Tile, of_last_match
from afterfit.network.likelihoods import Gaussian, Likelihood
from afterfit.network.workbench import Outline, Workbench
from afterfit.training.epochs import Epochs

if TYPE_CHECKING:
    from afterfit.methods.natural_gradient.steps import NaturalGradientSteps

Truncation = Literal["exact", "randomised"]


@dataclass(frozen=True, kw_only=True)
class NaturalGradient:
    """Fits q = N(mean, (U U^T + D)^-1) by natural-gradient steps, from the network's weights.

    Leaves behind `factor` (P_tile, L) and `diagonal` (P_tile,) by tiles; the mean as weights that a network loads, see
    `trained_state`; facts elbo (nats an example), log_det_precision, entropy, smallest_diagonal; the table `progress`.

    Cost of a step, in multiplications and additions, for M examples of T positions and S draws: 3 P M S T of the
    passes; 2 P (L + M S) L of the truncation; 3 P L^2 of Grams. A worker holds P (L + 3) / W numbers, a model, and the
    rows of its slices.

    Source: Mishkin, Kunstner, Nielsen, Schmidt, Khan (2018), arXiv:1811.04504.
    """

    VERSION: ClassVar[int] = 2
    verb: ClassVar[str] = "iterate"

    likelihood: Likelihood
    rank: int
    draws_per_step: int = 1
    batch_size: int = 64
    epochs: int = 10
    learning_rate: float = 0.01
    precision_rate: float = 0.01
    decay: float = 0.0
    momentum: float = 0.9
    initial_precision: float = 1.0
    prior_precision: float = 1.0
    group_precisions: tuple[tuple[str, float], ...] = ()
    noise_ramp: float | None = None
    temperature: float = 1.0
    has_start: bool = False  # a basis and the data's curvature in it
    truncation: Truncation = "exact"
    num_slices: int = 1
    seed: int = 0

    def units(self, outline: Outline) -> Sequence[Unit]:
        """None: a gang cuts steps into slices, and weights into as many shards."""
        return []

    def on(self, bench: Workbench) -> "NaturalGradientSteps":
        """Needs the network and the training data; maybe the basis and curvature to start from."""
        from afterfit.methods.natural_gradient.steps import NaturalGradientSteps

        return NaturalGradientSteps(self, bench)

    def schedule(self, num_examples: int) -> Epochs:
        """The minibatches."""
        return Epochs(num_examples, self.batch_size, self.epochs, self.seed)

    def decayed(self, rate: float, step: int) -> float:
        """A step size, over 1 + t^decay."""
        return rate / (1 + step**self.decay) if self.decay else rate

    def at(self, step: int, num_steps: int) -> Likelihood:
        """The likelihood at a step: the noise precision rises geometrically to its own over the first half.

        A noise precision that is high from the start freezes the mean, since steps are short where precision is high.
        """
        likelihood = self.likelihood
        if self.noise_ramp is None or not isinstance(likelihood, Gaussian):
            return likelihood
        share = min(1.0, 2 * step / num_steps)
        return Gaussian((1 / self.noise_ramp) ** (1 - share) * likelihood.variance**share)


@dataclass(frozen=True)
class Shards:
    """The tiles cut into as many runs as there are slices, about equally long."""

    layout: Layout
    num_shards: int

    @cached_property
    def runs(self) -> list[list[Tile]]:
        """A tile is where its middle is."""
        runs: list[list[Tile]] = [[] for _ in range(self.num_shards)]
        for tile in self.layout.tiles:
            middle = tile.offset + tile.size // 2
            runs[middle * self.num_shards // self.layout.num_weights].append(tile)
        return runs

    @cached_property
    def owners(self) -> dict[str, int]:
        """Name of a tile -> number of its shard."""
        return {tile.name: number for number, run in enumerate(self.runs) for tile in run}


@lru_cache(maxsize=MAX_TILES)
def prior_of(recipe: NaturalGradient, tile: Tile, dtype: torch.dtype) -> Tensor:
    """Prior precision of the weights of a tile, (P_tile,), or () where all have the same.

    That of the last group whose glob the block's name matches.
    """
    precisions = [of_last_match(recipe.group_precisions, piece.block, recipe.prior_precision) for piece in tile.pieces]
    if len(set(precisions)) == 1:
        return torch.tensor(precisions[0], dtype=dtype)
    pieces = zip(tile.pieces, precisions, strict=True)
    return torch.cat([torch.full((piece.size,), precision, dtype=dtype) for piece, precision in pieces])
