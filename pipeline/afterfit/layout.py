"""The order of the weights, as a value with a fingerprint, and the tiles they are stored and worked on by."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from hashlib import sha256
from math import prod
from typing import Any, TypeVar

from torch import Tensor, nn

from afterfit.errors import ConfigError

Value = TypeVar("Value")

TILE_WEIGHTS = 1 << 16
MAX_TILES = 4096


@dataclass(frozen=True, slots=True)
class Block:
    """One parameter of the network."""

    name: str  # dotted, e.g. "blocks.3.attn.qkv.weight"
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive leading rows of a block, the part of it that lies in one tile."""

    block: str
    start: int  # along the block's first dimension; 0 and 1 for a scalar
    stop: int
    size: int  # weights


@dataclass(frozen=True, slots=True)
class Tile:
    """A run of consecutive weights that is stored, sent and contracted together."""

    name: str
    pieces: tuple[Piece, ...]
    offset: int  # position of its first weight in the layout

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True)
class Layout:
    """Blocks in order, and how they are cut into tiles. Everything of size P is indexed by it."""

    blocks: tuple[Block, ...]
    tile_weights: int

    @classmethod
    def of(cls, module: nn.Module, weights: str | Sequence[str] = "*", tile_weights: int | None = None) -> "Layout":
        """The weights of `module` that a glob, or any of several, chooses. Tied weights count once.

        Raises:
            ConfigError: if a pattern chooses nothing.
        """
        patterns = [weights] if isinstance(weights, str) else list(weights)
        named = [(name, tuple(weight.shape)) for name, weight in module.named_parameters()]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name, _ in named):
                examples = ", ".join(name for name, _ in named[:3])
                raise ConfigError(
                    f"The pattern {pattern!r} chooses no weights; the network has {len(named)} named like {examples}."
                )
        chosen = [
            Block(name, shape) for name, shape in named if any(fnmatchcase(name, pattern) for pattern in patterns)
        ]
        if tile_weights is None:
            total = sum(block.size for block in chosen)
            tile_weights = max(TILE_WEIGHTS, -(-total // MAX_TILES))
        return cls(tuple(chosen), tile_weights)

    @cached_property
    def num_weights(self) -> int:
        """P."""
        return sum(block.size for block in self.blocks)

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """Whole small blocks packed together, large ones cut between their leading rows."""
        tiles: list[Tile] = []
        pieces: list[Piece] = []
        offset = filled = 0

        def close() -> None:
            nonlocal offset, filled
            if pieces:
                tiles.append(Tile(f"{len(tiles):05d}", tuple(pieces), offset))
                offset += filled
                pieces.clear()
                filled = 0

        for block in self.blocks:
            rows = block.shape[0] if block.shape else 1
            row_size = block.size // max(rows, 1)
            if filled and filled + block.size > self.tile_weights:
                close()
            step = max(1, self.tile_weights // max(row_size, 1))
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                if filled and filled + (stop - start) * row_size > self.tile_weights:
                    close()
                pieces.append(Piece(block.name, start, stop, (stop - start) * row_size))
                filled += (stop - start) * row_size
        close()
        return tuple(tiles)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of names, shapes and cuts; artifacts carry it and refuse another."""
        text = repr([(block.name, block.shape) for block in self.blocks]) + str(self.tile_weights)
        return sha256(text.encode()).hexdigest()[:16]

    def groups(self, bytes_per_weight: int, budget: float) -> list[tuple[Tile, ...]]:
        """Runs of tiles to hold at once: aligned, of a power of two tiles, the longest within the budget.

        Aligned runs are whole sub-trees of the merge tree over tiles, so the bits of a sum over tiles do not
        depend on the budget. One tile is the least, whatever the budget.
        """
        run = 1
        while run < len(self.tiles):
            longer = self._runs(run * 2)
            if max(sum(tile.size for tile in group) for group in longer) * bytes_per_weight > budget:
                break
            run *= 2
        return self._runs(run)

    def _runs(self, length: int) -> list[tuple[Tile, ...]]:
        return [self.tiles[start : start + length] for start in range(0, len(self.tiles), length)]

    def cut(self, weights: Mapping[str, Tensor], tile: Tile) -> Tensor:
        """The weights (or a direction shaped like them) of one tile, flat: (P_tile,)."""
        from torch import cat

        return cat([_rows(weights[piece.block], piece).reshape(-1) for piece in tile.pieces])

    def filled(self, tensors: Mapping[str, Tensor], device: Any) -> dict[str, Tensor]:
        """Block-shaped tensors for every block, on one device; the ones not given are zeros that take no memory."""
        from torch import zeros

        zero = zeros((), device=device)
        absent = {block.name: zero.expand(block.shape) for block in self.blocks}
        return absent | {name: tensor.to(device) for name, tensor in tensors.items()}

    def assemble(self, flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Block-shaped tensors from tiles whose first dimension runs over weights: (P_tile, ...).

        The inverse of `cut`; trailing dimensions stay behind the block's own.
        """
        from torch import cat

        parts: dict[str, list[Tensor]] = {block.name: [] for block in self.blocks}
        for tile in self.tiles:
            start = 0
            for piece in tile.pieces:
                parts[piece.block].append(flat[tile.name][start : start + piece.size])
                start += piece.size
        trailing = next(iter(flat.values())).shape[1:]
        return {block.name: cat(parts[block.name]).reshape((*block.shape, *trailing)) for block in self.blocks}

    def blocks_of(self, tiles: Sequence[Tile]) -> list[str]:
        """Names of the blocks that have weights in `tiles`, in order, each once."""
        return list(dict.fromkeys(piece.block for tile in tiles for piece in tile.pieces))

    def record(self) -> dict[str, Any]:
        """As plain values, for a manifest."""
        return {
            "blocks": [[block.name, list(block.shape)] for block in self.blocks],
            "tile_weights": self.tile_weights,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Layout":
        """The inverse of `record`."""
        blocks = tuple(Block(name, tuple(shape)) for name, shape in record["blocks"])
        return cls(blocks, int(record["tile_weights"]))

    def __iter__(self) -> Iterator[Tile]:
        return iter(self.tiles)


def of_last_match(pairs: Sequence[tuple[str, Value]], name: str, otherwise: Value) -> Value:
    """What the last pair has whose glob matches a name."""
    return next((value for glob, value in reversed(pairs) if fnmatchcase(name, glob)), otherwise)


def _rows(block: Tensor, piece: Piece) -> Tensor:
    return block[piece.start : piece.stop] if block.dim() else block.reshape(1)
