"""Rows of one cotangent as what they are products of: small enough to be sent, and contracted without being made.

Where a layer sees one position, the rows of its weight are outer products g a^T: r + c numbers an example in place of
r c, and the Gram of all rows is the product, entry by entry, of two small ones.

Shapes: X rows, p weights of a run, k columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from afterfit.layout import Tile
from afterfit.precision import CORE
from afterfit.rows.tape_rows import TapeRows

LONG = 4096
"""From so many numbers on, one row after another is read faster than all are squared."""
HELD_BYTES = 1 << 26
"""Of what a contraction holds besides its operands."""


class Factored(Protocol):
    """Rows of some weights that follow each other. Columns lie as rows of memory, (k, p): products are longer so."""

    def gram(self) -> Tensor:
        """R R^T, (X, X) in float64."""
        ...

    def times(self, columns_kp: Tensor) -> Tensor:
        """R V, (X, k)."""
        ...

    def transpose_times(self, weights_kX: Tensor, into_kp: Tensor) -> None:
        """Adds (R^T W)^T to a run of columns."""
        ...

    def squares(self) -> Tensor:
        """The sum of R*R over the rows, (p,)."""
        ...


@dataclass(frozen=True, eq=False)
class Explicit:
    """Rows as they are."""

    rows_Xp: Tensor

    def gram(self) -> Tensor:
        """See `Factored`. Cost: X^2 p."""
        return (self.rows_Xp @ self.rows_Xp.T).to(CORE)

    def times(self, columns_kp: Tensor) -> Tensor:
        """See `Factored`. Cost: X p k."""
        return self.rows_Xp @ columns_kp.T

    def transpose_times(self, weights_kX: Tensor, into_kp: Tensor) -> None:
        """See `Factored`. Cost: X p k."""
        into_kp.addmm_(weights_kX, self.rows_Xp)

    def squares(self) -> Tensor:
        """See `Factored`."""
        return squared_lengths(self.rows_Xp)


@dataclass(frozen=True, eq=False)
class Outer:
    """Row x is left_x right_x^T, flattened: p = r c."""

    left_Xr: Tensor
    right_Xc: Tensor

    def gram(self) -> Tensor:
        """See `Factored`. Cost: X^2 (r + c)."""
        return (self.left_Xr @ self.left_Xr.T).to(CORE) * (self.right_Xc @ self.right_Xc.T).to(CORE)

    def times(self, columns_kp: Tensor) -> Tensor:
        """See `Factored`. Cost: X p k."""
        num_columns = len(columns_kp)
        columns_krc = columns_kp.unflatten(1, (self.left_Xr.shape[1], -1))
        total_Xk = columns_kp.new_zeros(len(self.left_Xr), num_columns)
        for part in self._parts(num_columns):
            moved_krX = (columns_krc[:, part].flatten(0, 1) @ self.right_Xc.T).unflatten(0, (num_columns, -1))
            total_Xk += moved_krX.mul_(self.left_Xr[:, part].T).sum(dim=1).T
        return total_Xk

    def transpose_times(self, weights_kX: Tensor, into_kp: Tensor) -> None:
        """See `Factored`. Cost: X p k."""
        into_krc = into_kp.unflatten(1, (self.left_Xr.shape[1], -1))
        for part in self._parts(len(weights_kX)):
            mixed_krX = self.left_Xr[:, part].T * weights_kX[:, None]
            target_krc = into_krc[:, part]
            if target_krc.is_contiguous():  # one product in place of k
                target_krc.flatten(0, 1).addmm_(mixed_krX.flatten(0, 1), self.right_Xc)
            else:
                torch.baddbmm(target_krc, mixed_krX, self.right_Xc.expand(len(mixed_krX), -1, -1), out=target_krc)

    def squares(self) -> Tensor:
        """See `Factored`. Cost: X p."""
        return (self.left_Xr.square().T @ self.right_Xc.square()).flatten()

    def _parts(self, num_columns: int) -> Iterator[slice]:
        """Runs of r that bound what is held."""
        each = len(self.left_Xr) * num_columns * self.left_Xr.element_size()
        step = max(1, HELD_BYTES // max(each, 1))
        return (slice(first, first + step) for first in range(0, self.left_Xr.shape[1], step))


def squared_lengths(columns_kp: Tensor) -> Tensor:
    """Sums of squares over k, (p,); of long rows without another tensor of that size."""
    if columns_kp.shape[1] < LONG:
        return columns_kp.square().sum(dim=0)
    first_p, *others = columns_kp
    total_p = first_p * first_p
    for row_p in others:
        total_p.addcmul_(row_p, row_p)
    return total_p


class Piece(NamedTuple):
    """Consecutive leading rows of a block, in one tile."""

    tile: str
    place: slice  # in the tile
    start: int  # along the block's first dimension
    stop: int


class Stretch(NamedTuple):
    """The part of a block that lies in a run of tiles."""

    block: str
    pieces: tuple[Piece, ...]

    @property
    def start(self) -> int:
        """Along the block's first dimension."""
        return self.pieces[0].start

    @property
    def stop(self) -> int:
        """Likewise."""
        return self.pieces[-1].stop


def stretches(tiles: Sequence[Tile]) -> list[Stretch]:
    """Of a run of tiles, in order."""
    found: dict[str, list[Piece]] = {}
    for tile in tiles:
        place = 0
        for piece in tile.pieces:
            where = slice(place, place + piece.size)
            found.setdefault(piece.block, []).append(Piece(tile.name, where, piece.start, piece.stop))
            place += piece.size
    return [Stretch(block, tuple(pieces)) for block, pieces in found.items()]


def factors_of(rows: TapeRows, tiles: Sequence[Tile]) -> dict[str, Tensor]:
    """Of rows with one cotangent: "<block>/left" and ".../right" where two factors take fewer numbers.

    Else "<block>/<tile>", the rows themselves. All have X first.
    """
    named = {tile.name: tile for tile in tiles}
    made: dict[str, Tensor] = {}
    for stretch in stretches(tiles):
        sides = rows.outer_product(stretch.block, stretch.start, stretch.stop)
        if sides is not None:
            made[f"{stretch.block}/left"], made[f"{stretch.block}/right"] = sides
            continue
        for piece in stretch.pieces:
            made[f"{stretch.block}/{piece.tile}"] = rows.explicit(named[piece.tile], stretch.block)[0]
    return made


class Joined(NamedTuple):
    """The rows of a step in one stretch: whole for their Gram, and in each tile."""

    grams: tuple[Factored, ...]  # whose Grams add up to that of the stretch
    parts: tuple[tuple[Piece, Factored], ...]


def joined(runs: Sequence[dict[str, Tensor]], tiles: Sequence[Tile]) -> list[Joined]:
    """The rows of all runs, one after another, in each stretch of some tiles. What is joined is taken out of the runs.

    Args:
        runs: of `factors_of`, for other examples or other weights.
        tiles: of theirs.
    """
    return [_joined(runs, stretch) for stretch in stretches(tiles)]


def _joined(runs: Sequence[dict[str, Tensor]], stretch: Stretch) -> Joined:
    names = [f"{stretch.block}/{side}" for side in ("left", "right")]
    if all(names[0] in run for run in runs):
        left_Xr, right_Xc = (_cat([run.pop(name) for run in runs]) for name in names)
        parts = [
            (piece, Outer(left_Xr[:, piece.start - stretch.start : piece.stop - stretch.start], right_Xc))
            for piece in stretch.pieces
        ]
        return Joined((Outer(left_Xr, right_Xc),), tuple(parts))
    made = [(piece, Explicit(_cat([_explicit(run, stretch, piece) for run in runs]))) for piece in stretch.pieces]
    return Joined(tuple(rows for _, rows in made), tuple(made))


def _explicit(run: dict[str, Tensor], stretch: Stretch, piece: Piece) -> Tensor:
    name = f"{stretch.block}/{piece.tile}"
    if name in run:
        return run.pop(name)
    left_Xr = run[f"{stretch.block}/left"][:, piece.start - stretch.start : piece.stop - stretch.start]
    return (left_Xr[:, :, None] * run[f"{stretch.block}/right"][:, None]).flatten(1)


def _cat(parts: Sequence[Tensor]) -> Tensor:
    """One part stays as it is: explicit rows are most of what a step holds."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
