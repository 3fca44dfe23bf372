"""How far along the draws: the standard deviation that posterior displacements have along each of them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from afterfit.algebra import Batch, Cursor, Progress, Result, State, Stop, Unit, largest
from afterfit.errors import ConfigError
from afterfit.methods.projection.draws import column_norms, scalar
from afterfit.methods.projection.passes import fold_shard
from afterfit.methods.projection.protected import OverProtected
from afterfit.methods.projection.unit_rows import ProtectedRows
from afterfit.network.likelihoods import Likelihood
from afterfit.network.moved import moved_weights
from afterfit.network.workbench import Workbench
from afterfit.precision import CORE

Rule = Literal["loss_change", "validation", "evidence"]

NUM_DRAWS = 4
"""Of the first chunk, that are looked at."""
START = 0.2
"""|displacement| / |theta| at which the search begins."""
CLOSE = 0.9
"""A loss change of at least this part of the one allowed ends the search."""
MAX_ROUNDS = 12
GRID, GRID_STEP = (-16, 9), 2**0.5
"""Powers of the step, times the start of the search: |displacement| / |theta| from .0008 to 3.2."""


@dataclass(frozen=True)
class Scale(OverProtected):
    """The standard deviation of displacements along the draws, and the largest loss change there.

    `loss_change`: the largest found at which no protected example's loss changes by more than `target` nats in the
    plain network, for any of the first draws; that change grows with the square of the scale. It is at most the scale
    of `evidence`: |theta| / sqrt(rank), which maximises the linearised evidence and is far too wide for the plain
    network. `validation`: the best of a grid by the NLL of linearised predictions. A number is taken as it is. All
    rules but the first are measured in one round.

    Facts: scale, largest_loss_change (nats), relative_length (|displacement| / |theta|), rule.
    Cost: a forward pass over the protected examples for each of four draws, and one more, in each of about five rounds.
    Source: Miani, Roy, Hauberg (2024), arXiv:2410.16901; its closed form is misprinted as the reciprocal.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "iterate"

    rule: Rule | float
    target: float = 0.1

    def on(self, bench: Workbench) -> "_ScaleRounds":
        """Needs the network, the training data and the first chunk of draws; maybe validation features."""
        return _ScaleRounds(self, bench)


@dataclass(frozen=True)
class _ScaleRounds:
    recipe: Scale
    bench: Workbench

    def init(self) -> State:
        start = {
            "loss_change": lambda: min(self._start(), self._evidence()),
            "evidence": self._evidence,
            "validation": self._validation,
        }
        rule = self.recipe.rule
        return _state(start[rule]() if isinstance(rule, str) else rule)

    def _start(self) -> float:
        return START * self._theta / self._length

    def _evidence(self) -> float:
        rank = self.bench.input("draws").facts["rank"]
        return self._theta / math.sqrt(max(rank, 1))

    def _validation(self) -> float:
        """The best of a geometric grid by the NLL (nats) of linearised predictions, the draws averaged out."""
        features, likelihood = self.bench.input("validation"), self.rows.bound.likelihood
        if "target" not in features.families:
            raise ConfigError("The validation data have no targets; name their `label` or `target` column.")
        mean_NC, moved_NCS, targets = (features.tensor(name) for name in ("mean", "features", "target"))
        tried = {}
        for power in range(*GRID):
            scale = self._start() * GRID_STEP**power
            tried[scale] = mean_nll(likelihood, mean_NC, scale * moved_NCS, targets)
        return min(tried, key=lambda scale: tried[scale])

    @cached_property
    def _theta(self) -> float:
        return math.sqrt(self.bench.network.squared_norm)

    @cached_property
    def _length(self) -> float:
        """|d| of the longest draw that is looked at."""
        return float(column_norms(self._draws).max())

    @cached_property
    def _draws(self) -> Mapping[str, Tensor]:
        """The first few, (P_tile, j)."""
        tiles = self.bench.input("draws").tiles("draws")
        return {name: tile_Pk[:, :NUM_DRAWS].clone() for name, tile_Pk in tiles.items()}

    def leaf(self, state: State, unit: Unit, cursor: Cursor) -> State:
        return fold_shard(_LossChange(self, float(state["scale/now"])), self.rows, unit, cursor)

    @cached_property
    def rows(self) -> ProtectedRows:
        return ProtectedRows(self.recipe.protected, self.bench, has_lengths=False)

    def moved(self, scale: float) -> Sequence[Mapping[str, Tensor]]:
        """The weights displaced along each draw that is looked at."""
        network = self.bench.network
        return [moved_weights(network, self._draws, number, scale) for number in range(self.num_draws)]

    @property
    def num_draws(self) -> int:
        return next(iter(self._draws.values())).shape[1]

    def merge(self, left: State, right: State) -> State:
        return largest(left, right)

    def advance(self, state: State, total: State) -> tuple[State, Progress]:
        now, change = float(state["scale/now"]), float(total["change/largest"].max())
        figures = {"scale": now, "largest_loss_change": change}
        if self.recipe.rule != "loss_change":
            return _state(now, low=now, change=change), Progress(Stop.FINISHED, figures)
        low, high, best = (float(state[f"scale/{name}"]) for name in ("low", "high", "change"))
        number = int(state["scale/round"]) + 1
        if change <= self.recipe.target:
            low, best = now, change
        else:
            high = now
        is_close = best >= CLOSE * self.recipe.target or high <= 1.02 * low or low >= self._evidence()
        stop = Stop.CONVERGED if is_close else Stop.BUDGET if number >= MAX_ROUNDS and low > 0 else None
        after = now if stop else min(_next(now, change, self.recipe.target, low, high), self._evidence())
        return _state(after, low, high, best, number), Progress(stop, figures)

    def finalise(self, state: State) -> Result:
        scale = float(state["scale/low"])
        rule = self.recipe.rule
        facts = {
            "scale": scale,
            "largest_loss_change": float(state["scale/change"]),
            "relative_length": scale * self._length / self._theta,
            "rule": rule if isinstance(rule, str) else "given",
            "notes": list(self._notes(scale)),
        }
        return Result(facts=facts)

    def _notes(self, scale: float) -> Iterator[str]:
        ends = [self._start() * GRID_STEP**power for power in (GRID[0], GRID[1] - 1)]
        if self.recipe.rule == "loss_change" and scale >= self._evidence():
            yield (
                f"At the scale that maximises the linearised evidence, {scale:.2g}, no protected loss changes by "
                f"{self.recipe.target:g} nats yet; the draws are no longer than that."
            )
        if self.recipe.rule == "validation" and not ends[0] * 1.01 < scale < ends[1] / 1.01:
            end = "smallest" if scale < ends[1] / 2 else "largest"
            yield f"Validation chose the {end} scale that was tried, {scale:.2g}: the data say little about it."


def _next(now: float, change: float, target: float, low: float, high: float) -> float:
    """Where the square law puts the target, inside the bracket; its middle where that would not halve the bracket."""
    guess = now * math.sqrt(0.95 * target / change) if 0 < change < math.inf else now * (4.0 if change == 0 else 0.25)
    guess = min(max(guess, now / 10), now * 10)
    if low > 0 and high < math.inf:
        middle = math.sqrt(low * high)
        return guess if low * 1.01 < guess < high / 1.01 else middle
    return guess


def _state(now: float, low: float = 0.0, high: float = math.inf, change: float = 0.0, number: int = 0) -> State:
    values = {"now": now, "low": low, "high": high, "change": change}
    return {f"scale/{name}": scalar(value) for name, value in values.items()} | {"scale/round": torch.tensor(number)}


def mean_nll(likelihood: Likelihood, mean_NC: Tensor, moved_NCS: Tensor, targets: Tensor) -> float:
    """NLL (nats an example) of the mixture over draws: -log mean_s p(y | mean + moved_s), never a mean of logs."""
    densities = [likelihood.log_density(mean_NC + moved_NC, targets).to(CORE) for moved_NC in moved_NCS.unbind(2)]
    mixed_N = torch.stack(densities).logsumexp(dim=0) - math.log(len(densities))
    value = -float(mixed_N.mean())
    return value if math.isfinite(value) else math.inf


@dataclass(frozen=True)
class _LossChange:
    """Accumulates the largest |loss at displaced weights - loss| of each draw, in nats; not a number is infinite."""

    rounds: _ScaleRounds
    scale: float

    @cached_property
    def _moved(self) -> Sequence[Mapping[str, Tensor]]:
        return self.rounds.moved(self.scale)

    def init(self) -> State:
        return {"change/largest": torch.zeros(self.rounds.num_draws, dtype=CORE)}

    def accumulate(self, state: State, batch: Batch) -> State:
        network, losses = self.rounds.bench.network, self.rounds.rows.bound.losses
        with torch.no_grad():
            before_B = losses(network(batch.inputs).to(CORE), batch)
            after = [losses(network(batch.inputs, weights).to(CORE), batch) for weights in self._moved]
        change_j = torch.stack([(after_B - before_B).abs().max() for after_B in after]).cpu()
        return largest(state, {"change/largest": change_j.nan_to_num(math.inf, math.inf)})

    def merge(self, left: State, right: State) -> State:
        return largest(left, right)
