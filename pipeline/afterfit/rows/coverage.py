"""Which weights the tape has rules for, found out on data: what the plan shows, and what a first micro-batch checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afterfit.rows.counts import Counts

if TYPE_CHECKING:
    from afterfit.network.functional import Network
    from afterfit.rows.mixed import Passes
    from afterfit.rows.recording import Recording
    from afterfit.rows.tape_rows import TapeRows

TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-2}
"""Of a row's block, relative: attention and norms round, a wrong rule is off by all of it."""
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Part of the whole row below which a block is rounding only: softmax gives a key's bias no gradient, but noise."""


@dataclass(frozen=True)
class Coverage:
    """How the rows of one network are made.

    Attributes:
        num_weights: P.
        by_reverse_mode: block -> the operation for which there is no rule.
        weights_by_reverse_mode: their number.
        gradient_numbers: at the outputs of the layers, for one example and one cotangent.
        counts: what each use of a block costs for one example.
        passed: multiplications in the forward pass of one example.
        has_forward_mode: whether products may go by forward mode, as far as can be said without trying.
    """

    num_weights: int
    by_reverse_mode: Mapping[str, str]
    weights_by_reverse_mode: int
    gradient_numbers: int
    counts: tuple[Counts, ...]
    passed: float
    has_forward_mode: bool = True

    @property
    def fraction(self) -> float:
        """Part of the weights that have rules."""
        return 1 - self.weights_by_reverse_mode / self.num_weights

    def sentence(self) -> str:
        """For people."""
        if not self.by_reverse_mode:
            return "Rows: the tape has rules for all of the weights."
        told = f"Rows: the tape has rules for {100 * self.fraction:.3g} % of the weights"
        named = ", ".join(f"{block} ({why})" for block, why in list(self.by_reverse_mode.items())[:3])
        more = len(self.by_reverse_mode) - 3
        return f"{told}; by reverse mode, example by example: {named}{f' and {more} more' if more > 0 else ''}."


def coverage_of(network: Network, recording: Recording, num_examples: int, *, has_forward_mode: bool) -> Coverage:
    """The coverage after a pass over some examples."""
    sizes = {block.name: block.size for block in network.layout.blocks}
    return Coverage(
        num_weights=network.layout.num_weights,
        by_reverse_mode=dict(recording.without_rule),
        weights_by_reverse_mode=sum(sizes[name] for name in recording.without_rule),
        gradient_numbers=sum(recording.sizes) // num_examples,
        counts=recording.counts,
        passed=recording.passed / num_examples,
        has_forward_mode=has_forward_mode,
    )


def wrong_blocks(passes: Passes, rows: TapeRows, expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Blocks whose first example's row is not what plain reverse mode gives for that example alone.

    The tape takes the first dimension of what layers are given to be examples. A network that moves them elsewhere,
    mixes them, overwrites what a layer was given, or uses weights where no mode sees it, is found out here.

    Args:
        passes: of the network whose rows they are.
        rows: with one cotangent.
        expected: block -> gradient; a block that is not there has none.
    """
    network = passes.network
    errors = dict.fromkeys(network.weights, 0.0)
    norms = dict.fromkeys(network.weights, 0.0)
    whole = network.layout.filled(expected, rows.outputs_BC.device)
    for tile in network.layout:
        ((_, made_BSP),) = rows.materialise([tile])
        right_P, start = network.layout.cut(whole, tile).double(), 0
        for piece in tile.pieces:
            place = slice(start, start + piece.size)
            errors[piece.block] += float((made_BSP[0, 0, place] - right_P[place]).square().sum())
            norms[piece.block] += float(right_P[place].square().sum())
            start += piece.size
    largest = sum(norms.values()) ** 0.5
    allowed, rounding = TOLERANCE.get(passes.dtype, 0.1), ROUNDING.get(passes.dtype, 1e-2)
    return {
        block: "its rows differ from those of reverse mode"
        for block, error in errors.items()
        if not error**0.5 <= allowed * norms[block] ** 0.5 + rounding * largest
    }
