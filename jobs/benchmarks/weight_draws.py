"""What draws of the weights do to a network and to its linearised outputs, measured without the method that made them.

Letters: P weights, N examples, C outputs, S draws. Draws are directions d as tiles (P_tile, S); `scale * d` displaces
the weights.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from afterfit.algebra import batches, micro_batches
from afterfit.layout import Layout
from afterfit.methods.projection.draws import column_norms
from afterfit.methods.projection.protected import Protected
from afterfit.network.functional import Network
from afterfit.plan.bench import Bench
from afterfit.precision import CORE
from afterfit.predict.linearised import linearise
from afterfit.predict.scores import auroc, ood_table, score_table
from afterfit.rows import row_backend
from afterfit.seeds import Seed, normals

Draws = Mapping[str, Tensor]

NEAR = 0.02
"""Relative precision of a scale."""
MAX_TRIES = 30
LARGEST_STEP = 8.0
"""By which a scale is multiplied or divided at most, while the limit lies on one side of all that was tried."""


class Linear(NamedTuple):
    """Outputs that are linear in the weights: mean + scale * moved, for each draw."""

    mean_NC: Tensor
    moved_NCS: Tensor  # J d
    targets: Tensor | None

    def probabilities(self, scale: float) -> Tensor:
        """(S, N, C)."""
        logits_NCS = self.mean_NC[..., None].to(CORE) + scale * self.moved_NCS.to(CORE)
        return logits_NCS.softmax(dim=1).permute(2, 0, 1)

    def accuracy(self, scale: float) -> float:
        """Of one draw, mean over draws."""
        assert self.targets is not None
        drawn_NCS = self.mean_NC[..., None] + scale * self.moved_NCS
        return float((drawn_NCS.argmax(dim=1) == self.targets[:, None]).to(CORE).mean())


def isotropic(layout: Layout, num: int, seed: int = 0) -> dict[str, Tensor]:
    """Standard normal noise of every weight, each draw about sqrt(P) long."""
    place = Seed(seed, ("isotropic",))
    return {tile.name: normals(place.child(tile.name), tile.size, num) for tile in layout}


def weights_length(network: Network) -> float:
    """|theta| of the chosen weights."""
    return math.sqrt(network.squared_norm)


def linear_outputs(bench: Bench, role: str, draws: Draws, indexes: Sequence[int] | None = None) -> Linear:
    """Outputs and J d of a data set, or of some of its examples, in the data's order.

    Cost: one pass of rows; N C S numbers.
    """
    data = bench.data(role)
    wanted = range(data.num_examples) if indexes is None else indexes
    backend = row_backend(bench.network, bench.memory_gb, bench.arithmetic)
    mean, moved, places, targets = [], [], [], []
    for batch in batches(data, micro_batches(data, wanted, bench.micro_batch)):
        made = linearise(backend, batch, draws, with_kernel=False)
        mean.append(made.mean_BC.cpu())
        moved.append(made.features_BCK.cpu())
        places.append(batch.indexes)
        if batch.targets is not None:
            targets.append(batch.targets)
    order_N = torch.cat(places).argsort()
    known = torch.cat(targets)[order_N] if targets else None
    return Linear(torch.cat(mean)[order_N], torch.cat(moved)[order_N], known)


def scores(inside: Linear, outside: Linear, scale: float) -> dict[str, float]:
    """NLL and ECE of the mean softmax over draws; OOD AUROC by the variance of the softmax, summed over classes."""
    assert inside.targets is not None
    near_SNC, far_SNC = inside.probabilities(scale), outside.probabilities(scale)
    table = score_table(near_SNC.mean(dim=0), inside.targets)
    return {"nll": table["nll"], "ece": table["ece"], "ood_auroc": auroc(_spread(far_SNC), _spread(near_SNC))}


def point_scores(inside: Linear, outside: Linear) -> dict[str, float]:
    """The same of the network alone, which has no draws: OOD AUROC by the entropy."""
    assert inside.targets is not None
    near_NC, far_NC = (part.mean_NC.to(CORE).softmax(dim=1) for part in (inside, outside))
    table = score_table(near_NC, inside.targets)
    return {"nll": table["nll"], "ece": table["ece"], "ood_auroc": ood_table(near_NC, far_NC)["ood_auroc_entropy"]}


def _spread(probabilities_SNC: Tensor) -> Tensor:
    return probabilities_SNC.var(dim=0, correction=0).sum(dim=1)


class PlainLosses:
    """Losses of the protected examples in the plain network, at its weights and at displaced ones."""

    def __init__(self, bench: Bench, protected: Protected, draws: Draws, num_looked: int):
        data = bench.data("train")
        indexes = protected.indexes(bench, 0, data.num_examples)
        planned = micro_batches(data, indexes, bench.micro_batch)
        self.protected = protected
        self.network = bench.network
        self.looked = {name: tile_PS[:, :num_looked] for name, tile_PS in draws.items()}
        self._directions = bench.layout.assemble(self.looked)
        self._batches = list(batches(data, planned))
        self._trained = self._losses({})

    def largest_change(self, scale: float) -> float:
        """Of one example's loss by one draw, up or down, in nats; infinite where a loss is not finite.

        Cost: a forward pass over the protected examples for each draw that is looked at.
        """
        changes = []
        for draw in range(next(iter(self.looked.values())).shape[1]):
            moved = {name: scale * direction[..., draw] for name, direction in self._directions.items()}
            weights = {name: self.network.weights[name] + moved[name] for name in moved}
            changes.append((self._losses(weights) - self._trained).abs().max())
        largest = float(torch.stack(changes).max())
        return largest if math.isfinite(largest) else math.inf

    def relative_length(self, scale: float) -> float:
        """|scale * d| / |theta|, mean over the draws that are looked at."""
        return scale * float(column_norms(self.looked).mean()) / weights_length(self.network)

    def slope(self, first: float, last: float, num: int = 5) -> float:
        """Log-log slope of the largest change against the relative length of the displacement, from first to last."""
        unit = self.relative_length(1.0)
        relative = np.geomspace(first, last, num)
        return slope(relative, [self.largest_change(float(length) / unit) for length in relative])

    @torch.no_grad()
    def _losses(self, weights: Mapping[str, Tensor]) -> Tensor:
        outputs = ((batch, self.network(batch.inputs, weights).to(CORE)) for batch in self._batches)
        return torch.cat([self.protected.losses(outputs_BC, batch).cpu() for batch, outputs_BC in outputs])


def slope(sizes: Sequence[float] | np.ndarray, values: Sequence[float]) -> float:
    """Least-squares slope of log(values) against log(sizes)."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def largest_scale(change: Callable[[float], float], limit: float, start: float) -> float:
    """The largest scale, to 2 %, at which the change is within the limit, for a change that grows about as a power.

    Args:
        change: at a scale; it may be infinite beyond some scale.
        limit: in the unit of the change.
        start: a scale to try first.

    Raises:
        ValueError: if no scale is found.
    """
    low: tuple[float, float] | None = None
    high: tuple[float, float] | None = None
    scale = start
    for _ in range(MAX_TRIES):
        value = change(scale)
        is_low = value <= limit
        low, high = ((scale, value), high) if is_low else (low, (scale, value))
        if low is not None and high is not None:
            if high[0] <= low[0] * (1 + NEAR):
                return low[0]
            # A little beyond where the power law meets the limit, so that the other side comes close too.
            scale = _between(low, high, limit) * (1 + NEAR / 3 if is_low else 1 - NEAR / 3)
            scale = min(max(scale, low[0] * (1 + NEAR / 3)), high[0] / (1 + NEAR / 3))
        else:
            step = math.sqrt(limit / value) if value > 0 else LARGEST_STEP
            nearest = 1 + NEAR if is_low else 1 / (1 + NEAR)
            scale *= min(max(step, nearest), LARGEST_STEP) if is_low else max(min(step, nearest), 1 / LARGEST_STEP)
    raise ValueError(f"No scale up to {scale:.3g} was found that changes the losses by {limit} nats.")


def _between(low: tuple[float, float], high: tuple[float, float], limit: float) -> float:
    if low[1] <= 0 or math.isinf(high[1]):
        return math.sqrt(low[0] * high[0])
    part = math.log(limit / low[1]) / math.log(high[1] / low[1])
    # Never nearer to an end than a tenth of the way: largest changes are only about a power of the scale.
    return low[0] * (high[0] / low[0]) ** min(max(part, 0.1), 0.9)
