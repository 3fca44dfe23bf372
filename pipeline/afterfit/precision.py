"""Who computes in what, and sums whose bits do not depend on memory alignment or threads."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

CORE = torch.float64
"""Small cores (S x S, M x M): they square the condition number."""


def state_dtype(forward: torch.dtype) -> torch.dtype:
    """What sums over data are kept in: float64 where the network computes in it, else float32."""
    return torch.float64 if forward == torch.float64 else torch.float32


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner product, products summed in float64 on contiguous copies.

    `torch.dot` in float32 changes its value with the alignment of its operands; this does not.
    """
    wide = left.contiguous().double()
    return (wide * (wide if right is left else right.contiguous().double())).sum()


def norm(vector: Tensor) -> Tensor:
    """Euclidean length by `dot`."""
    return dot(vector, vector).sqrt()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run a small core with one thread: `eigh` gives other bits with other thread counts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
