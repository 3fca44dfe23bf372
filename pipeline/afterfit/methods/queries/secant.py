"""Conjugate gradients along secants: solves F(D) = B for an F that need not be linear, by differences of F alone.

F(0) = 0, and its derivative is symmetric. A step evaluates F(D + p) - F(D) along a direction p, which is what a
Hessian-vector product would give. For a linear F these are conjugate gradients with preconditioning; for one that is
nearly linear, as within a refit of small lambda, the steps are theirs but for the curvature's change. What F is at the
solution is interpolated, so that it is evaluated there at the end; where that was not as expected, the steps go on from
there. Where F need not be convex and shows no positive curvature, a column begins again with a tenth of its B, over
which F is straighter, until that is too little to tell. All columns share the evaluations, each for what it needs.

Shapes: P weights by tiles, k columns, each a problem of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from afterfit.algebra import State
from afterfit.methods.queries.preconditioner import dots

SHRINK, SMALLEST = 0.1, 1e-5
"""Of B, where F bends too much over it, each time, and in all."""
Tiles = dict[str, Tensor]
Precondition = Callable[[Mapping[str, Tensor]], Tiles]


@dataclass(frozen=True)
class Kind:
    """What is known of an F.

    Attributes:
        is_linear: so that it bends nowhere.
        is_convex: so that a curvature that is not positive is rounding.
        num_sides: of each problem, that have one part of B: the columns of the first side, then those of the other.
    """

    is_linear: bool
    is_convex: bool
    num_sides: int = 1


@dataclass(frozen=True)
class Secant:
    """The state between evaluations."""

    solution: Tiles  # D
    residual: Tiles  # B - F(D), as it is known
    direction: Tiles  # p, as long as the last step was, so that little is extrapolated
    scale_k: Tensor  # how many times longer it is than conjugate gradients' own
    lengths_k: Tensor  # |B|
    rho_k: Tensor  # residual times preconditioned residual
    is_running_k: Tensor
    is_check_k: Tensor  # whether the next evaluation is from 0 to D
    is_positive_k: Tensor  # whether F had positive curvature along all directions so far
    is_stuck_k: Tensor  # whether rounding is in the way
    ended_k: Tensor  # relative residual where F was last evaluated at D
    shrunk_k: Tensor  # part of the given B that is solved for
    evaluations: int = 0

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to evaluate."""
        return not bool((self.is_running_k | self.is_check_k).any())

    def move(self) -> tuple[Mapping[str, Tensor] | None, Tiles]:
        """Displacements, from where (None: from 0) and by how much, whose change of F is needed next."""
        if not bool(self.is_check_k.any()):
            return self.solution, self.direction
        if bool(self.is_check_k.all()):
            return None, self.solution
        start = {name: tile * (~self.is_check_k).to(tile) for name, tile in self.solution.items()}
        return start, {
            name: torch.where(self.is_check_k.to(tile.device), self.solution[name], tile)
            for name, tile in self.direction.items()
        }

    @property
    def relative_k(self) -> Tensor:
        """|B - F(D)| / |B|."""
        return dots(self.residual, self.residual).sqrt() / self.lengths_k

    def state(self) -> State:
        """As flat tensors."""
        kept: State = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, dict):
                kept |= {f"{one.name}/{name}": tile for name, tile in value.items()}
            else:
                kept[f"at/{one.name}"] = torch.as_tensor(value)
        return kept

    @classmethod
    def of(cls, state: State) -> Secant:
        """The inverse."""
        kept: dict[str, Any] = {}
        for one in fields(cls):
            place = f"at/{one.name}"
            if place not in state:
                prefix = f"{one.name}/"
                kept[one.name] = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
            else:  # what has a default is a plain number
                kept[one.name] = state[place] if one.default is MISSING else type(one.default)(state[place])
        return cls(**kept)


def begin(columns: Mapping[str, Tensor], precondition: Precondition) -> Secant:
    """At D = 0, where the residual is B."""
    residual = {name: tile.clone() for name, tile in columns.items()}
    direction = precondition(residual)
    lengths_k = dots(residual, residual).sqrt()
    is_none_k = torch.zeros_like(lengths_k, dtype=torch.bool)
    return Secant(
        solution={name: torch.zeros_like(tile) for name, tile in residual.items()},
        residual=residual,
        direction=direction,
        scale_k=torch.ones_like(lengths_k),
        rho_k=dots(residual, direction),
        is_running_k=lengths_k > 0,  # an output that no weight moves has no variance
        is_check_k=is_none_k,
        is_positive_k=~is_none_k,
        is_stuck_k=is_none_k,
        ended_k=torch.full_like(lengths_k, torch.inf),
        shrunk_k=torch.ones_like(lengths_k),
        lengths_k=lengths_k.clamp_min(torch.finfo(lengths_k.dtype).tiny),
    )


def step(
    at: Secant,
    change: Tiles,
    rhs: Mapping[str, Tensor],
    precondition: Precondition,
    tolerance: float,
    kind: Kind,
) -> Secant:
    """Go on, given what the move that was asked for changes F by.

    Args:
        at: where it stands.
        change: of F, by tiles; it is overwritten.
        rhs: B, as it was given at the beginning.
        precondition: M^-1.
        tolerance: of |B - F(D)| / |B|.
        kind: what F is.
    """
    checks_k = at.is_check_k
    if bool(checks_k.any()):  # what is left is by how much F(D) is above what it was known to be
        for name, tile in change.items():
            tile -= (rhs[name] * at.shrunk_k.to(tile) - at.residual[name]) * checks_k.to(tile)
    curvature_k = dots(at.direction, change)
    is_bent_k = at.is_running_k & ~checks_k & ~(curvature_k > 0)
    moves_k = at.is_running_k & ~checks_k & ~is_bent_k
    amount_k = torch.where(moves_k, dots(at.residual, at.direction) / curvature_k.clamp_min(1e-300), 0.0)
    moved = replace(
        at,
        solution=_plus(at.solution, at.direction, amount_k),
        residual=_plus(at.residual, change, -torch.where(checks_k, 1.0, amount_k)),
        evaluations=at.evaluations + 1,
    )
    steepest = precondition(moved.residual)
    relative_k = moved.relative_k
    is_flat_k = is_bent_k & (not kind.is_convex)
    begins_k = is_flat_k & (at.shrunk_k > SMALLEST) & (not kind.is_linear)
    is_positive_k = at.is_positive_k & ~(is_flat_k & ~begins_k)
    # Where the last end was about as good, rounding is in the way.
    is_stuck_k = at.is_stuck_k | is_bent_k | (checks_k & (relative_k > at.ended_k / 2))
    is_running_k = (checks_k | moves_k) & is_positive_k & ~is_stuck_k & (relative_k > tolerance)
    conjugacy_k = torch.where(moves_k, (-amount_k * dots(steepest, change) / at.rho_k).clamp_min(0), 0.0)
    scale_k = torch.where(moves_k & is_running_k, amount_k * at.scale_k, at.scale_k)
    found = replace(
        moved,
        direction={
            name: (tile + at.direction[name] * (conjugacy_k / at.scale_k).to(tile)) * scale_k.to(tile)
            for name, tile in steepest.items()
        },
        scale_k=scale_k,
        rho_k=dots(moved.residual, steepest),
        is_running_k=is_running_k,
        is_check_k=(moves_k & ~is_running_k) | (is_bent_k & kind.is_convex),
        is_positive_k=is_positive_k,
        is_stuck_k=is_stuck_k,
        ended_k=torch.where(checks_k, relative_k, at.ended_k),
    )
    follows_k = checks_k & is_running_k
    if bool(follows_k.any()):
        found = _corrected(found, at, change, follows_k, precondition)
    return _again(found, begins_k, rhs, precondition, kind.num_sides) if bool(begins_k.any()) else found


def _corrected(found: Secant, at: Secant, excess: Tiles, which_k: Tensor, precondition: Precondition) -> Secant:
    """Directions, in place, of columns that were checked: conjugate to those before, but for what was not known."""
    mine, scale_k = _of(excess, which_k), at.scale_k[which_k]
    correction = precondition(mine)
    direction = _plus(_of(at.direction, which_k), correction, -scale_k)
    is_steepest_k = ~(dots(_of(found.residual, which_k), direction) > 0)
    for name, tile in found.direction.items():  # which are the steepest, as long as those before
        steepest = tile[:, which_k.to(tile.device)] / scale_k.to(tile)
        tile[:, which_k.to(tile.device)] = torch.where(is_steepest_k.to(tile.device), steepest, direction[name])
    return replace(found, scale_k=found.scale_k.masked_scatter(which_k, torch.where(is_steepest_k, 1.0, scale_k)))


def _again(
    at: Secant, begins_k: Tensor, rhs: Mapping[str, Tensor], precondition: Precondition, num_sides: int
) -> Secant:
    """Columns, in place, with all their sides, from D = 0 with a tenth of B, along which F is straighter."""
    which_k = begins_k.view(num_sides, -1).any(dim=0).repeat(num_sides)
    shrunk_k = torch.where(which_k, at.shrunk_k * SHRINK, at.shrunk_k)
    start = begin({name: tile * shrunk_k[which_k].to(tile) for name, tile in _of(rhs, which_k).items()}, precondition)
    for old, new in ((at.solution, start.solution), (at.residual, start.residual), (at.direction, start.direction)):
        for name, tile in old.items():
            tile[:, which_k.to(tile.device)] = new[name]
    return replace(
        at,
        scale_k=at.scale_k.masked_scatter(which_k, start.scale_k),
        lengths_k=at.lengths_k.masked_scatter(which_k, start.lengths_k),
        rho_k=at.rho_k.masked_scatter(which_k, start.rho_k),
        is_running_k=at.is_running_k | which_k,
        is_check_k=at.is_check_k & ~which_k,
        is_positive_k=at.is_positive_k | which_k,
        is_stuck_k=at.is_stuck_k & ~which_k,
        ended_k=at.ended_k.masked_fill(which_k, torch.inf),
        shrunk_k=shrunk_k,
    )


def _of(columns: Mapping[str, Tensor], which_k: Tensor) -> Tiles:
    return {name: tile[:, which_k.to(tile.device)] for name, tile in columns.items()}


def _plus(left: Tiles, right: Mapping[str, Tensor], amount_k: Tensor) -> Tiles:
    return {name: tile + right[name] * amount_k.to(tile) for name, tile in left.items()}
