"""Randomness as a named place: any draw is made again anywhere from a root and a path, never stored."""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 1 << 64


def _signed(value: int) -> int:
    """The 64-bit pattern of `value` as the signed integer that torch holds."""
    value %= _WORD
    return value - _WORD if value >= _WORD >> 1 else value


def _shift_right(word: Tensor, by: int) -> Tensor:
    """Logical shift of signed 64-bit words; torch's own shift copies the sign bit."""
    return (word >> by) & ((1 << (64 - by)) - 1)


def _mix(word: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of 64-bit words whose bits look independent."""
    word = (word ^ _shift_right(word, 30)) * _signed(_MULTIPLIERS[0])
    word = (word ^ _shift_right(word, 27)) * _signed(_MULTIPLIERS[1])
    return word ^ _shift_right(word, 31)


@dataclass(frozen=True, slots=True)
class Seed:
    """A place in a tree of independent random streams."""

    root: int
    path: tuple[str, ...] = ()

    def child(self, *names: str | int) -> "Seed":
        """The place below this one that `names` lead to."""
        return Seed(self.root, (*self.path, *(str(name) for name in names)))

    def key(self) -> int:
        """63 bits that depend on the root and every name on the path, and on nothing else."""
        text = "\x1f".join((str(self.root), *self.path))
        return int.from_bytes(sha256(text.encode()).digest()[:8], "little") >> 1

    def generator(self) -> torch.Generator:
        """A CPU generator for normals and permutations that are drawn whole at this place."""
        return torch.Generator().manual_seed(self.key())

    def numpy(self) -> np.random.Generator:
        """The same for numpy."""
        return np.random.default_rng(self.key())


def signs(
    key: int,
    rows: range,
    num_columns: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Random signs by an integer counter hash: entry (row, column) depends on (key, row, column) only.

    Args:
        key: from `Seed.key`.
        rows: which rows of the endless matrix; any tile can be made alone.
        num_columns: columns 0 to num_columns - 1; 64 share one hash.
        dtype: of the result.
        device: where it is computed; integers, so CPU and GPU give the same bits.

    Returns:
        (len(rows), num_columns) of +1 and -1.

    Cost: one 64-bit hash for 64 entries.
    Source: SplitMix64, Steele, Lea, Flood (2014), doi:10.1145/2660193.2660195.
    """
    words = -(-num_columns // 64)
    row = torch.arange(rows.start, rows.stop, rows.step, device=device, dtype=torch.int64)
    word = torch.arange(words, device=device, dtype=torch.int64)
    counter = _mix(row * _signed(_GOLDEN) + _signed(key))[:, None] + word[None] * _signed(_GOLDEN)
    # Byte by byte (low byte first on every machine that torch runs on): an eighth of the memory of whole words.
    octets = _mix(counter).view(torch.uint8)
    bits = (octets[..., None] >> torch.arange(8, device=device, dtype=torch.uint8)) & 1
    return bits.flatten(1)[:, :num_columns].to(dtype).mul_(2).sub_(1)


def uniforms(key: int, rows: range, num_columns: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Uniform numbers in [0, 1) by the hash of `signs`, (len(rows), num_columns), float64 with 53 random bits.

    Entry (row, column) depends on (key, row, column) only: any tile can be made alone.
    """
    row = torch.arange(rows.start, rows.stop, rows.step, device=device, dtype=torch.int64)
    column = torch.arange(num_columns, device=device, dtype=torch.int64)
    counter = _mix(row * _signed(_GOLDEN) + _signed(key))[:, None] + column[None] * _signed(_GOLDEN)
    return _shift_right(_mix(counter), 11).to(torch.float64).mul_(2.0**-53)


def quick_normals(seed: Seed, size: int, *, dtype: torch.dtype) -> Tensor:
    """Standard normals (size,) drawn in their own dtype: in float32 five times faster than `normals`, and others."""
    return torch.randn(size, generator=seed.child("normals", size).generator(), dtype=dtype)


def normals(seed: Seed, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normals named by their place. The shape belongs to the name: a shorter draw is no prefix."""
    place = seed.child("normals", *shape)
    return torch.randn(*shape, generator=place.generator(), dtype=torch.float64).to(dtype)
