"""Which outputs of an example are asked about, and what is then known of the others.

A query gives the covariance of its output with all of the example's. Sigma0 = J (G_K + delta)^-1 J^T of the leading
eigenpairs is above Sigma = J (G + delta)^-1 J^T, since G_K is below G. Their difference is positive semi-definite and
known in the asked columns; its Nystrom approximation from these is below it, and equal to it there. So Sigma0 less that
is exact where it was asked about, and above Sigma elsewhere. What of it the asked columns of Sigma do not tell counts
in part, as variances are a part of Sigma0's where both are known: an estimate, exact and a covariance as before.

Shapes: B examples, C outputs, A of them asked about, K eigenpairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from afterfit.algebra import Batch, pieces_of
from afterfit.methods.queries.solving import Solver, beside, zero_tiles
from afterfit.precision import CORE, one_thread
from afterfit.rows.protocol import Cotangents

Outputs = int | tuple[int, ...] | None
"""So many of the largest ones of each example, certain ones, or all."""
RELATIVE = 1e-6
"""Part of the largest eigenvalue below which one is what solving leaves."""


def num_asked(outputs: Outputs, num_outputs: int) -> int:
    """A."""
    if outputs is None:
        return num_outputs
    return len(outputs) if isinstance(outputs, tuple) else min(outputs, num_outputs)


def places_of(solver: Solver, batch: Batch, outputs: Outputs) -> Tensor:
    """Numbers of the outputs that are asked about, (B, A)."""
    if isinstance(outputs, int):
        with torch.no_grad():
            found = [solver.response.network(part.inputs) for part in pieces_of(batch, solver.bench.micro_batch)]
        asked = num_asked(outputs, solver.bench.num_outputs)
        return torch.cat(found).cpu().topk(asked, dim=1).indices.sort(dim=1).values
    chosen = range(solver.bench.num_outputs) if outputs is None else sorted(outputs)
    return torch.tensor(chosen).expand(len(batch), -1)


def at(places_BA: Tensor) -> Cotangents:
    """Cotangents (B, A, C) of these outputs."""
    return lambda outputs_BC: one_hot(places_BA, outputs_BC.shape[1]).to(outputs_BC)


def gradients_of(solver: Solver, batch: Batch, places_BA: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The queries of some examples, these outputs of each, by tiles (P_tile, B A); and all outputs (B, C)."""
    columns, outputs, first = [], [], 0
    for part in pieces_of(batch, solver.bench.micro_batch):
        mine_BA = places_BA[first : first + len(part)]
        into = zero_tiles(solver.response, mine_BA.numel())
        outputs.append(solver.response.add_rows(part, into, cotangents=at(mine_BA)).to(CORE).cpu())
        columns.append(into)
        first += len(part)
    return beside(columns), torch.cat(outputs)


def among(found_BCA: Tensor, places_BA: Tensor) -> Tensor:
    """Of the outputs that are asked about with each other, (B, A, A)."""
    chosen_BAA = found_BCA.gather(1, places_BA[:, :, None].expand(-1, -1, found_BCA.shape[2]))
    return (chosen_BAA + chosen_BAA.mT) / 2


def completed(solver: Solver, batch: Batch, found_BCA: Tensor, places_BA: Tensor) -> Tensor:
    """(B, C, C) in float64 from the columns that are known; cost of the others: C rows an example, once."""
    if places_BA.shape[1] == found_BCA.shape[1]:
        return among(found_BCA, places_BA)
    asked_BCA = _with_rows(found_BCA, places_BA, among(found_BCA, places_BA))
    above_BCC = torch.cat([known(solver, part) for part in pieces_of(batch, solver.bench.micro_batch)])
    columns_BCA = above_BCC.gather(2, places_BA[:, None].expand(-1, above_BCC.shape[1], -1))
    above_BA, found_BA = (among(of, places_BA).diagonal(dim1=1, dim2=2) for of in (columns_BCA, found_BCA))
    seen_BCC = _through(found_BCA, places_BA)
    unseen_BCC = above_BCC - _through(columns_BCA - found_BCA, places_BA) - seen_BCC
    part_B = (found_BA.sum(dim=1) / above_BA.sum(dim=1).clamp_min(torch.finfo(CORE).tiny)).clamp(0, 1)
    whole_BCC = seen_BCC + part_B[:, None, None] * unseen_BCC
    whole_BCC.diagonal(dim1=1, dim2=2).clamp_min_(0)
    return _with_rows(_with_rows(whole_BCC.mT, places_BA, asked_BCA.mT).mT, places_BA, asked_BCA.mT)


def _with_rows(of_BCC: Tensor, places_BA: Tensor, rows_BAC: Tensor) -> Tensor:
    """With other rows at these places."""
    return of_BCC.scatter(1, places_BA[:, :, None].expand_as(rows_BAC), rows_BAC)


def _through(columns_BCA: Tensor, places_BA: Tensor) -> Tensor:
    """X_CA X_AA^-1 X_AC of a positive semi-definite X, the largest matrix below it that these columns tell."""
    chosen_BAA = among(columns_BCA, places_BA)
    scale_BA = chosen_BAA.diagonal(dim1=1, dim2=2)  # outputs may have units of their own
    scale_BA = torch.where(scale_BA > 0, scale_BA, torch.inf).rsqrt()
    with one_thread():  # more of them change bits
        values_BA, vectors_BAA = torch.linalg.eigh(scale_BA[:, :, None] * chosen_BAA * scale_BA[:, None])
    is_told_BA = values_BA > RELATIVE * values_BA[:, -1:].clamp_min(0)
    inverse_BA = torch.where(is_told_BA, values_BA, torch.inf).rsqrt()
    roots_BCA = (columns_BCA * scale_BA[:, None] @ vectors_BAA) * inverse_BA[:, None]
    return roots_BCA @ roots_BCA.mT


def known(solver: Solver, batch: Batch) -> Tensor:
    """Sigma0 of each example, (B, C, C) in float64, by the leading eigenpairs and the prior."""
    preconditioner = solver.preconditioner
    prior = preconditioner.prior_precision
    inverse_K = 1 / (preconditioner.values_K + prior) - 1 / prior
    gram_BCC = solver.response.gram(batch).to(CORE).cpu()
    features_BCK = solver.response.times(batch, preconditioner.basis).to(CORE).cpu()
    return gram_BCC / prior + (features_BCK * inverse_K) @ features_BCK.mT
