"""Rows of the Jacobian of a micro-batch: the one primitive that every method uses.

Row (b, s) is u_bs^T J(x_b), P numbers, for cotangents u (B, S, C). Rows are never stored whole: what is
explicit at once is one group of tiles.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from afterfit.algebra import Batch
from afterfit.errors import ConfigError
from afterfit.layout import Tile
from afterfit.network.likelihoods import Likelihood
from afterfit.seeds import Seed

Cotangents = Callable[[Tensor], Tensor]
"""From the outputs (B, C) of the micro-batch to its cotangents (B, S, C)."""


class Rows(Protocol):
    """The rows of one micro-batch, in the order (b, s)."""

    outputs_BC: Tensor
    num_cotangents: int  # S

    def parts(self, num_columns: int) -> Iterator["Rows"]:
        """The same rows in runs of cotangents, each cheap to multiply twice with k columns; in their order.

        A sum over rows, as R^T R V is, is best taken part by part: what one verb computed is at hand for the next.
        """
        ...

    def times(self, columns: Mapping[str, Tensor]) -> Tensor:
        """R V, (B, S, k) in float64, for V as tiles (P_tile, k), which may be lazy.

        Tiles are summed in float64 in the layout's order, so the bits do not depend on how they are grouped.
        """
        ...

    def transpose_times(self, weights_BSk: Tensor, into: Mapping[str, Tensor]) -> None:
        """Adds R^T W to the tiles given, each (P_tile, k), for W (B, S, k).

        Only the rows' part in these tiles is computed.
        """
        ...

    def gram(self) -> Tensor:
        """R_b R_b^T of each example, (B, S, S) in float64: the NTK of an example with itself."""
        ...

    def squares(self, into: Mapping[str, Tensor]) -> None:
        """Adds the sum of R*R over the rows to the tiles given, each (P_tile,)."""
        ...

    def materialise(self, tiles: Sequence[Tile]) -> Iterator[tuple[str, Tensor]]:
        """The columns of these tiles, each (B, S, P_tile); all of them may be held at once."""
        ...


class RowBackend(Protocol):
    """Makes rows of one network: `functional` and `tape`, equal to rounding on any module."""

    def rows(self, batch: Batch, cotangents: Cotangents) -> Rows:
        """The rows of a micro-batch."""
        ...


def cotangents_of(likelihood: Likelihood, num_samples: int | None, seed: int, batch: Batch) -> Cotangents:
    """Exact ones, or drawn ones; an example's position names its draws, so that every pass over it has the same."""
    if num_samples is None:
        return likelihood.root
    place = Seed(seed, ("cotangents",))
    return lambda outputs_BC: likelihood.sample_cotangents(outputs_BC, place, batch.indexes, num_samples)


def unit_cotangents(outputs_BC: Tensor, chosen: Sequence[int] | None = None) -> Tensor:
    """One row for each output (B, C, C), or for each chosen one (B, S, C).

    Raises:
        ConfigError: for chosen outputs that there are not, or that are chosen twice.
    """
    num_outputs = outputs_BC.shape[1]
    if chosen is None:
        rows_SC = torch.eye(num_outputs, dtype=outputs_BC.dtype, device=outputs_BC.device)
    else:
        check_outputs(chosen, num_outputs)
        rows_SC = one_hot(torch.tensor(chosen), num_outputs).to(outputs_BC)
    return rows_SC.expand(len(outputs_BC), *rows_SC.shape)


def check_outputs(chosen: Sequence[int], num_outputs: int) -> None:
    """Refuse outputs that there are not.

    Raises:
        ConfigError: also for outputs that are chosen twice, or none.
    """
    if not chosen or sorted({*chosen} & {*range(num_outputs)}) != sorted(chosen):
        raise ConfigError(f"The outputs {list(chosen)} were chosen of {num_outputs}; give numbers from 0, each once.")
