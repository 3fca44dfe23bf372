"""Solvers of K X = B between passes over the data, K being the dual Gram of the protected rows of unit length.

Shapes: n protected examples, R rows of one, N = n R rows in all, k draws.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from afterfit.algebra import State
from afterfit.linalg.conjugate_gradients import BlockCg, aim, begin, step
from afterfit.linalg.pivoted_cholesky import TiledSystem, solve_by_factor
from afterfit.network.workbench import Workbench
from afterfit.precision import CORE, one_thread
from afterfit.resources import GB

Preconditioner = Literal["none", "nystrom", "sweep", "cholesky"]


class Wish(NamedTuple):
    """What a solver needs next: K times a direction, a sweep of block projections of a residual, or nothing more."""

    kind: Literal["product", "sweep", "nothing"]
    weights_nRj: Tensor | None = None  # the direction, or the residual


class DualSolver(Protocol):
    """Solves K X = B as far as it can, a pass at a time. Its state is tensors named "dual/..."."""

    def begin(self, rhs_nRk: Tensor, target_k: Tensor, before: State) -> State:
        """A new right-hand side.

        Args:
            rhs_nRk: B.
            target_k: residual of a row that is small enough, for each draw.
            before: the state after the one before, or empty.
        """
        ...

    def wish(self, state: State) -> Wish:
        """What is needed next."""
        ...

    def take(self, state: State, given_nRj: Tensor) -> State:
        """What was asked for: a product, or a preconditioned residual."""
        ...

    def solution(self, state: State) -> Tensor:
        """X as far as it is known, (n, R, k)."""
        ...


class Exact:
    """By the factor of K in float64 with refinement; no product is needed. One factor for each layer with own rows."""

    def __init__(self, bench: Workbench) -> None:
        self._gram, self._factor = bench.input("gram"), bench.input("factor")
        self._memory_gb = bench.memory_gb
        self._systems: dict[str, TiledSystem] = {}

    def begin(self, rhs_nRk: Tensor, target_k: Tensor, before: State) -> State:
        """Solved at once."""
        return {"dual/solution": by_layer(rhs_nRk, len(self._gram.families), self._solve)}

    def wish(self, state: State) -> Wish:
        """Nothing."""
        return Wish("nothing")

    def solution(self, state: State) -> Tensor:
        """X."""
        return state["dual/solution"]

    def take(self, state: State, given_nRj: Tensor) -> State:
        """Not asked for."""
        raise NotImplementedError

    def _solve(self, layer: str, rhs_Nk: Tensor) -> Tensor:
        all_bytes = 16.0 * len(rhs_Nk) ** 2 * len(self._gram.families)
        if all_bytes > self._memory_gb * GB / 2:
            return self._system(layer).solve(rhs_Nk)
        if layer not in self._systems:
            system = self._system(layer)
            self._systems[layer] = replace(system, gram=dict(system.gram), lower=dict(system.lower))
        return self._systems[layer].solve(rhs_Nk)

    def _system(self, layer: str) -> TiledSystem:
        """By tiles that are read when they are needed."""
        tiles = self._gram.tiles(f"gram-{layer}"), self._factor.tiles(f"lower-{layer}")
        return TiledSystem(*tiles, self._factor.tensor(f"order-{layer}"))


class BlockCgSolver:
    """Block conjugate gradients on K; what one right-hand side taught is used for the next.

    Args:
        bench: whose inputs have what the preconditioner needs: `factor`, or `image`.
        preconditioner: that a sweep makes, or one of `PRECONDITIONERS`.
    """

    def __init__(self, bench: Workbench, preconditioner: Preconditioner) -> None:
        self._is_swept = preconditioner == "sweep"
        self._precondition = None if self._is_swept else PRECONDITIONERS[preconditioner](bench)

    def begin(self, rhs_nRk: Tensor, target_k: Tensor, before: State) -> State:
        """The part of the solution that known directions give."""
        known = (before["dual/directions"], before["dual/images"]) if before else ()
        cg = begin(rhs_nRk.flatten(0, 1), *known)
        return self._aimed(cg, {"dual/target": target_k, "dual/shape": torch.tensor(rhs_nRk.shape)})

    def _aimed(self, cg: BlockCg, more: State) -> State:
        """With the next directions, where no sweep is needed for them and the residual is too large still."""
        if self._precondition is not None and not _is_small(cg, more["dual/target"]):
            residual_nRk = cg.residual_Nk.unflatten(0, _shape(more))
            cg = aim(cg, self._precondition(residual_nRk).flatten(0, 1))
        return _packed(cg, more)

    def wish(self, state: State) -> Wish:
        """A product, unless the residual is small, or no direction is left."""
        cg, shape = _unpacked(state), _shape(state)
        if cg.direction_Nj.shape[1]:
            return Wish("product", cg.direction_Nj.unflatten(0, shape))
        if self._is_swept and not _is_small(cg, state["dual/target"]) and "dual/end" not in state:
            return Wish("sweep", cg.residual_Nk.unflatten(0, shape))
        return Wish("nothing")

    def solution(self, state: State) -> Tensor:
        """The best so far."""
        return state["dual/solution"].unflatten(0, _shape(state))

    def take(self, state: State, given_nRj: Tensor) -> State:
        """A step along the directions, or directions from a swept residual."""
        cg, given_Nj = _unpacked(state), given_nRj.flatten(0, 1)
        more = {name: state[name] for name in ("dual/target", "dual/shape")}
        if cg.direction_Nj.shape[1]:
            return self._aimed(step(cg, given_Nj), more)
        cg = aim(cg, given_Nj)
        ended = {} if cg.direction_Nj.shape[1] else {"dual/end": torch.tensor(1)}
        return _packed(cg, more | ended)


def _is_small(cg: BlockCg, target_k: Tensor) -> bool:
    return bool((cg.residual_Nk.abs().amax(dim=0) <= target_k).all()) if len(cg.residual_Nk) else True


def _packed(cg: BlockCg, more: State) -> State:
    names = {
        "dual/solution": cg.solution_Nk,
        "dual/residual": cg.residual_Nk,
        "dual/direction": cg.direction_Nj,
        "dual/directions": cg.directions_Nm,
        "dual/images": cg.images_Nm,
    }
    return {**more, **names}


def _unpacked(state: State) -> BlockCg:
    names = ("solution", "residual", "direction", "directions", "images")
    return BlockCg(*(state[f"dual/{name}"] for name in names))


def _shape(state: State) -> tuple[int, int]:
    num_examples, rows_each, _ = state["dual/shape"].tolist()
    return num_examples, rows_each


Precondition = Callable[[Tensor], Tensor]
"""From a residual (n, R, k) to M^-1 times it."""


def cholesky_preconditioner(bench: Workbench) -> Precondition:
    """The factor in float32 of K + 1e-6 lambda_1 I, one for each layer with rows of its own."""
    factor = bench.input("factor")
    lower = {
        name.rpartition("-")[2]: dict(factor.tiles(name).items())
        for name in factor.families
        if name.startswith("lower-")
    }

    def solve(layer: str, residual_Nk: Tensor) -> Tensor:
        with one_thread():
            return solve_by_factor(lower[layer], residual_Nk.float()).to(CORE)

    return lambda residual_nRk: by_layer(residual_nRk, len(lower), solve)


def nystrom_preconditioner(bench: Workbench) -> Precondition:
    """From F = R V, V being orthonormal columns: K is about F F^T + mu I.

    mu is ten times the average of what F F^T leaves of K's diagonal. The least eigenvalue of F^T F, which is usual, is
    that of a basis of K itself; this one is of the GGN, and its last columns have little to do with K: on a LeNet with
    5 000 rows a basis of rank 124 left 7.8e-4 after 48 steps that way, 3.1e-4 this way, and 3.7e-4 without it.

    Source: Frangella, Tropp, Udell (2023), arXiv:2110.02820.
    """
    image_Nl = bench.input("image").tensor("image").flatten(0, 1).to(CORE)
    with one_thread():
        values_l, vectors_ll = torch.linalg.eigh(image_Nl.mT @ image_Nl)
        kept = values_l > 1e-12 * values_l.amax()
        rest = max(float(len(image_Nl) - values_l.sum()) / max(len(image_Nl) - len(values_l), 1), 0.0)
        shift = max(10 * rest, float(values_l.amax()) * 1e-6)
        leading_Nl = image_Nl @ (vectors_ll[:, kept] / values_l[kept].sqrt())
        gains_l = shift / (values_l[kept] + shift) - 1

    def precondition(residual_nRk: Tensor) -> Tensor:
        residual_Nk = residual_nRk.flatten(0, 1)
        with one_thread():
            solved_Nk = residual_Nk + leading_Nl @ (gains_l[:, None] * (leading_Nl.mT @ residual_Nk))
        return solved_Nk.unflatten(0, residual_nRk.shape[:2])

    return precondition


PRECONDITIONERS: Mapping[str, Callable[[Workbench], Precondition]] = {
    "none": lambda bench: lambda residual_nRk: residual_nRk,  # noqa: ARG005  # rows of unit length: K's diagonal is one
    "nystrom": nystrom_preconditioner,
    "cholesky": cholesky_preconditioner,
}


def by_layer(values_nRk: Tensor, num_layers: int, solve: Callable[[str, Tensor], Tensor]) -> Tensor:
    """Apply a solver to the rows of each layer, (n S, k); rows of an example are in the order (layer, cotangent)."""
    values_nLSk = values_nRk.unflatten(1, (num_layers, -1))
    solved_nLSk = torch.empty_like(values_nLSk)
    for layer in range(num_layers):
        part_nSk = values_nLSk[:, layer]
        solved_nLSk[:, layer] = solve(f"{layer:02d}", part_nSk.flatten(0, 1)).unflatten(0, part_nSk.shape[:2])
    return solved_nLSk.flatten(1, 2)
