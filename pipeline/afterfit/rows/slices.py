"""Which weights have their rows explicit at once: runs of leading rows of a block, within a tile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from afterfit.layout import Tile


class Slice(NamedTuple):
    """Some leading rows of a block, in a tile: what is explicit at once where rows are not kept."""

    block: str
    start: int
    stop: int
    place: slice  # in the tile
    offset: int  # in the layout

    @property
    def size(self) -> int:
        """Weights."""
        return self.place.stop - self.place.start

    def within(self, whole: Slice) -> slice:
        """Where it lies in a slice that holds it."""
        return slice(self.place.start - whole.place.start, self.place.stop - whole.place.start)

    def cut(self, num_weights: int) -> Iterator[Slice]:
        """Parts of so many weights at most, but of one leading row at least."""
        each = self.size // max(self.stop - self.start, 1)
        step = max(1, num_weights // max(each, 1))
        for start in range(self.start, self.stop, step):
            stop = min(start + step, self.stop)
            first, last = ((index - self.start) * each for index in (start, stop))
            place = slice(self.place.start + first, self.place.start + last)
            yield Slice(self.block, start, stop, place, self.offset + first)


def pieces_of(tile: Tile) -> Iterator[Slice]:
    """The blocks' parts in a tile."""
    place = 0
    for piece in tile.pieces:
        yield Slice(piece.block, piece.start, piece.stop, slice(place, place + piece.size), tile.offset + place)
        place += piece.size
