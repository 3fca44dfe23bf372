"""Draws by alternating projections: sweep after sweep over blocks of protected examples.

Within a shard blocks are projected one after another, as in the paper; what the shards' sweeps changed is averaged, so
that they are independent of each other. One shard gives the paper's algorithm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from afterfit.algebra import Cursor, Progress, Result, State, Stop, Unit
from afterfit.lazy import LazyMapping
from afterfit.methods.projection.chunk import Projection
from afterfit.methods.projection.draws import check_left, column_norms, family, joined, noise_tiles, scalar
from afterfit.methods.projection.sweeps import Blocks
from afterfit.methods.projection.unit_rows import ProtectedRows
from afterfit.network.workbench import Workbench

PATIENCE = 10
"""Sweeps after which the residual must have fallen."""
GAIN = 0.9
"""To at most this part of what it was."""


@dataclass(frozen=True)
class AlternatingProjection(Projection):
    """Draws `first` to `first + num - 1`, as `DualProjection` leaves them.

    The residual is what blocks meet: of each protected row when its block's turn comes, so of draws that are about a
    sweep old. Stops after the first sweep that meets at most the tolerance: that sweep was the projector once more.

    Cost: a sweep is one pass over the protected examples, with 4 n R P k multiplications and additions; each worker
    holds P k numbers.
    Source: Miani, Roy, Hauberg (2024), arXiv:2410.16901.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "iterate"

    def on(self, bench: Workbench) -> "_Sweeps":
        """Needs the network, the training data, the lengths and the blocks' factors."""
        return _Sweeps(self, bench)


class _Sweeps:
    def __init__(self, recipe: AlternatingProjection, bench: Workbench) -> None:
        self.recipe = recipe
        self.bench = bench
        self.rows = ProtectedRows(recipe.protected, bench)

    def init(self) -> State:
        tiles = noise_tiles(self.recipe.seed, self.bench, self.recipe.numbers)
        at = {"at/norms": column_norms(tiles), "at/passes": scalar(0), "at/history": torch.ones(0)}
        return joined({"draws": tiles}, at)

    def leaf(self, state: State, unit: Unit, cursor: Cursor) -> State:
        blocks = Blocks(self.rows, unit, self.recipe.block_size)
        position, saved = cursor.resume() or (0, {})
        draws = {name: saved.get(f"draws/{name}", tile) for name, tile in family(state, "draws").items()}
        largest_k = saved.get("met/largest", torch.zeros_like(state["at/norms"]))
        for number in range(position, len(blocks.indexes)):
            met_bRk = blocks.project(number, draws).met_bRk
            largest_k = torch.maximum(largest_k, met_bRk.abs().amax(dim=(0, 1)) / state["at/norms"])
            so_far = {f"draws/{name}": tile for name, tile in draws.items()} | {"met/largest": largest_k}
            cursor.reached(number + 1, len(blocks.indexes), so_far)
        return joined({"columns": _changes(draws, state)}, {"met/largest": largest_k})

    def merge(self, left: State, right: State) -> State:
        return {
            name: torch.maximum(left[name], right[name]) if name.startswith("met/") else left[name] + right[name]
            for name in left
        }

    def advance(self, state: State, total: State) -> tuple[State, Progress]:
        num_shards = len(self.recipe.units(self.bench))
        moved = {tile: partial(_moved, state, total, tile, num_shards) for tile in family(state, "draws")}
        tiles: Mapping[str, Tensor] = LazyMapping(moved)
        residual, passes = float(total["met/largest"].max()), float(state["at/passes"]) + 1
        history_n = torch.cat([state["at/history"].double(), torch.tensor([residual], dtype=torch.float64)])
        norms_k = column_norms(tiles)
        check_left(norms_k, self.recipe.protected, self.bench)
        at = {"at/norms": norms_k, "at/passes": scalar(passes), "at/history": history_n}
        figures = {"passes": passes, "residual": residual}
        return joined({"draws": tiles}, at), Progress(self._stop(history_n.tolist(), passes), figures)

    def _stop(self, history: Sequence[float], passes: float) -> Stop | None:
        if history[-1] <= self.recipe.tolerance:
            return Stop.CONVERGED
        if passes >= self.recipe.max_passes:
            return Stop.BUDGET
        has_stalled = len(history) > PATIENCE and history[-1] > GAIN * history[-1 - PATIENCE]
        return Stop.STALLED if has_stalled else None

    def finalise(self, state: State) -> Result:
        residual = float(state["at/history"][-1])
        return self.recipe.result(state, "alternating", self.recipe.most_rank(self.bench), residual)


def _changes(draws: Mapping[str, Tensor], state: State) -> Mapping[str, Tensor]:
    return LazyMapping({name: partial(_less, draws, state, name) for name in draws})


def _less(draws: Mapping[str, Tensor], state: State, tile: str) -> Tensor:
    return draws[tile] - state[f"draws/{tile}"]


def _moved(state: State, total: State, tile: str, num_shards: int) -> Tensor:
    return state[f"draws/{tile}"] + total[f"columns/{tile}"] / num_shards
