"""A tiny network with everything dense, and queries of it."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from afterfit import ImplicitHessian
from afterfit.algebra import Batch, Unsaved
from afterfit.methods.queries.chosen import Outputs, gradients_of, places_of
from afterfit.methods.queries.covariance import Answer, QueryCovariances, answered
from afterfit.methods.queries.preconditioner import Preconditioner
from afterfit.methods.queries.response import Kind, response_on
from afterfit.methods.queries.solving import Solver
from afterfit.network.likelihoods import Gaussian
from afterfit.plan.bench import Bench
from afterfit.plan.resolve import request_from_objects
from cases import NetworkCase


class Dense:
    """Everything of a tiny network, by plain autograd."""

    def __init__(self, case: NetworkCase) -> None:
        self.case, self.network = case, case.network()
        self.batch = case.examples.batch(range(case.num_examples))
        layout = self.network.layout

        def outputs(flat: Tensor) -> Tensor:
            cut = {tile.name: flat[tile.offset : tile.offset + tile.size] for tile in layout}
            return self.network(self.batch.inputs, layout.assemble(cut))

        def loss(flat: Tensor) -> Tensor:
            return -case.likelihood.log_density(outputs(flat), self.batch.targets).sum()  # type: ignore[arg-type]

        theta = torch.cat([layout.cut(self.network.weights, tile) for tile in layout])
        with sdpa_kernel(SDPBackend.MATH):
            rows: Any = torch.autograd.functional.jacobian(outputs, theta)
            hessian: Any = torch.autograd.functional.hessian(loss, theta)
        self.rows_NCP: Tensor = rows
        lambda_NCC = case.likelihood.hessian(outputs(theta))
        ggn = torch.einsum("ncp,ncd,ndq->pq", rows, lambda_NCC, rows)
        self.curvature: dict[str, Tensor] = {"ggn": ggn, "linearised": ggn, "hessian": hessian, "exact": hessian}

    def prior(self, kind: Kind) -> float:
        """That makes the curvature positive."""
        return max(1.0, 0.1 - 1.3 * float(torch.linalg.eigvalsh(self.curvature[kind])[0]))

    def covariance(self, kind: Kind, num: int) -> Tensor:
        """Of all outputs of the first examples together."""
        rows = self.rows_NCP[:num].flatten(0, 1)
        precision = self.curvature[kind] + self.prior(kind) * torch.eye(rows.shape[1])
        return rows @ torch.linalg.solve(precision.double(), rows.T)

    def solver(self, kind: Kind, tolerance: float, rank: int = 12) -> Solver:
        """Preconditioned by a few eigenpairs."""
        request = request_from_objects(
            self.case.module(),
            {"train": self.case.items},
            ImplicitHessian(),
            _known(self.case),
            output=self.case.output,
        )
        bench: Any = Bench(request.bench("", {}))
        values, vectors = torch.linalg.eigh(self.curvature["ggn"])
        kept = min(rank, len(values) - 1)
        basis = vectors.flip(1)[:, :kept]
        tiles = {tile.name: basis[tile.offset : tile.offset + tile.size].clone() for tile in bench.layout}
        values_K = values.flip(0)[:kept]
        preconditioner = Preconditioner(tiles, values_K, self.prior(kind), float(values_K[-1].clamp_min(0)))
        response = response_on(bench, _known(self.case), kind)
        return Solver(
            bench=bench, response=response, preconditioner=preconditioner, tolerance=tolerance, max_passes=400
        )


def _known(case: NetworkCase) -> Any:
    return Gaussian(0.3) if isinstance(case.likelihood, Gaussian) else case.likelihood


def columns_of(solver: Solver, batch: Batch) -> dict[str, Tensor]:
    """Of all outputs."""
    columns, _ = gradients_of(solver, batch, places_of(solver, batch, None))
    return columns


def answer_of(dense: Dense, solver: Solver, batch: Batch, outputs: Outputs = None) -> Answer:
    """With lambda times deviation of 1e-3."""
    recipe = QueryCovariances(
        likelihood=_known(dense.case),
        kind=solver.response.kind,
        sides="two",
        tolerance=solver.tolerance,
        max_passes=solver.max_passes,
        lambda_sd=1e-3,
        role="train",
        num_examples=None,
        outputs=outputs,
    )
    return answered(solver, batch, recipe, Unsaved())
