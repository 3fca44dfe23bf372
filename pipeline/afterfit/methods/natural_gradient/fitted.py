"""What a natural-gradient fit leaves behind: U, D, the mean as weights that a network loads, and what to know of it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from afterfit.algebra import Result, State
from afterfit.layout import Layout
from afterfit.linalg.low_rank import entropy
from afterfit.network.workbench import Workbench
from afterfit.precision import CORE

LEAST_DIAGONAL = 1e-3
"""Of D, below which the mean soon takes steps that are too long."""
LEAST_WAY = 0.01
"""Of the mean's length; where all steps together were shorter, the mean hardly moved."""


def fitted(state: State, progress: pa.Table, bench: Workbench) -> Result:
    """The result, from the whole last state; one block at a time."""
    layout = bench.layout
    facts = {name: _known(progress, name)[-1] for name in ("elbo", "log_det_precision", "divergence")}
    log_det = torch.tensor(facts["log_det_precision"], dtype=CORE)
    facts |= {"entropy": float(entropy(log_det, layout.num_weights)), "scale": 1.0}
    facts["smallest_diagonal"] = min(_known(progress, "smallest_diagonal"))
    families: dict[str, Any] = {family: _tiles(state, family, layout) for family in ("factor", "diagonal")}
    point = bench.input("network")
    entries: dict[str, list[Any]] = {} if point.facts.get("is_loaded") else dict(point.facts["state"])
    chosen = {block.name for block in layout.blocks}
    for family in dict.fromkeys(place for name, (place, _) in entries.items() if name not in chosen):
        kept = [name for name, (place, _) in entries.items() if place == family and name not in chosen]
        families[family] = _named(point.tiles(family), kept)
    family = f"mean_{str(bench.network.dtype).removeprefix('torch.')}"
    families[family] = _blocks(state, layout, bench.network.dtype)
    entries |= {block.name: [family, list(block.shape)] for block in layout.blocks}
    notes = list(notes_of(facts["smallest_diagonal"], sum(_known(progress, "moved"))))
    return Result(tensors=families, facts={**facts, "state": entries, "notes": notes})


def _known(progress: pa.Table, name: str) -> list[float]:
    return progress.column(name).drop_null().to_pylist()


def _tiles(state: State, family: str, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    for tile in layout.tiles:
        yield tile.name, state[f"{family}/{tile.name}"]


def _named(tiles: Mapping[str, Tensor], names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        yield name, tiles[name]


def _blocks(state: State, layout: Layout, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The mean of each block, flat, from its pieces."""
    parts: list[Tensor] = []
    sizes = {block.name: block.size for block in layout.blocks}
    for tile in layout.tiles:
        mean_p, start = state[f"mean/{tile.name}"], 0
        for piece in tile.pieces:
            parts.append(mean_p[start : start + piece.size])
            start += piece.size
            if sum(map(len, parts)) == sizes[piece.block]:
                yield piece.block, torch.cat(parts).to(dtype)
                parts = []


def notes_of(smallest: float, way: float) -> Iterator[str]:
    """What people should know of a precision that collapsed, or of a mean that stayed where it was.

    Args:
        smallest: of D, at any step.
        way: all steps of the mean together, in parts of its length.
    """
    if smallest < LEAST_DIAGONAL:
        yield (
            f"The smallest precision on the diagonal fell to {smallest:.1e}, where steps are too long: lower "
            "`method.learning_rate` and `method.precision_rate`, or raise `method.initial_precision`, or the prior "
            "precision of the group by `method.group_precisions`."
        )
    if way < LEAST_WAY:
        yield (
            f"All steps together moved the mean by {way:.1e} of its length: the fit is frozen. Raise "
            "`method.learning_rate`, lower `method.initial_precision`, or let a regression start from a low noise "
            "precision with `method.noise_ramp`."
        )
