"""One shard of a natural-gradient fit: U, D, the mean and the momentum of a run of tiles, and what is done to them.

Shapes: p weights of a tile, L rank, S draws, X rows of the step. In memory the weights are the last dimension: U is
worked on as (L, p), three times faster than (p, L) for few columns.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from afterfit.algebra import State
from afterfit.layout import Tile
from afterfit.linalg.low_rank import Core, divergence_part, variances
from afterfit.methods.natural_gradient.recipe import NaturalGradient, prior_of
from afterfit.methods.natural_gradient.update import Combination, Rates, Shares, next_diagonal
from afterfit.precision import CORE, dot
from afterfit.rows.factored import Factored, joined, squared_lengths
from afterfit.seeds import Seed, quick_normals

Noise = Mapping[str, Tensor]
"""Tile -> standard normals over the root of D, (S, p)."""


class StepRows:
    """The rows of a whole step in a shard."""

    def __init__(self, runs: Sequence[dict[str, Tensor]], tiles: Sequence[Tile]) -> None:
        self._stretches = joined(runs, tiles)
        self._of: dict[str, list[tuple[slice, Factored]]] = {tile.name: [] for tile in tiles}
        for stretch in self._stretches:
            for piece, made in stretch.parts:
                self._of[piece.tile].append((piece.place, made))

    def of(self, tile: Tile) -> Sequence[tuple[slice, Factored]]:
        """Places in a tile, and the rows there."""
        return self._of[tile.name]

    def gram(self, num_rows: int) -> Tensor:
        """G^T G, (X, X) in float64."""
        total_XX = torch.zeros(num_rows, num_rows, dtype=CORE)
        for stretch in self._stretches:
            for made in stretch.grams:
                total_XX += made.gram().to(total_XX)
        return total_XX


class Moves(NamedTuple):
    """What a step makes of U and of the rows."""

    of_factor_LL: Tensor
    of_rows_nX: Tensor  # for the columns of U, and for the momentum
    rates: Rates


class Shard:
    """Works on the tensors of a state: U and the momentum are written over, the others replaced."""

    def __init__(
        self, recipe: NaturalGradient, tiles: Sequence[Tile], state: dict[str, Tensor], scratch: "Scratch"
    ) -> None:
        self.recipe = recipe
        self.tiles = tiles
        self.state = state
        self._scratch = scratch

    # Draws.

    def noise(self, seed: Seed) -> Noise:
        """Named by draw and tile."""
        made = {}
        for tile in self.tiles:
            diagonal_p = self._of("diagonal", tile)
            drawn = [
                quick_normals(seed.child(draw, tile.name), tile.size, dtype=diagonal_p.dtype)
                for draw in range(self.recipe.draws_per_step)
            ]
            made[tile.name] = torch.stack(drawn).to(diagonal_p.device) * diagonal_p.rsqrt()
        return made

    def sketch(self, noise: Noise) -> Tensor:
        """V^T e = U^T D^-1/2 e, (L, S) in float64."""
        total_LS = torch.zeros(self.recipe.rank, self.recipe.draws_per_step, dtype=CORE)
        for tile in self.tiles:
            total_LS += (self._factor(tile) @ noise[tile.name].T).to(total_LS)
        return total_LS

    def drawn(self, noise: Noise, mixed_LS: Tensor) -> State:
        """The weights at all draws, tile -> (S, p): mean + D^-1/2 e + D^-1 U M."""
        made = {}
        for tile in self.tiles:
            factor_Lp = self._factor(tile)
            moved_Sp = mixed_LS.T.to(factor_Lp) @ factor_Lp / self._of("diagonal", tile)
            made[tile.name] = self._of("mean", tile) + noise[tile.name] + moved_Sp
        return made

    # The precision.

    def rows(self, runs: Sequence[dict[str, Tensor]]) -> StepRows:
        """Of the step, in each tile."""
        return StepRows(runs, self.tiles)

    def grams(self, rows: StepRows, num_rows: int) -> State:
        """U^T G and G^T G in float64."""
        cross_LX = torch.zeros(self.recipe.rank, num_rows, dtype=CORE)
        for tile in self.tiles:
            factor_Lp = self._factor(tile)
            for place, made in rows.of(tile):
                cross_LX += made.times(factor_Lp[:, place]).T.to(cross_LX)
        return {"cross": cross_LX, "gradients": rows.gram(num_rows)}

    def image(self, rows: StepRows, columns_nk: Tensor, shares: Shares) -> Tensor:
        """This shard's part of A^T A times some columns, (L + X, k) in float64."""
        kept, taken, rank = shares.kept**0.5, shares.taken**0.5, self.recipe.rank
        total_nk = torch.zeros_like(columns_nk)
        for tile in self.tiles:
            factor_Lp = self._factor(tile)
            image_kp = (kept * columns_nk[:rank]).T.to(factor_Lp) @ factor_Lp
            for place, made in rows.of(tile):
                made.transpose_times((taken * columns_nk[rank:]).T.to(factor_Lp), image_kp[:, place])
                total_nk[rank:] += taken * made.times(image_kp[:, place]).to(total_nk)
            total_nk[:rank] += kept * (factor_Lp @ image_kp.T).to(total_nk)
        return total_nk

    def move_precision(self, rows: StepRows, combination: Combination, rates: Rates) -> State:
        """To the next step's: U and the momentum in their memory, D in other.

        Returns:
            Parts of V^T V and V^T w for the new V, w = D^-1/2 (gradient of the mean); the smallest of D; and the
            largest part of a weight's precision that rounding has added to it.
        """
        rank, momentum = self.recipe.rank, self.recipe.momentum
        of_rows_LX = combination.of_gradients_XL.T
        of_mean_1X = torch.full_like(of_rows_LX[:1], (1 - momentum) * rates.weight)
        moves = Moves(combination.of_factor_LL.T, torch.cat([of_rows_LX, of_mean_1X]), rates)
        sums = {"gram": torch.zeros(rank, rank, dtype=CORE), "solved": torch.zeros(rank, 1, dtype=CORE)}
        ends = [self._move(tile, rows.of(tile), moves, sums) for tile in self.tiles]
        return {
            **sums,
            "smallest": torch.tensor([least for least, _ in ends], dtype=CORE),
            "added": torch.tensor([most for _, most in ends], dtype=CORE),
        }

    def _move(
        self, tile: Tile, rows: Sequence[tuple[slice, Factored]], moves: Moves, sums: Mapping[str, Tensor]
    ) -> tuple[float, float]:
        """U and the momentum by one product, n = L + 1."""
        rank, rates = self.recipe.rank, moves.rates
        factor_Lp, diagonal_p, momentum_p = self._factor(tile), self._of("diagonal", tile), self._of("momentum", tile)
        both_np, scaled_Lp = self._scratch.pair(factor_Lp)
        moved_Lp = torch.mm(moves.of_factor_LL.to(factor_Lp), factor_Lp, out=both_np[:rank])
        torch.mul(momentum_p, self.recipe.momentum, out=both_np[rank])
        before_p = rates.shares.kept * squared_lengths(factor_Lp)
        weights_nX = moves.of_rows_nX.to(factor_Lp)
        for place, made in rows:
            before_p[place] += rates.shares.taken * made.squares()
            made.transpose_times(weights_nX, both_np[:, place])
        after_p = squared_lengths(moved_Lp)
        next_p = next_diagonal(diagonal_p, before_p, after_p, self._prior(tile), rates.precision)
        factor_Lp.copy_(moved_Lp)
        momentum_p.copy_(both_np[rank])
        self.state[f"factor/{tile.name}"], self.state[f"diagonal/{tile.name}"] = factor_Lp.T, next_p
        torch.div(moved_Lp, next_p, out=scaled_Lp)
        sums["gram"].add_((moved_Lp @ scaled_Lp.T).to(sums["gram"]))
        sums["solved"].add_((scaled_Lp @ self._slope(tile)[:, None]).to(sums["solved"]))
        return float(next_p.min()), float(((after_p - before_p) / (after_p + next_p)).max().clamp_min(0))

    # The mean.

    def move_mean(self, coefficients_L1: Tensor, rates: Rates) -> State:
        """By the step size times the inverse precision times the gradient; coefficients: C V^T w.

        Returns:
            This shard's part of |movement|^2 and |mean|^2.
        """
        lengths = torch.zeros(2, dtype=CORE)
        for tile in self.tiles:
            factor_Lp = self._factor(tile)
            slope_p = self._slope(tile) + (coefficients_L1.T.to(factor_Lp) @ factor_Lp)[0]
            moved_p = rates.mean * slope_p / self._of("diagonal", tile)
            mean_p = self._of("mean", tile) + moved_p
            self.state[f"mean/{tile.name}"] = mean_p
            lengths += torch.stack([dot(moved_p, moved_p), dot(mean_p, mean_p)]).cpu()
        return {"lengths": lengths}

    def _slope(self, tile: Tile) -> Tensor:
        """Momentum - prior times mean, (p,)."""
        return self._of("momentum", tile) - self._prior(tile) * self._of("mean", tile)

    # What is known of the Gaussian.

    def evidence(self, core: Core) -> State:
        """This shard's part of the divergence, and of the log determinant."""
        divergence, log_det = torch.zeros(2, dtype=CORE)
        for tile in self.tiles:
            diagonal_p = self._of("diagonal", tile)
            whitened_pL = (self._factor(tile) * diagonal_p.rsqrt()).T
            variances_p = variances(whitened_pL, diagonal_p, core.solve)
            divergence += divergence_part(self._of("mean", tile), variances_p, self._prior(tile)).cpu()
            log_det += diagonal_p.to(CORE).log().sum().cpu()
        return {"divergence": divergence, "log_det": log_det}

    def _of(self, family: str, tile: Tile) -> Tensor:
        return self.state[f"{family}/{tile.name}"]

    def _factor(self, tile: Tile) -> Tensor:
        """U^T, (L, p), contiguous: a copy only of what was just read from the store."""
        return self.state[f"factor/{tile.name}"].T.contiguous()

    def _prior(self, tile: Tile) -> Tensor:
        like = self._of("diagonal", tile)
        return prior_of(self.recipe, tile, like.dtype).to(like.device)


class Scratch:
    """Memory that stays from step to step: fresh pages cost as much as the products that fill them."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def pair(self, factor_Lp: Tensor) -> tuple[Tensor, Tensor]:
        """Two tensors (L + 1, p) and (L, p), with anything in them, until the next are asked for."""
        rank, num = factor_Lp.shape
        size, memory = (2 * rank + 1) * num, self._memory
        if memory.numel() < size or memory.dtype != factor_Lp.dtype or memory.device != factor_Lp.device:
            self._memory = factor_Lp.new_empty(size)
        whole = self._memory[:size].view(-1, num)
        return whole[: rank + 1], whole[rank + 1 :]
