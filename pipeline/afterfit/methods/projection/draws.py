"""Draws by tiles: the noise that they start from, and their lengths."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from afterfit.algebra import State
from afterfit.errors import RankError
from afterfit.layout import Tile
from afterfit.lazy import LazyMapping
from afterfit.methods.projection.protected import Protected
from afterfit.network.workbench import Outline
from afterfit.precision import CORE
from afterfit.seeds import Seed, normals

Tiles = Mapping[str, Mapping[str, Tensor]]
"""Family -> tiles."""

DTYPES = {4: torch.float32, 8: torch.float64}


def noise(seed: int, tile: Tile, numbers: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Standard normals of some draws in one tile, (P_tile, k); each draw's are its own, however many are made."""
    place = Seed(seed, ("draws",))
    drawn = [normals(place.child(number, tile.name), tile.size, dtype=dtype) for number in numbers]
    return torch.stack(drawn, dim=1)


def noise_tiles(seed: int, outline: Outline, numbers: Sequence[int]) -> Mapping[str, Tensor]:
    """Of all tiles, each made when it is asked for."""
    dtype = DTYPES[outline.state_bytes]
    return LazyMapping({tile.name: partial(noise, seed, tile, numbers, dtype) for tile in outline.layout})


def column_norms(tiles: Mapping[str, Tensor]) -> Tensor:
    """|d| of each column, (k,) in float64, tile by tile."""
    squares = [tile_Pk.to(CORE).square().sum(dim=0) for tile_Pk in tiles.values()]
    return torch.stack(squares).sum(dim=0).sqrt()


def family(state: Mapping[str, Tensor], name: str) -> Mapping[str, Tensor]:
    """The tiles of one family of a lazy state."""
    prefix = f"{name}/"
    keys = [key for key in state if key.startswith(prefix)]
    return LazyMapping({key.removeprefix(prefix): partial(state.__getitem__, key) for key in keys})


def zeros_like_tiles(outline: Outline, num_columns: int) -> dict[str, Tensor]:
    """Tiles (P_tile, k) of zeros."""
    dtype = DTYPES[outline.state_bytes]
    return {tile.name: torch.zeros(tile.size, num_columns, dtype=dtype) for tile in outline.layout}


def joined(tiles: Tiles, *small: State) -> State:
    """One state from families of tiles, lazy as they are, and from what is in memory."""
    makers = {
        f"{name}/{tile}": partial(family_tiles.__getitem__, tile)
        for name, family_tiles in tiles.items()
        for tile in family_tiles
    }
    for part in small:
        makers |= {name: partial(part.__getitem__, name) for name in part}
    return LazyMapping(makers)


def scalar(value: float) -> Tensor:
    """A number of a state."""
    return torch.tensor(value, dtype=CORE)


LEFT = 1e-6
"""Part of a draw's length below which what projection leaves of it is rounding."""


def check_left(norms_k: Tensor, protected: Protected, outline: Outline) -> None:
    """Refuse draws of which nothing is left.

    Raises:
        RankError: with the remedy.
    """
    if float(norms_k.min()) < LEFT * outline.layout.num_weights**0.5:
        raise RankError(no_kernel(protected.num_rows(outline), outline))


def no_kernel(num_rows: int, outline: Outline) -> str:
    """What is wrong with rows that span everything."""
    return (
        f"The {num_rows} protected rows span all {outline.layout.num_weights} weights, so that no draw can leave them "
        "alone; protect fewer examples with `method.num_protected`, set `method.kernel: loss`, which has one row an "
        "example, or choose more weights with `network.choose`."
    )
