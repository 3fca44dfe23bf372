"""Conjugate gradients for many right-hand sides at once: one Krylov space for all, kept conjugate to all before.

Shapes: N rows of the system, k right-hand sides, m directions so far.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from afterfit.precision import CORE, one_thread

DEPENDENT = 1e-12
"""Squared length below which a direction that had length one depends on the others, or lies in the kernel of K."""


class BlockCg(NamedTuple):
    """The state between products with K: what is asked for is K times `direction_Nk`."""

    solution_Nk: Tensor
    residual_Nk: Tensor
    direction_Nj: Tensor  # j of at most k; none are left where the residual has no part in the range of K
    directions_Nm: Tensor  # W, with W^T K W = I
    images_Nm: Tensor  # K W


def begin(rhs_Nk: Tensor, directions_Nm: Tensor | None = None, images_Nm: Tensor | None = None) -> BlockCg:
    """A right-hand side, solved as far as known conjugate directions reach; `aim` chooses the next ones."""
    rhs_Nk = rhs_Nk.to(CORE)
    none_N0 = rhs_Nk.new_zeros(len(rhs_Nk), 0)
    if directions_Nm is None or images_Nm is None:
        return BlockCg(torch.zeros_like(rhs_Nk), rhs_Nk, none_N0, none_N0, none_N0)
    with one_thread():
        amount_mk = directions_Nm.mT @ rhs_Nk
        return BlockCg(directions_Nm @ amount_mk, rhs_Nk - images_Nm @ amount_mk, none_N0, directions_Nm, images_Nm)


def aim(cg: BlockCg, preconditioned_Nk: Tensor) -> BlockCg:
    """The next directions: M^-1 residual, made conjugate to all before; twice, since once leaves what cancels.

    Full reorthogonalisation costs 4 N m k, little beside a product with K, and without it the block loses its
    conjugacy within some ten steps of a slowly falling spectrum.
    """
    with one_thread():
        direction_Nk = preconditioned_Nk.to(CORE)
        direction_Nk = direction_Nk / direction_Nk.norm(dim=0).clamp_min(torch.finfo(CORE).tiny)
        for _ in range(2):
            direction_Nk = direction_Nk - cg.directions_Nm @ (cg.images_Nm.mT @ direction_Nk)
        return cg._replace(direction_Nj=_independent(direction_Nk))


def step(cg: BlockCg, image_Nj: Tensor) -> BlockCg:
    """Go along the directions, given K times them.

    Directions along which K, the Gram of rows of length one, has no length are dropped: of duplicated rows they would
    give 0 / 0.

    Source: O'Leary (1980), doi:10.1016/0024-3795(80)90247-5, with conjugate directions normalised in K, and those
    dropped that depend on the others, as Dubrulle (2001).
    """
    with one_thread():
        directions_Nj, images_Nj = cg.direction_Nj, image_Nj.to(CORE)
        for _ in range(2):  # K is known up to rounding: conjugate in its own images
            overlap_mj = cg.directions_Nm.mT @ images_Nj
            directions_Nj = directions_Nj - cg.directions_Nm @ overlap_mj
            images_Nj = images_Nj - cg.images_Nm @ overlap_mj
        core_jj = directions_Nj.mT @ images_Nj
        values_j, vectors_jj = torch.linalg.eigh((core_jj + core_jj.mT) / 2)
        kept = values_j > DEPENDENT
        whitener_ji = vectors_jj[:, kept] / values_j[kept].sqrt()
        directions_Ni, images_Ni = directions_Nj @ whitener_ji, images_Nj @ whitener_ji
        amount_ik = directions_Ni.mT @ cg.residual_Nk
        return BlockCg(
            cg.solution_Nk + directions_Ni @ amount_ik,
            cg.residual_Nk - images_Ni @ amount_ik,
            cg.direction_Nj[:, :0],
            torch.cat([cg.directions_Nm, directions_Ni], dim=1),
            torch.cat([cg.images_Nm, images_Ni], dim=1),
        )


def solve(
    product: Callable[[Tensor], Tensor], rhs_Nk: Tensor, precondition: Callable[[Tensor], Tensor], num_steps: int
) -> BlockCg:
    """All steps in one place, for a K that is at hand."""
    cg = begin(rhs_Nk)
    for _ in range(num_steps):
        cg = aim(cg, precondition(cg.residual_Nk))
        if not cg.direction_Nj.shape[1]:
            break
        cg = step(cg, product(cg.direction_Nj))
    return cg


def _independent(columns_Nk: Tensor) -> Tensor:
    """An orthonormal basis of the columns' span; what little is left of a column that had length one is rounding."""
    core_kk = columns_Nk.mT @ columns_Nk
    values_k, vectors_kk = torch.linalg.eigh((core_kk + core_kk.mT) / 2)
    kept = values_k > DEPENDENT
    return columns_Nk @ (vectors_kk[:, kept] / values_k[kept].sqrt())
