"""What the stages of a null-space posterior will cost; see `cost`.

Work in float64, of Grams, factors and conjugate directions, counts twice: the reference device does
half as many of those operations a second. How often an iterative solver passes is what is expected of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from afterfit.algebra import Unit
from afterfit.methods.projection.certificate import NUM_ISOTROPIC
from afterfit.methods.projection.counts import CORE_BYTES, MEASURED, WIDE, Choice, RowCounts
from afterfit.methods.projection.problem import rows_passes
from afterfit.methods.projection.scale import NUM_DRAWS
from afterfit.plan.counted import Counted, row_bytes
from afterfit.plan.sizes import Sizes

SCALE_ROUNDS = 5
"""Of the search for a loss change; other rules take one."""


def _rows_of(recipe: Any, sizes: Sizes) -> RowCounts:
    """Sizes stand for an outline."""
    return RowCounts(recipe.protected, sizes)  # type: ignore[arg-type]


def _seen(recipe: Any, sizes: Sizes) -> Sizes:
    """With the cotangents of the protected rows: one of a loss."""
    return replace(sizes, num_samples=1) if recipe.protected.kernel == "loss" else sizes


def _pass_flops(recipe: Any, num_columns: int, sizes: Sizes) -> float:
    """R V, and R^T W as much, by the way that takes less; rows of layers are explicit."""
    rows = _rows_of(recipe, sizes)
    if recipe.protected.kernel == "per_layer":
        return rows.one_pass(num_columns)
    return _seen(recipe, sizes).times(recipe.protected.count(sizes), num_columns)


def _widest(units: Sequence[Unit]) -> float:
    """Examples of the largest shard."""
    return max((unit.cost for unit in units), default=0.0)


def _lengths(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:
    rows, count = _rows_of(recipe, sizes), recipe.protected.count(sizes)
    squares = 2.0 * rows.rows_each * (1 if recipe.protected.kernel == "per_layer" else rows.rows_each)
    numbers = CORE_BYTES * recipe.protected.rows_each(sizes)
    held = row_bytes("train", _seen(recipe, sizes))
    work = count * (rows.making + squares * sizes.num_weights)
    return Counted(work, held + _widest(units) * numbers, count * numbers, device_bytes=held)


def _gram(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    rows, width = _rows_of(recipe, sizes), 8.0 if recipe.is_exact else 4.0
    stored = width * rows.num_layers * float(rows.num_rows) ** 2
    return Counted(rows.gram_flops(is_exact=recipe.is_exact), rows.gram_bytes(is_exact=recipe.is_exact), stored)


def _factor(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:
    assert sizes.protected is not None
    rows = RowCounts(sizes.protected, sizes)  # type: ignore[arg-type]
    width = 8.0 if recipe.is_exact else 4.0
    order = CORE_BYTES * rows.num_rows if recipe.is_exact else 0.0
    stored = len(units) * (width * float(rows.num_rows) ** 2 + order)  # of full rank
    held = rows.factor_bytes(is_exact=recipe.is_exact)
    return Counted(rows.factor_flops(is_exact=recipe.is_exact), held, stored)


def _blocks(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    rows = _rows_of(recipe, sizes)
    held, stored = rows.block_bytes(recipe.block_size)
    return Counted(rows.block_flops(recipe.block_size), held, stored)


def _image(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:
    kept = sizes.num_features
    numbers = CORE_BYTES * recipe.protected.rows_each(sizes) * kept
    held = row_bytes("train", _seen(recipe, sizes))
    explicit = held + sizes.columns_bytes(kept) + _widest(units) * numbers
    stored = recipe.protected.count(sizes) * numbers
    return Counted(_pass_flops(recipe, kept, sizes), explicit, stored, device_bytes=held)


def _drawn(recipe: Any, choice: Choice, sizes: Sizes) -> Counted:
    """A chunk of draws; it holds them as columns, and the dual vectors."""
    rows, columns = _rows_of(recipe, sizes), recipe.num
    passes, sweeps = rows_passes(rows, choice, columns)
    allowed = min(1.0, recipe.max_passes / max(passes + sweeps, 1)) if choice.solver != "exact" else 1.0
    work = passes * _pass_flops(recipe, columns, sizes) + sweeps * rows.one_sweep(columns)
    work += rows.solve_flops(choice, columns, recipe.block_size, sizes.num_features)
    draws = float(sizes.num_weights * columns * sizes.state_bytes)
    held = row_bytes("train", _seen(recipe, sizes))
    explicit = held + draws + rows.dual_bytes(choice, columns, sizes.num_features)
    return Counted(allowed * work, explicit, draws, device_bytes=held)


def _dual(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    choice = Choice(recipe.solver) if recipe.solver == "exact" else Choice(recipe.solver, recipe.preconditioner)
    assert choice in MEASURED
    return _drawn(recipe, choice, sizes)


def _alternating(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    return _drawn(recipe, Choice("alternating"), sizes)


def _complement(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    rank, columns = sizes.num_features, recipe.num
    widest = max(tile.size for tile in sizes.layout)
    work = WIDE * 2.0 * sizes.num_weights * (rank**2 + 2 * rank * columns)
    held = CORE_BYTES * (widest * (rank + 2 * columns) + rank * (rank + 3 * columns))
    return Counted(work, held, float(sizes.num_weights * columns * sizes.state_bytes))


def _certificate(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    noise = min(NUM_ISOTROPIC, recipe.num)
    work = sizes.forward(recipe.protected.count(sizes)) * (3 * (recipe.num + noise) + 2)
    copies = 2.0 * sizes.state_bytes * sizes.num_weights  # one direction, as columns and as blocks
    draws = sizes.columns_bytes(recipe.num)
    stored = CORE_BYTES * (recipe.num + noise)
    return Counted(work, copies + draws, stored, is_budgeted=False, device_bytes=copies)


def _scale(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    looked_at = min(NUM_DRAWS, sizes.num_chunk_draws)
    rounds = SCALE_ROUNDS if recipe.rule == "loss_change" else 1
    work = rounds * sizes.forward(recipe.protected.count(sizes)) * (1 + looked_at)
    weights = float(looked_at * sizes.num_weights * sizes.state_bytes)  # draws, and the networks moved by them
    return Counted(work, 2 * weights, 0.0, is_budgeted=False, device_bytes=weights)


PROJECTION_COSTS: Final[Mapping[str, Callable[[Any, Sequence[Unit], Sizes], Counted]]] = {
    "RowLengths": _lengths,
    "ProtectedGram": _gram,
    "GramFactor": _factor,
    "BlockFactors": _blocks,
    "BasisImage": _image,
    "DualProjection": _dual,
    "AlternatingProjection": _alternating,
    "ComplementDraws": _complement,
    "Certificate": _certificate,
    "Scale": _scale,
}
"""As `COSTS`."""
